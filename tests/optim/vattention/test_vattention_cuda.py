"""The CUDA arena on a driver that checks every call: order, bounds, memory that goes back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from cuda_arenas import (
    PAGE,
    own_bytes,
    since,
)
from fake_cuda_driver import FakeDriver, Misuse, out_of_memory_at
from page_ranges import page_ranges

from optim.vattention.arena.arena import KVMemoryError, Spans
from optim.vattention.cuda.arena import CudaArena
from optim.vattention.cuda.driver import CudaError

# --- commit and release ---


def test_books_are_what_the_driver_says(driver: FakeDriver, arena: CudaArena) -> None:
    first, second = arena.reserve(100 * PAGE - 5), arena.reserve(50 * PAGE)
    assert (arena.reserved_bytes, arena.committed_bytes) == (150 * PAGE, 0)
    assert arena.audit() == arena.pooled_bytes == driver.live_bytes == PAGE, "the page of zeros"
    arena.commit(page_ranges(first, PAGE, (0, 3), (10, 5)))
    arena.commit(page_ranges(second, PAGE, (49, 1)))
    assert arena.committed_bytes == own_bytes(driver, arena) == 9 * PAGE
    arena.release(page_ranges(first, PAGE, (10, 5)))
    assert arena.committed_bytes == 4 * PAGE
    assert arena.audit() == arena.committed_bytes + arena.pooled_bytes == driver.live_bytes
    assert arena.peak_bytes == 9 * PAGE


def test_a_commit_maps_each_page_and_sets_access_once_per_range(
    driver: FakeDriver, arena: CudaArena
) -> None:
    reservation = arena.reserve(100 * PAGE)
    # Neighbours in any order are one range: pages 2 to 6, and 10 and 11.
    calls = since(
        driver, lambda: arena.commit(page_ranges(reservation, PAGE, (10, 2), (4, 3), (2, 2)))
    )
    assert calls == ["create"] * 7 + ["map"] * 7 + ["set_access"] * 2 + ["zero"]
    start = reservation.address
    assert [a for name, a in driver.calls if name == "set_access"][-2:] == [
        (start + 2 * PAGE, 5 * PAGE),
        (start + 10 * PAGE, 2 * PAGE),
    ]


def test_neighbouring_reservations_share_no_call(driver: FakeDriver, arena: CudaArena) -> None:
    made = [arena.reserve(2 * PAGE) for _ in range(8)]
    whole = Spans(
        np.array([r.address for r in made], np.int64), np.full(8, 2 * PAGE, dtype=np.int64)
    )
    calls = since(driver, lambda: arena.commit(whole))
    assert calls.count("set_access") == 8
    arena.release(whole)


def test_new_pages_are_zero_whoever_had_them_before(driver: FakeDriver, arena: CudaArena) -> None:
    reservation = arena.reserve(4 * PAGE)
    flat = reservation.tensor(torch.float32)
    arena.commit(page_ranges(reservation, PAGE, (0, 2)))
    assert not flat[: 2 * PAGE // 4].any()
    flat[: 2 * PAGE // 4] = torch.nan
    arena.release(page_ranges(reservation, PAGE, (0, 2)))
    calls = since(driver, lambda: arena.commit(page_ranges(reservation, PAGE, (2, 2))))
    assert "create" not in calls, "the pool has them"
    assert not flat[2 * PAGE // 4 :].any()


def test_the_pool_has_a_bound_and_the_rest_goes_back(driver: FakeDriver) -> None:
    arena = CudaArena(driver, pool_bytes=3 * PAGE + 1)
    reservation = arena.reserve(20 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 8)))
    arena.release(page_ranges(reservation, PAGE, (0, 2)))
    assert (driver.live_bytes, arena.pooled_bytes) == (9 * PAGE, 3 * PAGE)
    arena.release(page_ranges(reservation, PAGE, (2, 6)))
    assert driver.live_bytes == arena.pooled_bytes == arena.audit() == 4 * PAGE
    assert driver.count("release") == 5
    before = driver.count("create")
    arena.commit(page_ranges(reservation, PAGE, (0, 5)))
    assert driver.count("create") - before == 2
    assert arena.pooled_bytes == PAGE
    arena.close()


def test_without_a_pool_all_memory_goes_back_at_once(driver: FakeDriver) -> None:
    arena = CudaArena(driver, pool_bytes=0)
    reservation = arena.reserve(4 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 4)))
    arena.release(page_ranges(reservation, PAGE, (0, 4)))
    assert driver.live_bytes == arena.pooled_bytes == PAGE
    arena.close()


def test_a_budget_refuses_and_leaves_everything_as_it_was(driver: FakeDriver) -> None:
    arena = CudaArena(driver, budget_bytes=4 * PAGE)
    reservation = arena.reserve(100 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 3)))
    with pytest.raises(KVMemoryError, match="do not fit the budget"):
        arena.commit(page_ranges(reservation, PAGE, (3, 2)))
    assert arena.committed_bytes == own_bytes(driver, arena) == 3 * PAGE
    with pytest.raises(KVMemoryError, match="no memory left for a shared prompt"):
        arena.new_shared(PAGE + 1)
    arena.new_shared(PAGE).close()
    arena.close()


def test_no_address_space_is_an_error_of_memory(arena: CudaArena) -> None:
    with pytest.raises(KVMemoryError, match="no address space for 140737488355328 bytes"):
        arena.reserve(1 << 47)
    assert arena.reserved_bytes == 0


def test_misuse_is_no_lack_of_memory(driver: FakeDriver, arena: CudaArena) -> None:
    reservation = arena.reserve(4 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (1, 1)))
    with pytest.raises(Misuse, match="where something is mapped"):
        arena.commit(page_ranges(reservation, PAGE, (0, 2)))
    assert arena.committed_bytes == own_bytes(driver, arena) == PAGE
    driver.fails["set_access"] = lambda turn: CudaError("cuMemSetAccess", "CUDA_ERROR_UNKNOWN")
    with pytest.raises(CudaError, match="cuMemSetAccess failed: CUDA_ERROR_UNKNOWN"):
        arena.commit(page_ranges(reservation, PAGE, (2, 1)))
    driver.fails.clear()
    assert arena.committed_bytes == own_bytes(driver, arena) == PAGE


# --- memory that runs out ---


@pytest.mark.parametrize("call", ["create", "map", "set_access", "zero"])
def test_a_commit_that_fails_anywhere_changes_nothing(
    driver: FakeDriver, arena: CudaArena, call: str
) -> None:
    reservation = arena.reserve(100 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 5)))
    arena.release(page_ranges(reservation, PAGE, (3, 2)))
    everything = dict(driver.mappings)
    last = {"create": 2, "map": 4, "set_access": 1, "zero": 0}[call]
    driver.fails[call] = out_of_memory_at(driver.count(call) + last)
    arena._user = 0  # as in the background, where nothing is tried twice
    with pytest.raises(KVMemoryError, match=r"no memory left for \d+ bytes .*OUT_OF_MEMORY"):
        arena.populate(page_ranges(reservation, PAGE, (10, 3), (20, 2)))
    assert driver.mappings == everything
    assert arena.pooled_bytes == PAGE, "whoever lacks memory gets the pool's as well"
    assert driver.live_bytes == arena.audit() == 4 * PAGE
    arena.commit(page_ranges(reservation, PAGE, (10, 3), (20, 2)))
    assert driver.live_bytes == arena.audit() == 9 * PAGE


def test_torch_gives_its_cache_back_before_a_commit_fails(driver: FakeDriver) -> None:
    emptied = []

    def empty_cache() -> None:
        emptied.append(driver.live_bytes)
        driver.limit_bytes = 6 * PAGE

    arena = CudaArena(driver, empty_cache=empty_cache)
    reservation = arena.reserve(20 * PAGE)
    driver.limit_bytes = 3 * PAGE
    arena.commit(page_ranges(reservation, PAGE, (0, 5)))
    assert emptied == [3 * PAGE], "once, when the third page was missing"
    with pytest.raises(KVMemoryError):
        arena.commit(page_ranges(reservation, PAGE, (5, 1)))
    assert emptied == [3 * PAGE, 6 * PAGE]
    assert driver.live_bytes == arena.audit() == 6 * PAGE
    driver.limit_bytes = 0
    with pytest.raises(KVMemoryError, match="left for a shared prompt"):
        arena.new_shared(PAGE)
    assert len(emptied) == 3
    arena.close()


def test_the_background_never_empties_torchs_cache(driver: FakeDriver) -> None:
    emptied: list[bool] = []
    arena = CudaArena(driver, empty_cache=lambda: emptied.append(True))
    reservation = arena.reserve(20 * PAGE)
    driver.limit_bytes = 3 * PAGE
    caught: list[Exception] = []

    def ahead() -> None:
        try:
            arena.populate(page_ranges(reservation, PAGE, (0, 5)))
        except KVMemoryError as error:
            caught.append(error)

    thread = threading.Thread(target=ahead)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert emptied == []
    assert driver.live_bytes == PAGE
    arena.close()


def test_a_device_without_a_page_for_zeros_reserves_nothing(driver: FakeDriver) -> None:
    driver.limit_bytes = 0
    arena = CudaArena(driver, empty_cache=lambda: None)
    with pytest.raises(KVMemoryError, match="no memory left for a page of zeros"):
        arena.reserve(PAGE)
    assert driver.is_empty()
    driver.limit_bytes = PAGE
    arena.reserve(PAGE)
    arena.close()


def test_the_background_thread_has_the_context(driver: FakeDriver, arena: CudaArena) -> None:
    reservation = arena.reserve(4 * PAGE)
    with pytest.raises(Misuse, match="no context"):
        driver.create(PAGE)
    thread = threading.Thread(target=arena.populate, args=(page_ranges(reservation, PAGE, (0, 4)),))
    thread.start()
    thread.join()
    arena.book(4 * PAGE)
    assert own_bytes(driver, arena) == 4 * PAGE
