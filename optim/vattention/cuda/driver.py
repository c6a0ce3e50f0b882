"""The virtual memory calls of the CUDA driver, as an interface and as the driver has them.

The interface is as narrow as the arena needs, so that a test can put a driver behind it that checks
every call. Addresses, handles and events are integers, sizes are bytes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from optim.errors import InputError


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; `name` is the driver's, as in CUDA_ERROR_INVALID_VALUE."""

    def __init__(self, call: str, name: str) -> None:
        self.call, self.name = call, name
        super().__init__(f"{call} failed: {name}")


class DeviceMemoryError(CudaError):
    """The device is out of memory."""


class Driver(Protocol):
    """One device. Every call but `active` has to be made within `active`, in the same thread."""

    device: torch.device
    """Where tensors over its addresses are."""
    page_bytes: int
    """The size and alignment that every mapping is a multiple of."""

    def active(self) -> AbstractContextManager[None]:
        """Make the device's context current in this thread, and what was current again after."""

    def reserve(self, num_bytes: int) -> int:
        """Addresses with nothing behind them; CudaError where there are none."""

    def free(self, address: int, num_bytes: int) -> None:
        """Give back all that one `reserve` gave; nothing may be mapped there."""

    def create(self, num_bytes: int) -> int:
        """A handle of physical memory of any content; DeviceMemoryError where there is none."""

    def release(self, handle: int) -> None:
        """Give a handle back; its memory goes when it is mapped nowhere."""

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        """Put a handle's memory at addresses where nothing is mapped; not accessible yet."""

    def unmap(self, address: int, num_bytes: int) -> None:
        """Undo every `map` in a range, which has to hold whole ones. No work may read there."""

    def set_access(self, address: int, num_bytes: int) -> None:
        """Let the device read and write a range that is mapped throughout."""

    def handle_at(self, address: int) -> int | None:
        """The handle that the driver says is mapped there."""

    def zero(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Zero ranges of (address, bytes), which are accessible, and wait until they are."""

    def record(self) -> int:
        """An event behind all work that this thread's current stream of the device has so far."""

    def wait(self, event: int) -> None:
        """Return when the work before an event of `record` is done; the event is used up."""

    def synchronize(self) -> None:
        """Return when all work of all streams of the device is done."""


class CudaDriver:
    """The real one, on the primary context, which is torch's too. `api`: cuda.bindings.driver.

    Raises InputError where the device has no virtual memory management.
    """

    def __init__(self, device_index: int, api: Any) -> None:
        self._api = api
        self.device = torch.device("cuda", device_index)
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", device_index)
        wanted = api.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        if not self._call("cuDeviceGetAttribute", wanted, device):
            raise InputError(
                f"the device {self.device} has no virtual memory management",
                field="optimizations.vattention",
            )
        # Kept until the process ends, as torch keeps it.
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        self._properties = api.CUmemAllocationProp()
        self._properties.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        location = api.CUmemLocation()
        location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = device_index
        self._properties.location = location
        self._access = api.CUmemAccessDesc()
        self._access.location = location
        self._access.flags = api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        smallest = api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        with self.active():
            self.page_bytes = int(
                self._call("cuMemGetAllocationGranularity", self._properties, smallest)
            )
            # Not blocking: it waits for no other stream, and the model's need not wait for it.
            flag = int(api.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self._stream = self._call("cuStreamCreate", flag)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver returns beside its status; the status as an exception."""
        status, *values = getattr(self._api, name)(*arguments)
        if status != self._api.CUresult.CUDA_SUCCESS:
            is_memory = status == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY
            kind = DeviceMemoryError if is_memory else CudaError
            raise kind(name, getattr(status, "name", str(status)))
        return values[0] if values else None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        # Pushed and popped each time: torch takes the context that it finds for the device that
        # was chosen, so one that was left current would change that in this thread.
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def reserve(self, num_bytes: int) -> int:
        return int(self._call("cuMemAddressReserve", num_bytes, 0, 0, 0))

    def free(self, address: int, num_bytes: int) -> None:
        self._call("cuMemAddressFree", address, num_bytes)

    def create(self, num_bytes: int) -> int:
        return int(self._call("cuMemCreate", num_bytes, self._properties, 0))

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", handle)

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._call("cuMemMap", address, num_bytes, 0, handle, 0)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._call("cuMemUnmap", address, num_bytes)

    def set_access(self, address: int, num_bytes: int) -> None:
        self._call("cuMemSetAccess", address, num_bytes, [self._access], 1)

    def handle_at(self, address: int) -> int | None:
        try:
            handle = int(self._call("cuMemRetainAllocationHandle", address))
        except CudaError as error:
            if error.name != "CUDA_ERROR_INVALID_VALUE":
                raise
            return None
        self._call("cuMemRelease", handle)
        return handle

    def zero(self, ranges: Sequence[tuple[int, int]]) -> None:
        for address, num_bytes in ranges:
            self._call("cuMemsetD8Async", address, 0, num_bytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def record(self) -> int:
        flag = int(self._api.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        event = self._call("cuEventCreate", flag)
        self._call("cuEventRecord", event, torch.cuda.current_stream(self.device).cuda_stream)
        return int(event)

    def wait(self, event: int) -> None:
        try:
            self._call("cuEventSynchronize", event)
        finally:
            self._call("cuEventDestroy", event)

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")


@functools.cache
def open_driver(device_index: int) -> CudaDriver:
    """The driver of a device, the same one each time, so that arenas can share memory.

    Raises InputError where the package that calls it is missing.
    """
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise InputError(
            "vattention on a CUDA device needs the package cuda-bindings",
            field="optimizations.vattention",
            mend="Install it with pip install 'optrial[gpu]'",
        ) from error
    return CudaDriver(device_index, api)
