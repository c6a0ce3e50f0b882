"""What memory the host can still give, asked before it is taken.

Linux overcommits: taking more than there is gets the process killed, with no error to catch. The
look is cheap beside what it guards, but not free, so it is repeated per so many bytes granted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from optim.allotment import available_memory_bytes

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


RESERVE_BYTES = 256 << 20
"""Left for everything else in the process and on the host."""
_LOOK_EVERY_BYTES = 64 << 20


class HostMemory:
    """Grants bytes while the host has them."""

    def __init__(self, look: Callable[[], int] = available_memory_bytes) -> None:
        self._look = look
        self._granted = 0
        self._allowance = 0

    def grants(self, num_bytes: int) -> bool:
        """Whether that much can be taken now without the system running short."""
        if self._granted + num_bytes > self._allowance:
            room = self._look() - RESERVE_BYTES
            if num_bytes > room:
                self._allowance = self._granted = 0
                return False
            self._granted, self._allowance = 0, max(num_bytes, min(room, _LOOK_EVERY_BYTES))
        self._granted += num_bytes
        return True
