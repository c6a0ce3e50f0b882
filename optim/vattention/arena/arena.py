"""`Arena`: address space that is reserved at once and backed by memory page by page.

The words: *reserved* is address space; *committed* is physical memory; *used* is what live tokens
fill. Bytes throughout. An arena keeps the books of the first two; which pages are committed is
known by its user (`optim.vattention.arena.page_table`).

Memory that several sequences read (`SharedMemory`) is made apart from any range, and then mapped at
as many addresses as are wanted, in one arena or several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, dtype

from optim.errors import NoRoomError


class KVMemoryError(NoRoomError):
    """No memory for keys and values: the budget, the address space or the host is exhausted."""


class LiveTensorError(RuntimeError):
    """Memory that a tensor still looks at cannot be given back."""


class Spans(NamedTuple):
    """Ranges of whole pages, as parallel arrays."""

    addresses_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]

    @property
    def total_bytes(self) -> int:
        return int(self.bytes_N.sum())

    @classmethod
    def join(cls, parts: list[Spans]) -> Spans:
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([p.addresses_N for p in parts] or [np.empty(0, np.int64)]),
            np.concatenate([p.bytes_N for p in parts] or [np.empty(0, np.int64)]),
        )


class Reservation(ABC):
    """A range of addresses of an arena; its memory goes when the last tensor on it goes."""

    address: int
    num_bytes: int

    @abstractmethod
    def tensor(self, dtype: dtype) -> Tensor:
        """The whole range as one flat tensor; only committed parts may be written."""

    @abstractmethod
    def close(self) -> None:
        """Give the range back; LiveTensorError while a tensor looks at it."""


class SharedMemory(ABC):
    """Committed memory of whole pages that is mapped wherever an arena is told to.

    It is given back when it was closed and the last mapping of it is gone.
    """

    num_bytes: int
    num_mappings = 0
    """Ranges that it is mapped at; the arenas count them."""
    _is_closed = False

    @abstractmethod
    def tensor(self, dtype: dtype) -> Tensor:
        """All of it as one flat tensor, to be written before it is mapped elsewhere."""

    @abstractmethod
    def _free(self) -> None:
        """Give the memory back; nothing is mapped any more."""

    def close(self) -> None:
        """Give it back as soon as nothing maps it. Its tensors must be gone."""
        self._is_closed = True
        self._free_if_unused()

    def note_mappings(self, change: int) -> None:
        """Enter that so many mappings were made, or undone where negative."""
        self.num_mappings += change
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._is_closed and not self.num_mappings:
            self._free()


class Arena(ABC):
    """Reserves, commits and releases, within an optional budget of committed bytes."""

    is_coarse: bool
    """Pages so large that a page holds the tokens of all heads: the layout is token-major."""
    reads_need_memory = False
    """Whether an address that was never committed must not even be read, unless it was filled."""

    def __init__(self, page_bytes: int, budget_bytes: int | None = None) -> None:
        self.page_bytes = page_bytes
        self.budget_bytes = budget_bytes
        self.reserved_bytes = 0
        self.committed_bytes = 0
        """Memory behind this arena's own pages; what it shares is counted by `shared_bytes`."""
        self.peak_bytes = 0
        self._reservations: list[Reservation] = []
        self._shared: dict[SharedMemory, int] = {}  # -> ranges of this arena that map it

    def reserve(self, num_bytes: int) -> Reservation:
        """Address space of at least `num_bytes`, in whole pages, with no memory behind it."""
        made = self._reserve(self.whole_pages(num_bytes))
        self._reservations.append(made)
        self.reserved_bytes += made.num_bytes
        return made

    def forget(self, reservation: Reservation) -> None:
        """Leave a range in which nothing is committed to its tensors: it goes with the last."""
        self._reservations.remove(reservation)
        self.reserved_bytes -= reservation.num_bytes

    def whole_pages(self, num_bytes: int) -> int:
        """`num_bytes` rounded up to pages."""
        return -(-num_bytes // self.page_bytes) * self.page_bytes

    @property
    def shared_bytes(self) -> int:
        """Memory that ranges of this arena share, each piece counted once."""
        return sum(shared.num_bytes for shared in self._shared)

    @property
    def pooled_bytes(self) -> int:
        """Memory that backs nothing and is kept for the next commit."""
        return 0

    def has_room(self, num_bytes: int) -> bool:
        """Whether the budget allows that many bytes more."""
        if self.budget_bytes is None:
            return True
        return self.committed_bytes + self.shared_bytes + num_bytes <= self.budget_bytes

    def commit(self, spans: Spans) -> None:
        """Put memory behind pages that have none; all of them or none.

        Raises KVMemoryError where the budget or the machine does not have it.
        """
        total = spans.total_bytes
        if not self.has_room(total):
            in_use = self.committed_bytes + self.shared_bytes
            raise KVMemoryError(
                f"{total} bytes more of keys and values do not fit the budget: {in_use} of "
                f"{self.budget_bytes} bytes are in use"
            )
        self.populate(spans)
        self.book(total)

    def book(self, num_bytes: int) -> None:
        """Enter what `populate` did; `commit` does both."""
        self.committed_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.committed_bytes)

    def release(self, spans: Spans) -> None:
        """Give the memory behind committed pages back; their content is lost."""
        if len(spans.addresses_N):
            self._release(spans)
            self.committed_bytes -= spans.total_bytes

    def map_shared(self, shared: SharedMemory, offsets_N: NDArray[np.int64], spans: Spans) -> bool:
        """Map `shared` from each offset on at each span, where nothing is committed.

        Its content is read there and must not be written to through the spans (on a CPU a write
        is private to the range, on a GPU it is not). False, and nothing is mapped, where the system
        has no mappings left: copy instead.
        """
        count = len(spans.addresses_N)
        if not self._map_shared(shared, offsets_N, spans):
            return False
        self._shared[shared] = self._shared.get(shared, 0) + count
        shared.note_mappings(count)
        return True

    def unmap_shared(self, shared: SharedMemory, spans: Spans) -> None:
        """Undo `map_shared` for spans of it: nothing is committed there afterwards."""
        count = len(spans.addresses_N)
        self._unmap_shared(spans)
        self._shared[shared] -= count
        if not self._shared[shared]:
            del self._shared[shared]
        shared.note_mappings(-count)

    def fill(self, spans: Spans) -> None:
        """Let pages without memory be read as zeros; only where `reads_need_memory`."""
        assert not self.reads_need_memory

    def unfill(self, spans: Spans) -> None:
        """Undo `fill`, as has to be done before a commit."""
        assert not self.reads_need_memory

    def close(self) -> None:
        """Give everything back at once; LiveTensorError while a tensor looks at it."""
        while self._reservations:
            # What is closed is no longer asked for in an audit: others may map its addresses.
            self._reservations[-1].close()
            self.reserved_bytes -= self._reservations.pop().num_bytes
        self.committed_bytes = 0
        for shared, count in self._shared.items():
            shared.note_mappings(-count)
        self._shared.clear()

    @abstractmethod
    def populate(self, spans: Spans) -> None:
        """The work of `commit`, without books: may run in another thread. All or nothing."""

    @abstractmethod
    def audit(self) -> int:
        """Committed bytes as the system sees them, to check the books by."""

    @abstractmethod
    def new_shared(self, num_bytes: int) -> SharedMemory:
        """Committed memory of at least `num_bytes`, for `map_shared` of this arena or another.

        Raises KVMemoryError where the budget or the machine does not have it.
        """

    @abstractmethod
    def _reserve(self, num_bytes: int) -> Reservation: ...

    @abstractmethod
    def _map_shared(
        self, shared: SharedMemory, offsets_N: NDArray[np.int64], spans: Spans
    ) -> bool: ...

    @abstractmethod
    def _unmap_shared(self, spans: Spans) -> None: ...

    @abstractmethod
    def _release(self, spans: Spans) -> None: ...
