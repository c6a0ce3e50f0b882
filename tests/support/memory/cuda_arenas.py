"""An arena over the emulated CUDA driver, and what tests of it have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_cuda_driver import FakeDriver, checked_driver

from optim.vattention.cuda.arena import CudaArena

PAGE = 16384


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with checked_driver(PAGE) as made:
        yield made


@pytest.fixture
def arena(driver: FakeDriver) -> Iterator[CudaArena]:
    made = CudaArena(driver)
    yield made
    made.close()


def since(driver: FakeDriver, act: Callable[[], object]) -> list[str]:
    """The names of the driver's calls that `act` makes."""
    before = len(driver.calls)
    act()
    return driver.names()[before:]


def own_bytes(driver: FakeDriver, arena: CudaArena) -> int:
    """The device's memory in use, the idle part of the arena's apart."""
    return driver.live_bytes - arena.pooled_bytes
