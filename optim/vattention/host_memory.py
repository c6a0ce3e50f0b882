"""What memory the host can still give, asked before it is taken.

Linux overcommits: taking more than there is gets the process killed, with no error to catch. The
look is cheap beside what it guards, but not free, so it is repeated per so many bytes granted.
"""

from __future__ import annotations

from collections.abc import Callable

from optim.allotment import available_memory_bytes

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
