"""Whole numbers that a table tool wrote as floating point, because one of them was missing."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any


def is_parted(value: object) -> bool:
    """Whether a number has a part behind its point, so that its column is of such numbers."""
    return isinstance(value, float) and math.isfinite(value) and not value.is_integer()


def as_they_were(values: dict[str, Any] | None, whole: Set[str]) -> dict[str, Any] | None:
    """A row, with 1.0 as 1 in columns all of whose numbers are whole."""
    if values is None or not whole:
        return values
    return {
        name: int(value)
        if name in whole and isinstance(value, float) and math.isfinite(value)
        else value
        for name, value in values.items()
    }
