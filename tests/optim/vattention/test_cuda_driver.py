"""The calls of the real driver's interface, against bindings that only note them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from optim.errors import InputError
from optim.vattention.cuda.driver import CudaDriver, CudaError, DeviceMemoryError


class Bindings:
    """cuda.bindings.driver: each call is noted and answered from `answers`, else by success."""

    def __init__(self, **answers: tuple[Any, ...]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, tuple[Any, ...]] = {
            "cuDeviceGetAttribute": (0, 1),
            "cuMemGetAllocationGranularity": (0, 2 << 20),
            "cuMemAddressReserve": (0, 1 << 30),
            "cuMemCreate": (0, 77),
            "cuMemRetainAllocationHandle": (0, 77),
            "cuStreamCreate": (0, 5),
            "cuEventCreate": (0, 6),
        } | answers

    def __getattr__(self, name: str) -> Any:
        if name == "CUresult":
            return SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_OUT_OF_MEMORY=2)
        if name.startswith("CU"):
            return Constants()

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.answers.get(name, (0, 0))

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


class Constants(SimpleNamespace):
    """Any enumeration or structure."""

    def __getattr__(self, name: str) -> int:
        return 1

    def __call__(self) -> Constants:
        return Constants()


class Status(int):
    """A status with a name, as the binding's enumeration has it."""

    name = "CUDA_ERROR_INVALID_VALUE"


def test_the_drivers_status_is_an_exception_with_its_name() -> None:
    driver = CudaDriver(0, Bindings(cuMemMap=(Status(1),), cuMemCreate=(2, 0)))
    with pytest.raises(CudaError, match="cuMemMap failed: CUDA_ERROR_INVALID_VALUE"):
        driver.map(1 << 30, 2 << 20, 77)
    with pytest.raises(DeviceMemoryError, match="cuMemCreate"):
        driver.create(2 << 20)


def test_the_context_is_popped_whatever_happens_within() -> None:
    api = Bindings(cuMemUnmap=(Status(1),))
    driver = CudaDriver(0, api)
    with pytest.raises(CudaError), driver.active():
        driver.unmap(1 << 30, 2 << 20)
    assert api.names.count("cuCtxPushCurrent") == api.names.count("cuCtxPopCurrent") == 2
    assert api.names[-1] == "cuCtxPopCurrent"


def test_zeroing_waits_for_its_own_stream_and_events_are_used_up() -> None:
    api = Bindings()
    driver = CudaDriver(0, api)
    api.calls.clear()
    driver.zero([(1 << 30, 4096), (1 << 31, 8192)])
    driver.wait(6)
    assert api.calls == [
        ("cuMemsetD8Async", 1 << 30, 0, 4096, 5),
        ("cuMemsetD8Async", 1 << 31, 0, 8192, 5),
        ("cuStreamSynchronize", 5),
        ("cuEventSynchronize", 6),
        ("cuEventDestroy", 6),
    ]


def test_a_handle_that_was_looked_at_is_let_go_again() -> None:
    api = Bindings()
    driver = CudaDriver(0, api)
    assert driver.handle_at(1 << 30) == 77
    assert api.calls[-1] == ("cuMemRelease", 77)
    api.answers["cuMemRetainAllocationHandle"] = (Status(1), 0)
    assert driver.handle_at(1 << 30) is None
    assert api.names[-1] == "cuMemRetainAllocationHandle"


def test_a_device_without_virtual_memory_is_refused() -> None:
    with pytest.raises(InputError, match="cuda:3 has no virtual memory management"):
        CudaDriver(3, Bindings(cuDeviceGetAttribute=(0, 0)))
