"""Physical memory behind ranges of addresses, as the kernel counts it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def proportional_bytes(ranges: Iterable[tuple[int, int]]) -> int:
    """`Pss` of the mappings that lie within `ranges` of (first address, end), in bytes.

    Pss and not Rss, which counts a shared page once per mapping. Of a file in memory only the pages
    that were copied on write: the others are the file's. A mapping that reaches beyond the ranges
    (the kernel merges neighbours of equal flags) is an error: its share cannot be told.
    """
    wanted = sorted(ranges)
    total, field = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := _MAPPING.match(line):
            start, end = int(found[1], 16), int(found[2], 16)
            own = "Anonymous:" if "/memfd:" in line else "Pss:"
            field = own if _covers(wanted, start, end) else ""
        elif field and line.startswith(field):
            total += int(line.split()[1]) << 10
    return total


def _covers(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    """Whether the union of sorted ranges covers start..end; ValueError where it does in part."""
    place, touched = start, False
    for first, last in ranges:
        if last <= start or first >= end:
            continue
        touched = True
        if first > place:
            break
        place = max(place, last)
    if touched and place < end:
        raise ValueError(f"the mapping {start:x}-{end:x} lies only in part in the given ranges")
    return touched
