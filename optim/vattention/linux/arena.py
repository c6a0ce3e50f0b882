"""An arena in the host's memory: private mappings without swap reservation, and `madvise`."""

from __future__ import annotations

import contextlib
import errno
import mmap
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optim.errors import InputError
from optim.vattention.arena.arena import (
    Arena,
    KVMemoryError,
    LiveTensorError,
    Reservation,
    SharedMemory,
    Spans,
)
from optim.vattention.linux import mappings
from optim.vattention.linux.host_memory import HostMemory, proportional_bytes
from optim.vattention.linux.madvise import (
    DONTNEED,
    HUGEPAGE,
    NOHUGEPAGE,
    POPULATE_WRITE,
    advise,
    advise_all,
)
from optim.vattention.linux.memory_file import FileMemory, MemoryFile

HUGE_PAGE_BYTES = 2 << 20
_MAP_NORESERVE = 0x4000  # the mmap module names it only from Python 3.13 on


class LinuxReservation(Reservation):
    """A private anonymous mapping, with an unused margin on each side.

    Tensors look at it through a memoryview that they keep alive and that keeps the mapping open, so
    that it cannot be closed under them (torch itself would let it, and crash).
    """

    def __init__(self, num_bytes: int, alignment: int, advice: int) -> None:
        slack = max(alignment, mmap.PAGESIZE)
        self._map = mmap.mmap(
            -1,
            num_bytes + 2 * slack,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
        )
        start = torch.frombuffer(memoryview(self._map), dtype=torch.uint8).data_ptr()
        self.address = -(-(start + 1) // slack) * slack
        self.num_bytes = num_bytes
        self._offset = self.address - start
        # The advice sets the range apart from its margins, so that the kernel never merges it with
        # a neighbour and smaps shows it alone.
        advise(self.address, num_bytes, advice)

    def tensor(self, dtype: torch.dtype) -> Tensor:
        part = memoryview(self._map)[self._offset : self._offset + self.num_bytes]
        return torch.frombuffer(part, dtype=dtype)

    def close(self) -> None:
        try:
            self._map.close()
        except BufferError as error:
            raise LiveTensorError(
                "the keys and values cannot be unmapped: a tensor still looks at them"
            ) from error


class LinuxArena(Arena):
    """Pages of the system's base size, or transparent huge pages of 2 MiB.

    Memory is committed with MADV_POPULATE_WRITE, so that lack of memory is an error and not a
    signal at the first write, and released with MADV_DONTNEED, which frees at once.
    """

    def __init__(
        self,
        *,
        huge: bool = False,
        budget_bytes: int | None = None,
        memory: HostMemory | None = None,
    ) -> None:
        super().__init__(HUGE_PAGE_BYTES if huge else mmap.PAGESIZE, budget_bytes)
        if not sys.platform.startswith("linux"):
            raise InputError("vattention on a CPU needs Linux", field="optimizations.vattention")
        self.is_coarse = huge
        # Said for base pages too: where huge ones are on by default, they inflate every commit.
        self._advice = HUGEPAGE if huge else NOHUGEPAGE
        self._memory = memory or HostMemory()
        self._file: MemoryFile | None = None

    def _reserve(self, num_bytes: int) -> LinuxReservation:
        try:
            return LinuxReservation(num_bytes, self.page_bytes, self._advice)
        except (OSError, ValueError, OverflowError) as error:
            if self.is_coarse and isinstance(error, OSError) and error.errno == errno.EINVAL:
                raise InputError(
                    "this kernel has no transparent huge pages",
                    field="optimizations.vattention.pages",
                    mend="Use pages: base",
                ) from error
            raise KVMemoryError(
                f"no address space for {num_bytes} bytes of keys and values: {error}"
            ) from error

    def populate(self, spans: Spans) -> None:
        total = spans.total_bytes
        if not self._memory.grants(total):
            raise KVMemoryError(f"the host has no {total} bytes left for keys and values")
        try:
            advise_all(spans, POPULATE_WRITE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise InputError(
                    "vattention on a CPU needs Linux 5.14 or newer",
                    field="optimizations.vattention",
                ) from error
            with contextlib.suppress(OSError):
                advise_all(spans, DONTNEED)
            raise KVMemoryError(
                f"the host gives no {total} bytes for keys and values: {error.strerror}"
            ) from error

    def _release(self, spans: Spans) -> None:
        advise_all(spans, DONTNEED)

    def audit(self) -> int:
        """`Pss` of the arena's private pages, and what it shares, as the system counts them.

        Reads /proc/self/smaps: milliseconds, so once per cell.
        """
        ranges = ((r.address, r.address + r.num_bytes) for r in self._reservations)
        shared = sum(m.committed_bytes for m in self._shared if isinstance(m, FileMemory))
        return proportional_bytes(ranges) + shared

    def new_shared(self, num_bytes: int) -> FileMemory:
        size = self.whole_pages(num_bytes)
        if not (self.has_room(size) and self._memory.grants(size)):
            raise KVMemoryError(f"there is no memory left for a shared prompt of {size} bytes")
        if self._file is None:
            self._file = MemoryFile()
        try:
            return FileMemory(self._file, size)
        except OSError as error:
            raise KVMemoryError(
                f"the host gives no {size} bytes for a shared prompt: {error.strerror}"
            ) from error

    def _map_shared(self, shared: SharedMemory, offsets_N: NDArray[np.int64], spans: Spans) -> bool:
        assert isinstance(shared, FileMemory)
        starts = (shared.offset + offsets_N).tolist()
        rows = list(zip(spans.addresses_N.tolist(), spans.bytes_N.tolist(), starts, strict=True))
        if not mappings.take(len(rows)):
            return False
        for done, (address, size, start) in enumerate(rows):
            try:
                mappings.map_private(address, size, shared.file.descriptor, start)
            except OSError:
                self._unmap_shared(Spans(spans.addresses_N[:done], spans.bytes_N[:done]))
                mappings.give_back(len(rows) - done)
                return False
        return True

    def _unmap_shared(self, spans: Spans) -> None:
        for address, size in zip(spans.addresses_N.tolist(), spans.bytes_N.tolist(), strict=True):
            mappings.map_anonymous(address, size)
        # With its neighbours' advice, so that the kernel merges them into one mapping again.
        advise_all(spans, self._advice)
        mappings.give_back(len(spans.addresses_N))

    def close(self) -> None:
        count = sum(self._shared.values())
        super().close()
        mappings.give_back(count)
