"""What memory the host can still give, asked before it is taken.

Linux overcommits: taking more than there is gets the process killed, with no error to catch. The
look is cheap beside what it guards, but not free, so it is repeated per so many bytes granted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

RESERVE_BYTES = 256 << 20
"""Left for everything else in the process and on the host."""
_LOOK_EVERY_BYTES = 64 << 20

_GROUPS = [  # folder, limit, use, and what of it is cached files, of the process's control group
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file"),
]  # fmt: skip


def available_bytes() -> int:
    """What the host and the container's limit leave, whichever is less."""
    left = psutil.virtual_memory().available
    for folder, limit, use, cached in _GROUPS:
        try:
            most, used = ((Path(folder) / name).read_text().strip() for name in (limit, use))
            statistics = dict(
                line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines()
            )
        except OSError:
            continue
        if most != "max":
            # Cached files are dropped when memory is asked for.
            left = min(left, int(most) - int(used) + int(statistics.get(cached, 0)))
    return int(left)


class HostMemory:
    """Grants bytes while the host has them."""

    def __init__(self, look: Callable[[], int] = available_bytes) -> None:
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
