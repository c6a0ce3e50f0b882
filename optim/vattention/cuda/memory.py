"""The physical memory of one CUDA arena, page by page, and the addresses that it is mapped at.

One handle of the driver is one page. What an arena owns is behind its own pages, or in a pool for
the next ones, or the one page of zeros that is mapped wherever somebody has to read past the end of
a sequence. A page of somebody else's, of a shared prompt or of zeros, is *lent*.

The driver maps page by page, and takes access and unmapping by range: an access call costs tens of
microseconds, so neighbouring pages get one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from optim.vattention.arena.arena import Spans
from optim.vattention.arena.dlpack import tensor_at
from optim.vattention.cuda.driver import DeviceMemoryError, Driver

MakeRoom = Callable[[], None]


class DeviceMemory:
    """The handles of one arena. Every call has to be made within `driver.active()`.

    Pages are given by their addresses, in ascending order. Raises DeviceMemoryError where the
    device has no memory and CudaError where the driver refuses otherwise; nothing is changed then.
    """

    def __init__(self, driver: Driver, pool_bytes: int) -> None:
        self.driver = driver
        self.page_bytes = driver.page_bytes
        self._own: dict[int, int] = {}  # address of a page -> the handle behind it
        self._lent: dict[int, int] = {}  # the same where the handle is not the page's own
        self._pool: list[int] = []
        self._most_pooled = pool_bytes // self.page_bytes
        self._zeros: int | None = None

    @property
    def idle_bytes(self) -> int:
        """What is in the pool, and the page of zeros."""
        return (len(self._pool) + (self._zeros is not None)) * self.page_bytes

    def pages(self, spans: Spans) -> list[int]:
        """The addresses of all pages of ranges, ascending."""
        counts_N = spans.bytes_N // self.page_bytes
        first_N = np.cumsum(counts_N) - counts_N
        place_P = np.arange(counts_N.sum()) - np.repeat(first_N, counts_N)
        address_P = np.repeat(spans.addresses_N, counts_N) + place_P * self.page_bytes
        pages: list[int] = np.sort(address_P).tolist()
        return pages

    def handles(self, pages: Sequence[int]) -> list[int]:
        """What is behind own pages."""
        return [self._own[page] for page in pages]

    # --- own pages -----------------------------------------------------------------------------

    def commit(self, pages: list[int], make_room: MakeRoom | None) -> None:
        """Put zeroed memory of their own behind pages. `make_room`: see `_take`."""
        handles = self._take(len(pages), make_room)
        try:
            self._map(pages, handles)
            try:
                self.driver.zero(self._runs(pages))
            except BaseException:
                self.driver.synchronize()
                self._unmap(pages)
                raise
        except BaseException:
            self._give_back(handles)
            raise
        self._own.update(zip(pages, handles, strict=True))

    def release(self, pages: list[int]) -> None:
        """Take the memory from own pages, for the pool as far as that has room."""
        self._unmap(pages)
        handles = [self._own.pop(page) for page in pages]
        room = max(self._most_pooled - len(self._pool), 0)
        self._pool += handles[:room]
        self._give_back(handles[room:])

    def drain(self) -> None:
        """Give the pool back to the driver."""
        self._give_back(self._pool)
        self._pool = []

    def _take(self, count: int, make_room: MakeRoom | None) -> list[int]:
        """So many handles of any content, those of the pool first.

        Where the device is out of memory, `make_room` is called and the driver is asked again,
        once. If it has none then either, nothing is kept, the pool's neither: somebody needs it.
        """
        kept = max(len(self._pool) - count, 0)
        handles, self._pool = self._pool[kept:], self._pool[:kept]
        try:
            while len(handles) < count:
                try:
                    handles.append(self.driver.create(self.page_bytes))
                except DeviceMemoryError:
                    if make_room is None:
                        raise
                    make_room()
                    make_room = None
        except BaseException:
            self._give_back(handles)
            raise
        return handles

    def _give_back(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self.driver.release(handle)

    # --- pages that are lent -------------------------------------------------------------------

    def lend(self, pages: list[int], handles: Sequence[int]) -> None:
        """Map handles of others, one per page."""
        self._map(pages, handles)
        self._lent.update(zip(pages, handles, strict=True))

    def take_back(self, pages: list[int]) -> None:
        """Unmap lent pages."""
        self._unmap(pages)
        for page in pages:
            del self._lent[page]

    def make_zeros(self, page: int, make_room: MakeRoom | None) -> None:
        """Make the page of zeros, if there is none. `page`: an address that is free for a moment.

        Made with the first range, so that filling needs no memory later, in the midst of a step.
        """
        if self._zeros is None:
            self.commit([page], make_room)
            self._unmap([page])
            self._zeros = self._own.pop(page)

    def fill(self, pages: list[int]) -> None:
        """Map the page of zeros at all pages where nothing is mapped."""
        assert self._zeros is not None
        missing = [p for p in pages if p not in self._own and p not in self._lent]
        self.lend(missing, [self._zeros] * len(missing))

    def filled(self, pages: list[int]) -> list[int]:
        """Those of the pages that the page of zeros is mapped at."""
        return [p for p in pages if p in self._lent and self._lent[p] == self._zeros]

    # --- mapping -------------------------------------------------------------------------------

    def _map(self, pages: list[int], handles: Sequence[int]) -> None:
        mapped = 0
        try:
            for page, handle in zip(pages, handles, strict=True):
                self.driver.map(page, self.page_bytes, handle)
                mapped += 1
            for start, size in self._runs(pages):
                self.driver.set_access(start, size)
        except BaseException:
            self._unmap(pages[:mapped])
            raise

    def _unmap(self, pages: list[int]) -> None:
        for start, size in self._runs(pages):
            self.driver.unmap(start, size)

    def _runs(self, pages: list[int]) -> list[tuple[int, int]]:
        """Ranges (address, bytes) of neighbouring pages."""
        if not pages:
            return []
        parts = np.split(np.array(pages), np.flatnonzero(np.diff(pages) != self.page_bytes) + 1)
        return [(int(part[0]), len(part) * self.page_bytes) for part in parts]

    # --- ranges of addresses -------------------------------------------------------------------

    def reserve(self, num_bytes: int) -> int:
        """Addresses with a page beyond the last that stays empty: no two ranges are neighbours.

        So a run of pages never crosses from one reservation of the driver into the next, which a
        call for it may not do.
        """
        return self.driver.reserve(num_bytes + self.page_bytes)

    def free(self, address: int, num_bytes: int) -> None:
        """Undo `reserve`, whatever is mapped there. No work may be under way there."""
        every = range(address, address + num_bytes, self.page_bytes)
        self._unmap([page for page in every if page in self._own or page in self._lent])
        self._give_back([self._own.pop(page) for page in every if page in self._own])
        for page in every:
            self._lent.pop(page, None)
        self.driver.free(address, num_bytes + self.page_bytes)

    def handles_seen(self, address: int, num_bytes: int) -> set[int]:
        """The handles that the driver says are mapped in a range, zeros apart."""
        every = range(address, address + num_bytes, self.page_bytes)
        return {h for page in every if (h := self.driver.handle_at(page)) is not None} - {
            self._zeros
        }

    # --- where nobody closes -------------------------------------------------------------------

    def free_orphan(self, address: int, num_bytes: int) -> None:
        """`free` from any thread, of a range that nobody can reach any more."""
        with self.driver.active():
            # The thread that happens to drop the last reference has a current stream of its own,
            # which says nothing of the model's: all streams are waited for.
            self.driver.synchronize()
            self.free(address, num_bytes)

    def close(self) -> None:
        """Give back the pool and the page of zeros, which lives on where it is still mapped."""
        with self.driver.active():
            self.drain()
            if self._zeros is not None:
                self.driver.release(self._zeros)
                self._zeros = None


class _Lease:
    """What a tensor keeps alive."""

    def __init__(self, held: DeviceRange) -> None:
        self.held = held


class DeviceRange:
    """Addresses that go, with what is mapped there, by `free` or when nobody can reach them.

    A tensor over them, or a view of one, keeps them.
    """

    def __init__(self, memory: DeviceMemory, num_bytes: int) -> None:
        self.memory, self.num_bytes = memory, num_bytes
        self.address = memory.reserve(num_bytes)
        self._leases: weakref.WeakSet[_Lease] = weakref.WeakSet()
        self._orphaned = weakref.finalize(self, memory.free_orphan, self.address, num_bytes)
        # At exit it would unmap under live tensors; the driver cleans up after a process.
        self._orphaned.atexit = False

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """All of it, flat."""
        lease = _Lease(self)
        made = tensor_at(self.address, self.num_bytes, dtype, self.memory.driver.device, lease)
        self._leases.add(lease)
        return made

    @property
    def has_tensors(self) -> bool:
        return len(self._leases) > 0

    def free(self) -> None:
        """Give it back now. No tensor may look at it, and no work may be under way there."""
        self._orphaned.detach()
        self.memory.free(self.address, self.num_bytes)
