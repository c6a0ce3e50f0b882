"""What a page is made of: sections with prose, figures and tables, before they are HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

LONG_ROWS = 12
"""Tables of more rows beside a plot are folded."""

Kind = Literal["prose", "figure", "table", "samples", "list", "fold", "source"]


@dataclass(frozen=True)
class Cell:
    text: str
    style: str = ""
    """Classes of the style sheet: `num`, `key`, `words`, `quiet`, or a verdict's."""
    symbol: str = ""
    """Shown before the text, so that no meaning is in colour alone."""
    note: str = ""
    """Smaller, below the text."""


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Group:
    """Rows under one heading of their own; without one where it is empty."""

    heading: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[str]
    groups: Sequence[Group]
    is_folded: bool = False
    kind: Kind = "table"

    @property
    def num_rows(self) -> int:
        return sum(len(group.rows) for group in self.groups)


@dataclass(frozen=True)
class Figure:
    """A plot with its numbers as a table."""

    title: str
    svg: Markup
    table: Table
    note: str = ""
    is_wide: bool = False
    """Whether it stands alone, with its table open beside it."""
    kind: Kind = "figure"


@dataclass(frozen=True)
class Prose:
    text: str
    style: str = ""
    kind: Kind = "prose"


@dataclass(frozen=True)
class Definitions:
    """Terms with what they mean."""

    entries: Sequence[tuple[str, str]]
    kind: Kind = "list"


@dataclass(frozen=True)
class Samples:
    samples: Sequence[dict[str, Any]]
    kind: Kind = "samples"


@dataclass(frozen=True)
class Source:
    """Text for machines, folded."""

    title: str
    text: str
    kind: Kind = "source"


@dataclass(frozen=True)
class Fold:
    """Parts that are shown when they are asked for."""

    title: str
    parts: Sequence[Any]
    kind: Kind = "fold"

    @property
    def blocks(self) -> list[list[Part]]:
        return in_blocks(self.parts)


Part = Prose | Figure | Table | Samples | Definitions | Source | Fold


@dataclass(frozen=True)
class Section:
    id: str
    heading: str
    parts: Sequence[Part] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For the contents, where there is room for one word."""
        return self.id.capitalize()

    @property
    def blocks(self) -> list[list[Part]]:
        return in_blocks(self.parts)


def in_blocks(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts in order; figures that follow one another stand side by side."""
    found: list[list[Part]] = []
    for part in parts:
        if found and _stands_beside(part) and _stands_beside(found[-1][-1]):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _stands_beside(part: Part) -> bool:
    return isinstance(part, Figure) and not part.is_wide


def table(caption: str, columns: Sequence[str], rows: Iterable[Row], *, fold: bool = True) -> Table:
    """A table of one group; plain strings after the first column are numbers."""
    made = [cells(row) for row in rows]
    return Table(caption, columns, [Group("", made)], is_folded=fold and len(made) > LONG_ROWS)


def cells(row: Row) -> list[Cell]:
    return [
        each if isinstance(each, Cell) else Cell(each, "num" if place else "")
        for place, each in enumerate(row)
    ]
