"""The CUDA arena: work in flight, tensors, zeros to read, prompts that are shared."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest
import torch
from cuda_arenas import (
    PAGE,
    since,
)
from fake_cuda_driver import FakeDriver, Misuse, out_of_memory_at
from page_ranges import page_ranges

from optim.errors import InputError
from optim.vattention.arena.arena import KVMemoryError, LiveTensorError
from optim.vattention.cuda.arena import CudaArena
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings

# --- work in flight ---


def test_nothing_is_unmapped_under_work_in_flight(driver: FakeDriver) -> None:
    arena = CudaArena(driver)
    reservation = arena.reserve(100 * PAGE)
    shared = arena.new_shared(2 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 3), (10, 5)))
    arena.fill(page_ranges(reservation, PAGE, (3, 2), (15, 2)))
    arena.map_shared(shared, np.array([0]), page_ranges(reservation, PAGE, (50, 2)))
    driver.launch()
    with driver.active(), pytest.raises(Misuse, match="work in flight"):
        driver.unmap(reservation.address, PAGE)
    for act, unmapped in (
        (lambda: arena.release(page_ranges(reservation, PAGE, (10, 5), (2, 1))), 2),
        (lambda: arena.unfill(page_ranges(reservation, PAGE, (3, 2), (15, 2))), 2),
        (lambda: arena.unmap_shared(shared, page_ranges(reservation, PAGE, (50, 2))), 1),
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
    arena.commit(page_ranges(reservation, PAGE, (0, 8)))
    arena.release(page_ranges(reservation, PAGE, (6, 2)))
    arena.fill(page_ranges(reservation, PAGE, (7, 1)))
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
    arena.commit(page_ranges(reservation, PAGE, (3, 1)))
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
    arena.commit(page_ranges(reservation, PAGE, (0, 1)))
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
    arena.commit(page_ranges(reservation, PAGE, (0, 3)))
    flat[: 3 * PAGE // 4] = 7
    before = driver.live_bytes
    calls = since(driver, lambda: arena.fill(page_ranges(reservation, PAGE, (0, 10), (50, 2))))
    assert calls == ["map"] * 9 + ["set_access"] * 2
    assert (driver.live_bytes, arena.committed_bytes) == (before, 3 * PAGE)
    assert arena.audit() == before, "however often it is mapped, it is one page"
    assert float(flat[: 10 * PAGE // 4].sum()) == 7 * 3 * PAGE // 4
    assert since(driver, lambda: arena.fill(page_ranges(reservation, PAGE, (2, 4)))) == []
    arena.unfill(page_ranges(reservation, PAGE, (0, 10)))
    assert float(flat[2 * PAGE // 4]) == 7, "what is committed stays"
    arena.commit(page_ranges(reservation, PAGE, (3, 7)))
    assert since(driver, lambda: arena.unfill(page_ranges(reservation, PAGE, (0, 10)))) == []
    arena.unfill(page_ranges(reservation, PAGE, (50, 2)))
    assert arena.audit() == 11 * PAGE


def test_one_prompt_is_mapped_at_several_addresses(driver: FakeDriver, arena: CudaArena) -> None:
    shared = arena.new_shared(4 * PAGE - 1)
    whole = shared.tensor(torch.uint8)
    assert not whole.any(), "zeroed"
    whole[:] = torch.arange(4).repeat_interleave(PAGE)
    del whole
    reservation = arena.reserve(100 * PAGE)
    flat = reservation.tensor(torch.uint8)
    places = page_ranges(reservation, PAGE, (12, 2), (10, 2), (50, 3))
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
    arena.commit(page_ranges(reservation, PAGE, (10, 1)))


def test_a_mapping_that_fails_midway_maps_nothing(driver: FakeDriver, arena: CudaArena) -> None:
    shared = arena.new_shared(4 * PAGE)
    reservation = arena.reserve(10 * PAGE)
    everything = dict(driver.mappings)
    driver.fails["map"] = out_of_memory_at(driver.count("map") + 2)
    with pytest.raises(KVMemoryError, match="for the mapping of keys and values"):
        arena.map_shared(shared, np.array([0]), page_ranges(reservation, PAGE, (0, 4)))
    assert driver.mappings == everything
    assert (arena.shared_bytes, shared.num_mappings) == (0, 0)
    shared.close()


def test_a_prompt_of_one_arena_outlives_it_in_another(driver: FakeDriver) -> None:
    first, second = CudaArena(driver), CudaArena(driver)
    shared = first.new_shared(2 * PAGE)
    shared.tensor(torch.uint8)[:] = 5
    reservation = second.reserve(10 * PAGE)
    second.map_shared(shared, np.array([PAGE]), page_ranges(reservation, PAGE, (4, 1)))
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
    monkeypatch.setattr("optim.vattention.new_arena.open_driver", lambda index: driver)
    chosen = Settings(budget_bytes=3 * PAGE, pool_bytes=PAGE, pages="huge")
    arena = new_arena(chosen, torch.device("cuda", 0))
    reservation = arena.reserve(4 * PAGE)
    with pytest.raises(KVMemoryError, match="budget"):
        arena.commit(page_ranges(reservation, PAGE, (0, 4)))
    arena.commit(page_ranges(reservation, PAGE, (0, 3)))
    arena.release(page_ranges(reservation, PAGE, (0, 3)))
    assert arena.pooled_bytes == 2 * PAGE
    arena.close()
    with pytest.raises(InputError, match="pages: a CUDA device has huge pages only"):
        new_arena(Settings(pages="base"), torch.device("cuda", 0))
