"""An arena in the memory of a CUDA device, by the driver's virtual memory management."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor

from optim.vattention.arena.arena import (
    Arena,
    KVMemoryError,
    LiveTensorError,
    Reservation,
    SharedMemory,
    Spans,
)
from optim.vattention.cuda.driver import CudaError, DeviceMemoryError, Driver
from optim.vattention.cuda.memory import DeviceMemory, DeviceRange, MakeRoom

_NO_ADDRESSES = ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_INVALID_VALUE")


def _finish_work(driver: Driver) -> None:
    """Wait for the work that may still read what is about to be unmapped, which would be a fault.

    The model runs on the stream that is current where the cache is used: work on other streams that
    reads it has to be joined to this one by whoever started it, as for any tensor that is freed.
    """
    driver.wait(driver.record())


class CudaReservation(Reservation):
    """Addresses of a device."""

    def __init__(self, memory: DeviceMemory, num_bytes: int) -> None:
        self._range: DeviceRange | None = DeviceRange(memory, num_bytes)
        self._driver = memory.driver
        self.address, self.num_bytes = self._range.address, num_bytes

    def tensor(self, dtype: torch.dtype) -> Tensor:
        assert self._range is not None, "the reservation was closed"
        return self._range.tensor(dtype)

    def close(self) -> None:
        if self._range is None:
            return
        if self._range.has_tensors:
            raise LiveTensorError("the keys and values cannot be unmapped: a tensor looks at them")
        with self._driver.active():
            _finish_work(self._driver)
            self._range.free()
        self._range = None


class CudaSharedMemory(SharedMemory):
    """Pages with addresses of their own, whose handles are mapped elsewhere as well."""

    def __init__(self, memory: DeviceMemory, num_bytes: int, make_room: MakeRoom) -> None:
        self.num_bytes = num_bytes
        self.driver = memory.driver
        self._range: DeviceRange | None = DeviceRange(memory, num_bytes)
        start = self._range.address
        pages = list(range(start, start + num_bytes, memory.page_bytes))
        try:
            memory.commit(pages, make_room)
        except BaseException:
            self._range.free()
            raise
        self.handles = memory.handles(pages)
        """One per page."""

    def tensor(self, dtype: torch.dtype) -> Tensor:
        assert self._range is not None, "the memory was given back"
        return self._range.tensor(dtype)

    def handles_seen(self) -> set[int]:
        """The handles that the driver says are mapped there."""
        assert self._range is not None
        return self._range.memory.handles_seen(self._range.address, self.num_bytes)

    def _free(self) -> None:
        held, self._range = self._range, None
        # With its last tensor, if there still is one: it goes when `held` does.
        if held is not None and not held.has_tensors:
            with self.driver.active():
                _finish_work(self.driver)
                held.free()


class CudaArena(Arena):
    """Pages of the driver's granularity, 2 MiB on the devices of today.

    Memory comes from `driver`, page by page, and goes back to it, but for `pool_bytes` that are
    kept for the next commit. What is out of memory is a KVMemoryError, every other failure of the
    driver a CudaError: that is no reason to run a smaller batch.

    `empty_cache` gives back what torch holds and does not use; it is called before a commit fails.
    """

    is_coarse = True
    reads_need_memory = True

    def __init__(
        self,
        driver: Driver,
        budget_bytes: int | None = None,
        pool_bytes: int = 64 << 20,
        empty_cache: Callable[[], None] = torch.cuda.empty_cache,
    ) -> None:
        super().__init__(driver.page_bytes, budget_bytes)
        self._driver = driver
        self._empty_cache = empty_cache
        self._memory = DeviceMemory(driver, pool_bytes)
        self._user = threading.get_ident()
        weakref.finalize(self, self._memory.close).atexit = False

    @property
    def pooled_bytes(self) -> int:
        """Memory that backs no page of its own: the pool, and the one page of zeros.

        Neither counts towards the budget. The page of zeros comes with the first reservation and
        goes with `close`.
        """
        return self._memory.idle_bytes

    def _reserve(self, num_bytes: int) -> CudaReservation:
        self._user = threading.get_ident()
        with self._driver.active():
            try:
                made = CudaReservation(self._memory, num_bytes)
            except CudaError as error:
                if error.name not in _NO_ADDRESSES:
                    raise
                raise KVMemoryError(
                    f"no address space for {num_bytes} bytes of keys and values: {error}"
                ) from error
            try:
                with _memory_for("a page of zeros"):
                    self._memory.make_zeros(made.address, self._empty_cache)
            except BaseException:
                made.close()
                raise
        return made

    def commit(self, spans: Spans) -> None:
        self._user = threading.get_ident()
        super().commit(spans)

    def populate(self, spans: Spans) -> None:
        # New pages are zeroed, since a masked column is still multiplied, 0 x NaN is NaN, and a
        # page of the pool holds what its last owner wrote. They are zero when this returns: the
        # driver clears them on a stream of its own and waits for that stream alone, so whatever
        # the model launches next, on whichever stream, comes later, and what it launched before
        # goes on meanwhile. Nothing of before can still read a page of the pool: it was unmapped
        # after its last reader.
        #
        # Only the thread that uses the cache may empty torch's. In the background that would be
        # unsafe for speed, not for memory: it frees with the whole device waiting, in the midst of
        # a step that then allocates all of it anew, for pages that nobody needs yet; and it would
        # do so again in every step for as long as memory is short. A look-ahead that fails costs
        # nothing, and who needs its pages asks again, from the thread that may.
        is_user = threading.get_ident() == self._user
        with self._driver.active(), _memory_for(f"{spans.total_bytes} bytes of keys and values"):
            self._memory.commit(self._memory.pages(spans), self._empty_cache if is_user else None)

    def _release(self, spans: Spans) -> None:
        with self._driver.active():
            _finish_work(self._driver)
            self._memory.release(self._memory.pages(spans))

    def fill(self, spans: Spans) -> None:
        with self._driver.active(), _memory_for("the mapping of keys and values"):
            self._memory.fill(self._memory.pages(spans))

    def unfill(self, spans: Spans) -> None:
        pages = self._memory.filled(self._memory.pages(spans))
        if pages:
            with self._driver.active():
                _finish_work(self._driver)
                self._memory.take_back(pages)

    def new_shared(self, num_bytes: int) -> CudaSharedMemory:
        size = self.whole_pages(num_bytes)
        if not self.has_room(size):
            raise KVMemoryError(f"there is no memory left for a shared prompt of {size} bytes")
        with self._driver.active(), _memory_for(f"a shared prompt of {size} bytes"):
            return CudaSharedMemory(self._memory, size, self._empty_cache)

    def _map_shared(self, shared: SharedMemory, offsets_N: NDArray[int64], spans: Spans) -> bool:
        assert isinstance(shared, CudaSharedMemory)
        assert shared.driver is self._driver, "the memory is another device's"
        page = self.page_bytes
        handles: dict[int, int] = {}
        rows = zip(
            offsets_N.tolist(), spans.addresses_N.tolist(), spans.bytes_N.tolist(), strict=True
        )
        for offset, address, size in rows:
            chosen = shared.handles[offset // page : (offset + size) // page]
            handles.update(zip(range(address, address + size, page), chosen, strict=True))
        pages = sorted(handles)
        with self._driver.active(), _memory_for("the mapping of keys and values"):
            self._memory.lend(pages, [handles[p] for p in pages])
        return True

    def _unmap_shared(self, spans: Spans) -> None:
        with self._driver.active():
            _finish_work(self._driver)
            self._memory.take_back(self._memory.pages(spans))

    def audit(self) -> int:
        """Bytes behind all handles that the driver says are mapped in the arena's ranges.

        With the pages of what it shares, each once, and the idle ones, which are mapped nowhere.
        Asks the driver for every page of the reservation, so once per cell.
        """
        seen: set[int] = set()
        with self._driver.active():
            for made in self._reservations:
                seen |= self._memory.handles_seen(made.address, made.num_bytes)
            for shared in self._shared:
                assert isinstance(shared, CudaSharedMemory)
                seen |= shared.handles_seen()
        return len(seen) * self.page_bytes + self.pooled_bytes

    def close(self) -> None:
        with self._driver.active():
            self._memory.drain()
        super().close()
        self._memory.close()


@contextlib.contextmanager
def _memory_for(what: str) -> Iterator[None]:
    """The driver's lack of memory as that of keys and values."""
    try:
        yield
    except DeviceMemoryError as error:
        raise KVMemoryError(f"the device has no memory left for {what}: {error.name}") from error
