"""What optimisations are called and where they stand, without loading any: torch takes seconds.

Whoever reads results needs no more than that.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final, Literal

Stage = Literal["vocabulary", "weights", "cache"]
STAGES: tuple[Stage, ...] = ("vocabulary", "weights", "cache")
"""The order of application: what tokens there are, what is computed of them, where it is kept."""

GROUP = "optrial.optimizations"
"""Entry points of other packages."""

_BUILT_IN: Final[dict[str, Stage]] = {
    "adaptivocab": "vocabulary",
    "larosa": "weights",
    "tuned": "vocabulary",
    "vattention": "cache",
}

_EXACT: Final = frozenset({"vattention"})
"""They only keep keys and values elsewhere: with and without them the same tokens come out."""


def names() -> list[str]:
    """Every optimisation that can be named in a spec."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def stage_of(name: str) -> Stage | None:
    """Where an optimisation stands; None of one that is not installed here."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            stage: Stage = point.load().stage
            return stage
    return None


def is_exact(name: str) -> bool:
    """Whether an optimisation declares that it changes no output: then a row that differs is a
    fault. False of one that is not installed here."""
    if name in _BUILT_IN:
        return name in _EXACT
    for point in entry_points(group=GROUP):
        if point.name == name:
            return bool(getattr(point.load(), "is_exact", False))
    return False
