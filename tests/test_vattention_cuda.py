"""The CUDA arena on a driver that checks every call: order, bounds, memory that goes back."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda_driver import FakeDriver, Misuse

from optim.errors import InputError
from optim.vattention.arena import KVMemoryError, LiveTensorError, Spans
from optim.vattention.backend import new_arena
from optim.vattention.cuda import CudaArena
from optim.vattention.cuda_driver import CudaError, DeviceMemoryError
from optim.vattention.settings import Settings

PAGE = 16384


def spans(reservation: Any, *ranges: tuple[int, int]) -> Spans:
    """Ranges of (first page, number of pages)."""
    return Spans(
        np.array([reservation.address + first * PAGE for first, _ in ranges], np.int64),
        np.array([count * PAGE for _, count in ranges], np.int64),
    )


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """After the test everything has to have gone back, whether somebody closed or not."""
    made = FakeDriver(PAGE)
    yield made
    gc.collect()
    assert made.is_empty()


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


# --- commit and release ---


def test_books_are_what_the_driver_says(driver: FakeDriver, arena: CudaArena) -> None:
    first, second = arena.reserve(100 * PAGE - 5), arena.reserve(50 * PAGE)
    assert (arena.reserved_bytes, arena.committed_bytes) == (150 * PAGE, 0)
    assert arena.audit() == arena.pooled_bytes == driver.live_bytes == PAGE, "the page of zeros"
    arena.commit(spans(first, (0, 3), (10, 5)))
    arena.commit(spans(second, (49, 1)))
    assert arena.committed_bytes == own_bytes(driver, arena) == 9 * PAGE
    arena.release(spans(first, (10, 5)))
    assert arena.committed_bytes == 4 * PAGE
    assert arena.audit() == arena.committed_bytes + arena.pooled_bytes == driver.live_bytes
    assert arena.peak_bytes == 9 * PAGE


def test_a_commit_maps_each_page_and_sets_access_once_per_range(
    driver: FakeDriver, arena: CudaArena
) -> None:
    reservation = arena.reserve(100 * PAGE)
    # Neighbours in any order are one range: pages 2 to 6, and 10 and 11.
    calls = since(driver, lambda: arena.commit(spans(reservation, (10, 2), (4, 3), (2, 2))))
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
    arena.commit(spans(reservation, (0, 2)))
    assert not flat[: 2 * PAGE // 4].any()
    flat[: 2 * PAGE // 4] = torch.nan
    arena.release(spans(reservation, (0, 2)))
    calls = since(driver, lambda: arena.commit(spans(reservation, (2, 2))))
    assert "create" not in calls, "the pool has them"
    assert not flat[2 * PAGE // 4 :].any()


def test_the_pool_has_a_bound_and_the_rest_goes_back(driver: FakeDriver) -> None:
    arena = CudaArena(driver, pool_bytes=3 * PAGE + 1)
    reservation = arena.reserve(20 * PAGE)
    arena.commit(spans(reservation, (0, 8)))
    arena.release(spans(reservation, (0, 2)))
    assert (driver.live_bytes, arena.pooled_bytes) == (9 * PAGE, 3 * PAGE)
    arena.release(spans(reservation, (2, 6)))
    assert driver.live_bytes == arena.pooled_bytes == arena.audit() == 4 * PAGE
    assert driver.count("release") == 5
    before = driver.count("create")
    arena.commit(spans(reservation, (0, 5)))
    assert driver.count("create") - before == 2
    assert arena.pooled_bytes == PAGE
    arena.close()


def test_without_a_pool_all_memory_goes_back_at_once(driver: FakeDriver) -> None:
    arena = CudaArena(driver, pool_bytes=0)
    reservation = arena.reserve(4 * PAGE)
    arena.commit(spans(reservation, (0, 4)))
    arena.release(spans(reservation, (0, 4)))
    assert driver.live_bytes == arena.pooled_bytes == PAGE
    arena.close()


def test_a_budget_refuses_and_leaves_everything_as_it_was(driver: FakeDriver) -> None:
    arena = CudaArena(driver, budget_bytes=4 * PAGE)
    reservation = arena.reserve(100 * PAGE)
    arena.commit(spans(reservation, (0, 3)))
    with pytest.raises(KVMemoryError, match="do not fit the budget"):
        arena.commit(spans(reservation, (3, 2)))
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
    arena.commit(spans(reservation, (1, 1)))
    with pytest.raises(Misuse, match="where something is mapped"):
        arena.commit(spans(reservation, (0, 2)))
    assert arena.committed_bytes == own_bytes(driver, arena) == PAGE
    driver.fails["set_access"] = lambda turn: CudaError("cuMemSetAccess", "CUDA_ERROR_UNKNOWN")
    with pytest.raises(CudaError, match="cuMemSetAccess failed: CUDA_ERROR_UNKNOWN"):
        arena.commit(spans(reservation, (2, 1)))
    driver.fails.clear()
    assert arena.committed_bytes == own_bytes(driver, arena) == PAGE


# --- memory that runs out ---


def out_of_memory_at(number: int) -> Callable[[int], Exception | None]:
    return lambda turn: (
        DeviceMemoryError("call", "CUDA_ERROR_OUT_OF_MEMORY") if turn == number else None
    )


@pytest.mark.parametrize("call", ["create", "map", "set_access", "zero"])
def test_a_commit_that_fails_anywhere_changes_nothing(
    driver: FakeDriver, arena: CudaArena, call: str
) -> None:
    reservation = arena.reserve(100 * PAGE)
    arena.commit(spans(reservation, (0, 5)))
    arena.release(spans(reservation, (3, 2)))
    everything = dict(driver.mappings)
    last = {"create": 2, "map": 4, "set_access": 1, "zero": 0}[call]
    driver.fails[call] = out_of_memory_at(driver.count(call) + last)
    arena._user = 0  # as in the background, where nothing is tried twice
    with pytest.raises(KVMemoryError, match=r"no memory left for \d+ bytes .*OUT_OF_MEMORY"):
        arena.populate(spans(reservation, (10, 3), (20, 2)))
    assert driver.mappings == everything
    assert arena.pooled_bytes == PAGE, "whoever lacks memory gets the pool's as well"
    assert driver.live_bytes == arena.audit() == 4 * PAGE
    arena.commit(spans(reservation, (10, 3), (20, 2)))
    assert driver.live_bytes == arena.audit() == 9 * PAGE


def test_torch_gives_its_cache_back_before_a_commit_fails(driver: FakeDriver) -> None:
    emptied = []

    def empty_cache() -> None:
        emptied.append(driver.live_bytes)
        driver.limit_bytes = 6 * PAGE

    arena = CudaArena(driver, empty_cache=empty_cache)
    reservation = arena.reserve(20 * PAGE)
    driver.limit_bytes = 3 * PAGE
    arena.commit(spans(reservation, (0, 5)))
    assert emptied == [3 * PAGE], "once, when the third page was missing"
    with pytest.raises(KVMemoryError):
        arena.commit(spans(reservation, (5, 1)))
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
            arena.populate(spans(reservation, (0, 5)))
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
    thread = threading.Thread(target=arena.populate, args=(spans(reservation, (0, 4)),))
    thread.start()
    thread.join()
    arena.book(4 * PAGE)
    assert own_bytes(driver, arena) == 4 * PAGE


# --- work in flight ---


def test_nothing_is_unmapped_under_work_in_flight(driver: FakeDriver) -> None:
    arena = CudaArena(driver)
    reservation = arena.reserve(100 * PAGE)
    shared = arena.new_shared(2 * PAGE)
    arena.commit(spans(reservation, (0, 3), (10, 5)))
    arena.fill(spans(reservation, (3, 2), (15, 2)))
    arena.map_shared(shared, np.array([0]), spans(reservation, (50, 2)))
    driver.launch()
    with driver.active(), pytest.raises(Misuse, match="work in flight"):
        driver.unmap(reservation.address, PAGE)
    for act, unmapped in (
        (lambda: arena.release(spans(reservation, (10, 5), (2, 1))), 2),
        (lambda: arena.unfill(spans(reservation, (3, 2), (15, 2))), 2),
        (lambda: arena.unmap_shared(shared, spans(reservation, (50, 2))), 1),
        (shared.close, 1),
        (arena.close, 1),
    ):
        driver.launch()
        calls = since(driver, act)
        assert calls.count("record") == calls.count("wait") == 1
        assert calls.count("unmap") == unmapped, "one call per range"
        assert calls.index("record") < calls.index("wait") < calls.index("unmap")


def test_memory_that_nobody_closed_waits_for_all_work(driver: FakeDriver) -> None:
    arena = CudaArena(driver)
    reservation = arena.reserve(8 * PAGE)
    arena.commit(spans(reservation, (0, 8)))
    arena.release(spans(reservation, (6, 2)))
    arena.fill(spans(reservation, (7, 1)))
    tensor = reservation.tensor(torch.float32)[3:9]
    del arena, reservation
    gc.collect()
    tensor[0] = 5
    assert float(tensor.sum()) == 5
    assert driver.live_bytes == 7 * PAGE, "the pool is gone, the zeros are still mapped"
    driver.launch()
    # From a thread that has neither the context nor the model's stream.
    box = [tensor]
    del tensor
    thread = threading.Thread(target=box.clear)
    calls = since(driver, lambda: (thread.start(), thread.join()))
    assert calls.index("synchronize") < calls.index("unmap")
    assert driver.is_empty()


# --- tensors ---


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8]
)
def test_a_tensor_lies_over_the_whole_range(
    driver: FakeDriver, arena: CudaArena, dtype: torch.dtype
) -> None:
    reservation = arena.reserve(1000 * PAGE)
    arena.commit(spans(reservation, (3, 1)))
    with torch.inference_mode():
        flat = reservation.tensor(dtype)
    assert flat.data_ptr() == reservation.address
    assert (flat.dtype, flat.dim(), flat.device) == (dtype, 1, driver.device)
    assert flat.numel() * dtype.itemsize == 1000 * PAGE
    size = PAGE // dtype.itemsize
    flat[3 * size : 4 * size] = 3
    again = reservation.tensor(dtype)[3 * size : 4 * size].float()
    assert again.sum() == 3 * size


def test_closing_under_a_live_view_raises_and_never_crashes(driver: FakeDriver) -> None:
    arena = CudaArena(driver)
    reservation = arena.reserve(8 * PAGE)
    arena.commit(spans(reservation, (0, 1)))
    view = reservation.tensor(torch.bfloat16)[3:9].view(2, 3)
    with pytest.raises(LiveTensorError, match="a tensor looks at them"):
        arena.close()
    view[1, 2] = 5.0
    assert float(view.sum()) == 5.0
    del view
    arena.close()
    assert (arena.committed_bytes, arena.reserved_bytes, arena.pooled_bytes) == (0, 0, 0)
    assert driver.is_empty()


# --- zeros to read, and sharing ---


def test_filling_maps_one_page_of_zeros_everywhere(driver: FakeDriver, arena: CudaArena) -> None:
    reservation = arena.reserve(100 * PAGE)
    flat = reservation.tensor(torch.float32)
    arena.commit(spans(reservation, (0, 3)))
    flat[: 3 * PAGE // 4] = 7
    before = driver.live_bytes
    calls = since(driver, lambda: arena.fill(spans(reservation, (0, 10), (50, 2))))
    assert calls == ["map"] * 9 + ["set_access"] * 2
    assert (driver.live_bytes, arena.committed_bytes) == (before, 3 * PAGE)
    assert arena.audit() == before, "however often it is mapped, it is one page"
    assert float(flat[: 10 * PAGE // 4].sum()) == 7 * 3 * PAGE // 4
    assert since(driver, lambda: arena.fill(spans(reservation, (2, 4)))) == []
    arena.unfill(spans(reservation, (0, 10)))
    assert float(flat[2 * PAGE // 4]) == 7, "what is committed stays"
    arena.commit(spans(reservation, (3, 7)))
    assert since(driver, lambda: arena.unfill(spans(reservation, (0, 10)))) == []
    arena.unfill(spans(reservation, (50, 2)))
    assert arena.audit() == 11 * PAGE


def test_one_prompt_is_mapped_at_several_addresses(driver: FakeDriver, arena: CudaArena) -> None:
    shared = arena.new_shared(4 * PAGE - 1)
    whole = shared.tensor(torch.uint8)
    assert not whole.any(), "zeroed"
    whole[:] = torch.arange(4).repeat_interleave(PAGE)
    del whole
    reservation = arena.reserve(100 * PAGE)
    flat = reservation.tensor(torch.uint8)
    places = spans(reservation, (12, 2), (10, 2), (50, 3))
    calls = since(driver, lambda: arena.map_shared(shared, np.array([2 * PAGE, 0, PAGE]), places))
    assert calls == ["map"] * 7 + ["set_access"] * 2
    assert [int(flat[i * PAGE]) for i in (10, 11, 12, 13, 50, 51, 52)] == [0, 1, 2, 3, 1, 2, 3]
    assert (arena.shared_bytes, arena.committed_bytes) == (4 * PAGE, 0)
    assert arena.audit() == driver.live_bytes == 4 * PAGE + arena.pooled_bytes
    shared.close()
    assert int(flat[52 * PAGE]) == 3, "closed, but mapped"
    arena.unmap_shared(shared, places)
    assert arena.shared_bytes == 0
    assert arena.audit() == driver.live_bytes == arena.pooled_bytes == PAGE
    arena.commit(spans(reservation, (10, 1)))


def test_a_mapping_that_fails_midway_maps_nothing(driver: FakeDriver, arena: CudaArena) -> None:
    shared = arena.new_shared(4 * PAGE)
    reservation = arena.reserve(10 * PAGE)
    everything = dict(driver.mappings)
    driver.fails["map"] = out_of_memory_at(driver.count("map") + 2)
    with pytest.raises(KVMemoryError, match="for the mapping of keys and values"):
        arena.map_shared(shared, np.array([0]), spans(reservation, (0, 4)))
    assert driver.mappings == everything
    assert (arena.shared_bytes, shared.num_mappings) == (0, 0)
    shared.close()


def test_a_prompt_of_one_arena_outlives_it_in_another(driver: FakeDriver) -> None:
    first, second = CudaArena(driver), CudaArena(driver)
    shared = first.new_shared(2 * PAGE)
    shared.tensor(torch.uint8)[:] = 5
    reservation = second.reserve(10 * PAGE)
    second.map_shared(shared, np.array([PAGE]), spans(reservation, (4, 1)))
    first.close()
    shared.close()
    del shared, first
    assert int(reservation.tensor(torch.uint8)[4 * PAGE]) == 5
    assert second.audit() == driver.live_bytes == 3 * PAGE
    second.close()
    assert driver.is_empty()


def test_a_tensor_of_a_prompt_keeps_it_when_it_is_closed(driver: FakeDriver) -> None:
    arena = CudaArena(driver)
    shared = arena.new_shared(PAGE)
    view = shared.tensor(torch.float32)[4:]
    shared.close()
    view[0] = 3
    assert driver.live_bytes == PAGE
    del view
    assert driver.is_empty()


def test_no_memory_for_a_prompt_leaves_nothing(driver: FakeDriver, arena: CudaArena) -> None:
    driver.limit_bytes = 3 * PAGE
    with pytest.raises(KVMemoryError, match="left for a shared prompt"):
        arena.new_shared(4 * PAGE)
    assert driver.is_empty()


# --- choosing it ---


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(InputError, match=r"pip install 'optrial\[gpu\]'"):
        new_arena(Settings(), torch.device("cuda", 99))


def test_settings_reach_the_arena(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setattr("optim.vattention.backend.open_driver", lambda index: driver)
    chosen = Settings(budget_bytes=3 * PAGE, pool_bytes=PAGE, pages="huge")
    arena = new_arena(chosen, torch.device("cuda", 0))
    reservation = arena.reserve(4 * PAGE)
    with pytest.raises(KVMemoryError, match="budget"):
        arena.commit(spans(reservation, (0, 4)))
    arena.commit(spans(reservation, (0, 3)))
    arena.release(spans(reservation, (0, 3)))
    assert arena.pooled_bytes == 2 * PAGE
    arena.close()
    with pytest.raises(InputError, match="pages: a CUDA device has huge pages only"):
        new_arena(Settings(pages="base"), torch.device("cuda", 0))
