"""A CUDA driver in the host's memory, which checks every call as strictly as the real one.

Addresses are a mapping that nobody may touch, a handle is a part of one file in memory, and mapping
is mapping: one handle at two addresses is one memory, and a read where nothing is mapped is a
segmentation fault. What it is told that breaks a rule is a `Misuse`.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from optim.vattention.cuda.driver import CudaError, DeviceMemoryError

GARBAGE = b"\xff"  # NaN in every floating type
ADDRESS_BYTES = 1 << 40
_MAP_NORESERVE = 0x4000
_FIXED, _NONE, _READ_WRITE = 0x10, 0, mmap.PROT_READ | mmap.PROT_WRITE
_PUNCH_HOLE = 0x02 | 0x01
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Misuse(AssertionError):
    """A call that the real driver would refuse, or punish."""


@dataclass
class _Handle:
    offset: int
    num_bytes: int
    mappings: int = 0
    is_released: bool = False


@dataclass
class _Mapping:
    num_bytes: int
    handle: int
    readable_since: int | None = None
    """How many launches there had been when access was set; None before."""


class FakeDriver:
    """`Driver` on the CPU. `limit_bytes` is the device's memory, all calls are in `calls`."""

    device = torch.device("cpu")

    def __init__(self, page_bytes: int = 16384, limit_bytes: int | None = None) -> None:
        self.page_bytes = page_bytes
        self.limit_bytes = limit_bytes
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self._counts: Counter[str] = Counter()
        self.ranges: dict[int, int] = {}  # address -> bytes
        self.handles: dict[int, _Handle] = {}
        self.mappings: dict[int, _Mapping] = {}  # by address
        self.fails: dict[str, Callable[[int], Exception | None]] = {}
        """By call: what its n-th call, counted from 0, raises."""
        self._events: dict[int, int] = {}
        self._launched = self._finished = 0
        self._next = 1000  # handles and events, which are never used twice
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._file = os.memfd_create("device", os.MFD_CLOEXEC)
        self._end = 0
        weakref.finalize(self, os.close, self._file)
        # All addresses, given out one behind the other, so that ranges are neighbours, and once.
        start = self._mmap(None, ADDRESS_BYTES, -1, 0)
        weakref.finalize(self, _libc.munmap, start, ADDRESS_BYTES).atexit = False
        self._next_address = -(-start // page_bytes) * page_bytes
        self._last_address = start + ADDRESS_BYTES

    # --- what a test asks and does -------------------------------------------------------------

    @property
    def live_bytes(self) -> int:
        """Physical memory in use."""
        return sum(handle.num_bytes for handle in self.handles.values())

    def count(self, name: str) -> int:
        return self._counts[name]

    def names(self) -> list[str]:
        return [call for call, _ in self.calls]

    def launch(self) -> None:
        """Work begins that may read everything that is accessible now, and goes on."""
        self._launched += 1

    def content(self, handle: int) -> bytes:
        held = self.handles[handle]
        return os.pread(self._file, held.num_bytes, held.offset)

    def is_empty(self) -> bool:
        """Whether everything was given back."""
        return not (self.ranges or self.handles or self.mappings or self._events)

    # --- Driver --------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        try:
            yield
        finally:
            self._thread.depth -= 1

    def reserve(self, num_bytes: int) -> int:
        self._enter("reserve", num_bytes)
        self._check_whole(num_bytes)
        address = self._next_address
        if address + num_bytes > self._last_address:
            raise CudaError("reserve", "CUDA_ERROR_INVALID_VALUE")
        self._next_address += num_bytes
        self.ranges[address] = num_bytes
        return address

    def free(self, address: int, num_bytes: int) -> None:
        self._enter("free", address, num_bytes)
        if self.ranges.get(address) != num_bytes:
            raise Misuse("freed a range that was not reserved, or a part of one")
        if any(address <= place < address + num_bytes for place in self.mappings):
            raise Misuse("freed a range where something is mapped")
        del self.ranges[address]

    def create(self, num_bytes: int) -> int:
        self._enter("create", num_bytes)
        self._check_whole(num_bytes)
        if self.limit_bytes is not None and self.live_bytes + num_bytes > self.limit_bytes:
            raise DeviceMemoryError("create", "CUDA_ERROR_OUT_OF_MEMORY")
        handle = self._number()
        self.handles[handle] = _Handle(self._end, num_bytes)
        os.pwrite(self._file, GARBAGE * num_bytes, self._end)
        self._end += num_bytes
        return handle

    def release(self, handle: int) -> None:
        self._enter("release", handle)
        if handle not in self.handles or self.handles[handle].is_released:
            raise Misuse("released a handle twice")
        self.handles[handle].is_released = True
        self._drop_unused(handle)

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._enter("map", address, num_bytes, handle)
        self._check_range(address, num_bytes)
        if handle not in self.handles or self.handles[handle].is_released:
            raise Misuse("mapped a handle that was released")
        held = self.handles[handle]
        if num_bytes != held.num_bytes:
            raise Misuse("mapped a part of a handle, or more than it")
        if self._mapped_in(address, num_bytes):
            raise Misuse("mapped where something is mapped")
        self._mmap(address, num_bytes, self._file, held.offset)
        held.mappings += 1
        self.mappings[address] = _Mapping(num_bytes, handle)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._enter("unmap", address, num_bytes)
        self._check_range(address, num_bytes)
        for place in self._mapped_throughout(address, num_bytes):
            mapping = self.mappings[place]
            since = mapping.readable_since
            if since is not None and self._launched > max(since, self._finished):
                raise Misuse("unmapped what work in flight may read")
            del self.mappings[place]
            self.handles[mapping.handle].mappings -= 1
            self._drop_unused(mapping.handle)
        self._mmap(address, num_bytes, -1, 0)

    def set_access(self, address: int, num_bytes: int) -> None:
        self._enter("set_access", address, num_bytes)
        self._check_range(address, num_bytes)
        for place in self._mapped_throughout(address, num_bytes):
            self.mappings[place].readable_since = self._launched
        if _libc.mprotect(address, num_bytes, _READ_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def handle_at(self, address: int) -> int | None:
        self._enter("handle_at", address)
        mapping = self.mappings.get(address)
        return None if mapping is None else mapping.handle

    def zero(self, ranges: Sequence[tuple[int, int]]) -> None:
        try:
            self._enter("zero", *(number for pair in ranges for number in pair))
        except CudaError:
            self.launch()  # what was asked for before the failure goes on
            raise
        for address, num_bytes in ranges:
            self._check_range(address, num_bytes)
            for place in self._mapped_throughout(address, num_bytes):
                if self.mappings[place].readable_since is None:
                    raise Misuse("wrote where access was not set")
            ctypes.memset(address, 0, num_bytes)

    def record(self) -> int:
        self._enter("record")
        event = self._number()
        self._events[event] = self._launched
        return event

    def wait(self, event: int) -> None:
        self._enter("wait", event)
        self._finished = max(self._finished, self._events.pop(event))

    def synchronize(self) -> None:
        self._enter("synchronize")
        self._finished = self._launched

    # --- rules ---------------------------------------------------------------------------------

    def _enter(self, name: str, *arguments: int) -> None:
        if not getattr(self._thread, "depth", 0):
            raise Misuse(f"{name}: no context is current in this thread")
        with self._lock:
            turn = self._counts[name]
            self._counts[name] += 1
            self.calls.append((name, arguments))
        if name in self.fails and (error := self.fails[name](turn)) is not None:
            raise error

    def _number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _check_whole(self, *numbers: int) -> None:
        if any(number % self.page_bytes or number <= 0 for number in numbers):
            raise Misuse("not a multiple of the granularity")

    def _check_range(self, address: int, num_bytes: int) -> None:
        self._check_whole(address, num_bytes)
        if not any(
            start <= address and address + num_bytes <= start + size
            for start, size in self.ranges.items()
        ):
            raise Misuse("not within one reserved range")

    def _mapped_in(self, address: int, num_bytes: int) -> list[int]:
        pages = range(address, address + num_bytes, self.page_bytes)
        return [page for page in pages if page in self.mappings]

    def _mapped_throughout(self, address: int, num_bytes: int) -> list[int]:
        """The mappings that make up a range, which has to hold whole ones and nothing else."""
        found = self._mapped_in(address, num_bytes)
        if sum(self.mappings[place].num_bytes for place in found) != num_bytes:
            raise Misuse("a range that is not mapped throughout")
        return found

    def _drop_unused(self, handle: int) -> None:
        held = self.handles[handle]
        if held.is_released and not held.mappings:
            _libc.fallocate(self._file, _PUNCH_HOLE, held.offset, held.num_bytes)
            del self.handles[handle]

    def _mmap(self, address: int | None, num_bytes: int, file: int, offset: int) -> int:
        kind = mmap.MAP_SHARED if file >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        flags = kind | _MAP_NORESERVE | (0 if address is None else _FIXED)
        made = _libc.mmap(address, num_bytes, _NONE, flags, file, offset)
        if made == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(made)


@contextmanager
def checked_driver(page_bytes: int) -> Iterator[FakeDriver]:
    """A driver to which everything has to have gone back, whether somebody closed or not."""
    made = FakeDriver(page_bytes)
    yield made
    gc.collect()
    assert made.is_empty()


def out_of_memory_at(number: int) -> Callable[[int], Exception | None]:
    return lambda turn: (
        DeviceMemoryError("call", "CUDA_ERROR_OUT_OF_MEMORY") if turn == number else None
    )
