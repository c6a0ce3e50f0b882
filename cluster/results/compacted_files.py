"""Few large files beside many small parts, for reading: what `optrial compact` made.

```
tables/CURRENT                                          the generation in force
tables/compacted/<number>-<id>/generation.json          its files, with sizes and sha256
                               covered.parquet          the parts whose rows are in them
                               cells.parquet            the facts of their footers
                               <kind>/configuration=c-<name>/<n>.parquet
```

Parts stay the truth. A part that was committed since is read beside the generation; a row whose
part is gone, or another one by now, does not count; a generation that is not whole is as none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import Kind
from cluster.results.files import Part
from cluster.results.receipts import Seal
from cluster.storage.open_store import Entry, LocalStore, ObjectStore
from optim.errors import InputError

FOLDER, CURRENT = "tables/compacted", "tables/CURRENT"
LAYOUT_VERSION = 1
COVERED_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("key", pa.string()),
        ("num_bytes", pa.int64()),
        ("version", pa.string()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class CompactedFile:
    """One large file."""

    name: str
    kind: Kind
    configuration: str
    rows: int
    num_bytes: int
    sha256: str


class Covered(NamedTuple):
    """A part whose rows are in a generation, as it was when they were copied."""

    name: str
    key: str
    num_bytes: int
    version: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Split:
    """How a generation stands to the parts that there are now."""

    fresh: tuple[Part, ...]
    """Parts to be read as they are."""
    stale: frozenset[str]
    """Keys of cells whose compacted rows no longer count."""


class Compacted:
    """The generation in force."""

    def __init__(
        self, store: LocalStore | ObjectStore, about: Mapping[str, Any], listed: Mapping[str, Entry]
    ) -> None:
        self.store = store
        self.number = int(about["number"])
        self.folder = str(about["folder"])
        self.files = tuple(CompactedFile(**each) for each in about["files"])
        self.cells = CompactedFile(**about["cells"])
        self.index = CompactedFile(**about["covered"])
        self.cell_columns: list[str] = list(about["cell_columns"])
        self.entries = {file.name: listed[file.name] for file in self.all_files}
        self._covered: dict[str, Covered] | None = None

    @property
    def all_files(self) -> tuple[CompactedFile, ...]:
        return *self.files, self.cells, self.index

    @staticmethod
    def current(store: LocalStore | ObjectStore) -> Compacted | None:
        """None where there is none, or where files of it are missing."""
        try:
            folder = json.loads(store.read(CURRENT))["folder"]
            about = json.loads(store.read(f"{folder}/generation.json"))
            if about["layout_version"] != LAYOUT_VERSION:
                return None
            listed = {entry.name: entry for entry in store.entries(FOLDER)}
            found = Compacted(store, about, listed)
        except InputError:
            raise  # a store that does not answer is no trial without compaction
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        whole = all(found.entries[f.name].num_bytes == f.num_bytes for f in found.all_files)
        return found if whole else None

    def seals(self) -> dict[str, list[Seal]]:
        """What its own manifest says of its files."""
        return {file.name: [Seal(file.num_bytes, file.sha256)] for file in self.all_files}

    @property
    def covered(self) -> dict[str, Covered]:
        """Part name -> what it was. Read from a file that must have been checked before."""
        if self._covered is None:
            rows = (Covered(*row) for row in zip(*self._columns(), strict=True))
            self._covered = {row.name: row for row in rows}
        return self._covered

    def _columns(self) -> list[list[Any]]:
        """Of its index, in the schema's order."""
        table = pq.read_table(pa.BufferReader(self.store.read(self.index.name)))
        return [table[name].to_pylist() for name in COVERED_SCHEMA.names]

    def split(self, parts: Sequence[Part], sha256_of: Callable[[Part], str]) -> Split:
        """Which of all parts its rows stand for.

        `sha256_of` is asked where a covered part has its size but another time of change, as all
        have after a copy of the folder.
        """
        # Not `covered`: every query comes here, and has no use for an object for each part.
        names, keys, sizes, versions, digests, _ = self._columns()
        places = dict(zip(names, range(len(names)), strict=True))
        stale, fresh = set[str](), []
        for part in parts:
            place = places.pop(part.name, None)
            if place is None:
                fresh.append(part)
            elif part.num_bytes != sizes[place] or (
                part.version != versions[place] and sha256_of(part) != digests[place]
            ):
                stale.add(keys[place])
                fresh.append(part)
        stale |= {keys[place] for place in places.values()}
        # A key of which two parts were copied, one of them no cell: all its rows are read anew.
        known_fresh = {part.name for part in fresh}
        fresh += [p for p in parts if p.key in stale and p.name not in known_fresh]
        return Split(tuple(fresh), frozenset(stale))
