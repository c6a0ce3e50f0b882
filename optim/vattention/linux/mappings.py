"""Mappings at given addresses, and how many of them this process may still make.

Linux gives a process 65,530 mappings (vm.max_map_count) and fails everything that needs one more,
the allocator of the C library included. Sharing a prompt takes up to two for each stripe of each
sequence, so it stops at half of them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from optim.vattention.linux.madvise import libc

_PER_RANGE = 2  # a range in the middle of a mapping splits it
_RECOUNT_EVERY = 4096
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value

_counted = 0  # mappings of the process when they were last counted
_taken = 0  # ranges taken since, less those given back
_calls = 0


def limit() -> int:
    """Most mappings of this process at which prompts are still shared."""
    return int(Path("/proc/sys/vm/max_map_count").read_text()) // 2


def count() -> int:
    """Mappings of this process now."""
    with Path("/proc/self/maps").open("rb") as lines:
        return sum(1 for _ in lines)


def take(num_ranges: int) -> bool:
    """Whether so many ranges may be mapped; to be given back when they are mapped no more."""
    global _counted, _taken, _calls
    _calls += 1
    # Counting takes longer the more there are, so between counts the books are trusted.
    if not _counted or _calls % _RECOUNT_EVERY == 0 or _estimate(num_ranges) > limit():
        _counted, _taken = count(), 0
    if _estimate(num_ranges) > limit():
        return False
    _taken += num_ranges
    return True


def give_back(num_ranges: int) -> None:
    """Enter that ranges are mapped no more."""
    global _taken
    _taken -= num_ranges


def _estimate(num_ranges: int) -> int:
    return _counted + _PER_RANGE * (_taken + num_ranges)


def map_private(address: int, num_bytes: int, descriptor: int, offset: int) -> None:
    """Map a file's range at an address, copied on write; OSError where the kernel refuses."""
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
    _map(address, num_bytes, flags, descriptor, offset)


def map_anonymous(address: int, num_bytes: int) -> None:
    """Replace what is mapped at an address by empty private memory that is not committed."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    _map(address, num_bytes, flags, -1, 0)


def _map(address: int, num_bytes: int, flags: int, descriptor: int, offset: int) -> None:
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if libc().mmap(address, num_bytes, access, flags, descriptor, offset) == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
