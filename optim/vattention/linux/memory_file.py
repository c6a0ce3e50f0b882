"""Memory of the host that several ranges can map: a file without a name, in memory alone."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import torch
from torch import Tensor

from optim.vattention.arena.arena import SharedMemory
from optim.vattention.linux.madvise import libc

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class MemoryFile:
    """A memfd. Its pages are committed by range and given back by punching holes.

    MADV_DONTNEED on a mapping would not do: the pages are the file's, not the mapping's.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("kv", os.MFD_CLOEXEC)
        self._end = 0
        weakref.finalize(self, os.close, self.descriptor)

    def commit(self, num_bytes: int) -> int:
        """Memory for `num_bytes` (whole pages) at an offset that is returned; OSError if none."""
        # Offsets are never used twice: what was punched costs nothing, and 2^63 do not run out.
        offset = self._end
        os.posix_fallocate(self.descriptor, offset, num_bytes)
        self._end += num_bytes
        return offset

    def release(self, offset: int, num_bytes: int) -> None:
        """Give the pages back; whoever maps them still would read zeros."""
        done = libc().fallocate(
            self.descriptor,
            _PUNCH_HOLE,
            ctypes.c_long(offset),
            ctypes.c_long(num_bytes),
        )
        if done:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def committed_bytes(self, offset: int, num_bytes: int) -> int:
        """Memory behind a range that was written to, as the system counts it."""
        total, place, end = 0, offset, offset + num_bytes
        while place < end:
            try:
                start = os.lseek(self.descriptor, place, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                break
            place = min(os.lseek(self.descriptor, start, os.SEEK_HOLE), end)
            total += max(place - start, 0)
        return total


class FileMemory(SharedMemory):
    """A range of a `MemoryFile`. What is not closed goes with the file, that is with its arena."""

    def __init__(self, file: MemoryFile, num_bytes: int) -> None:
        self.file = file
        self.num_bytes = num_bytes
        self.offset = file.commit(num_bytes)
        self._map: mmap.mmap | None = mmap.mmap(
            file.descriptor, num_bytes, flags=mmap.MAP_SHARED, offset=self.offset
        )

    def tensor(self, dtype: torch.dtype) -> Tensor:
        assert self._map is not None, "the memory was given back"
        return torch.frombuffer(memoryview(self._map), dtype=dtype)

    @property
    def committed_bytes(self) -> int:
        """As the system counts it, for memory that was written to."""
        return self.file.committed_bytes(self.offset, self.num_bytes)

    def _free(self) -> None:
        if self._map is not None:
            # Unmapped with its last tensor, if there still is one; the pages go at once.
            self._map = None
            self.file.release(self.offset, self.num_bytes)
