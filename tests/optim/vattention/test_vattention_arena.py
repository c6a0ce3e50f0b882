"""The Linux arena: what it says that it holds is what the kernel says, and nothing crashes."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from page_ranges import page_ranges

from optim.errors import InputError
from optim.vattention.arena.arena import KVMemoryError, LiveTensorError, Reservation, Spans
from optim.vattention.linux import arena as linux
from optim.vattention.linux import madvise as advice
from optim.vattention.linux import mappings
from optim.vattention.linux.arena import HUGE_PAGE_BYTES, LinuxArena
from optim.vattention.linux.host_memory import RESERVE_BYTES, HostMemory
from optim.vattention.linux.memory_file import MemoryFile
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings

PAGE = mmap.PAGESIZE


@pytest.fixture
def arena() -> Iterator[LinuxArena]:
    made = LinuxArena()
    yield made
    made.close()


def test_books_are_what_the_kernel_says(arena: LinuxArena) -> None:
    first, second = arena.reserve(100 * PAGE), arena.reserve(50 * PAGE)
    assert (arena.reserved_bytes, arena.committed_bytes, arena.audit()) == (150 * PAGE, 0, 0)
    arena.commit(page_ranges(first, PAGE, (0, 3), (10, 5)))
    arena.commit(page_ranges(second, PAGE, (49, 1)))
    assert arena.committed_bytes == arena.audit() == 9 * PAGE
    arena.release(page_ranges(first, PAGE, (10, 5)))
    assert arena.committed_bytes == arena.audit() == 4 * PAGE
    assert arena.peak_bytes == 9 * PAGE


def test_reading_commits_nothing_and_released_pages_are_zero(arena: LinuxArena) -> None:
    reservation = arena.reserve(64 * PAGE)
    flat = reservation.tensor(torch.float32)
    assert float(flat.sum()) == 0
    assert arena.audit() == 0
    arena.commit(page_ranges(reservation, PAGE, (0, 2)))
    flat[: 2 * PAGE // 4] = 7
    arena.release(page_ranges(reservation, PAGE, (0, 1)))
    assert float(flat[0]) == 0
    assert float(flat[PAGE // 4]) == 7


def test_base_pages_stay_small_and_huge_pages_are_huge() -> None:
    huge = LinuxArena(huge=True)
    assert huge.page_bytes == HUGE_PAGE_BYTES
    assert huge.is_coarse
    reservation = huge.reserve(3 * HUGE_PAGE_BYTES)
    assert reservation.address % HUGE_PAGE_BYTES == 0
    whole = Spans(np.array([reservation.address]), np.array([HUGE_PAGE_BYTES]))
    huge.commit(whole)
    assert huge.audit() == huge.committed_bytes == HUGE_PAGE_BYTES
    huge.release(whole)
    assert huge.audit() == 0
    huge.close()


def test_reserves_ten_times_the_memory_and_fails_cleanly_beyond_the_address_space(
    arena: LinuxArena,
) -> None:
    arena.reserve(10 * psutil.virtual_memory().total)
    with pytest.raises(KVMemoryError, match="no address space"):
        arena.reserve(1 << 47)
    assert arena.audit() == 0


def test_a_budget_refuses_and_leaves_everything_as_it_was() -> None:
    arena = LinuxArena(budget_bytes=4 * PAGE)
    reservation = arena.reserve(100 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 3)))
    with pytest.raises(KVMemoryError, match="do not fit the budget"):
        arena.commit(page_ranges(reservation, PAGE, (3, 2)))
    assert arena.committed_bytes == arena.audit() == 3 * PAGE
    arena.commit(page_ranges(reservation, PAGE, (3, 1)))
    with pytest.raises(KVMemoryError, match="no memory left for a shared prompt"):
        arena.new_shared(PAGE)
    arena.close()


def test_a_host_without_memory_refuses_instead_of_killing() -> None:
    left = RESERVE_BYTES + 10 * PAGE
    arena = LinuxArena(memory=HostMemory(look=lambda: left))
    reservation = arena.reserve(100 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 10)))
    with pytest.raises(KVMemoryError, match="the host has no"):
        arena.commit(page_ranges(reservation, PAGE, (10, 11)))
    assert arena.audit() == 10 * PAGE
    arena.close()


def test_a_kernel_that_refuses_midway_leaves_nothing_committed(
    arena: LinuxArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = arena.reserve(100 * PAGE)
    real = advice.advise_all

    def fails_after_the_first(wanted: Spans, kind: int) -> None:
        if kind != advice.POPULATE_WRITE:
            return real(wanted, kind)
        real(Spans(wanted.addresses_N[:1], wanted.bytes_N[:1]), kind)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(linux, "advise_all", fails_after_the_first)
    with pytest.raises(KVMemoryError, match="Cannot allocate memory"):
        arena.commit(page_ranges(reservation, PAGE, (0, 2), (50, 2)))
    assert arena.committed_bytes == arena.audit() == 0


def test_closing_under_a_live_tensor_raises_and_never_crashes() -> None:
    arena = LinuxArena()
    reservation = arena.reserve(8 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 1)))
    view = reservation.tensor(torch.float32)[3:9].view(2, 3)
    with pytest.raises(LiveTensorError, match="a tensor still looks"):
        arena.close()
    view[1, 2] = 5.0
    assert float(view.sum()) == 5.0
    del view
    arena.close()
    assert arena.committed_bytes == 0


def test_memory_goes_with_the_last_tensor_where_nobody_closes() -> None:
    arena = LinuxArena()
    reservation = arena.reserve(1 << 30)
    arena.commit(page_ranges(reservation, PAGE, (0, 1000)))
    address, end = reservation.address, reservation.address + reservation.num_bytes
    tensor = reservation.tensor(torch.uint8)
    del arena, reservation
    assert _mapped(address, end), "a tensor still looks at it"
    del tensor
    assert not _mapped(address, end)


def _mapped(start: int, end: int) -> bool:
    with open("/proc/self/maps") as lines:
        ranges = [[int(x, 16) for x in line.split()[0].split("-")] for line in lines]
    return any(first < end and last > start for first, last in ranges)


def test_committing_leaves_the_interpreter_free(arena: LinuxArena) -> None:
    reservation = arena.reserve(512 << 20)
    whole = Spans(np.array([reservation.address]), np.array([reservation.num_bytes]))
    thread = threading.Thread(target=arena.populate, args=(whole,))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
    thread.join()
    # Under a held lock this thread would get a turn or two, before the call and after it.
    assert turns > 1000


@pytest.mark.parametrize("done", [1, 4095, 4096, 4097, 8191, 8192, 20479])
def test_advice_that_was_served_in_part_goes_on_where_it_stopped(done: int) -> None:
    vector = np.array([[0, 4096], [10_000, 4096], [50_000, 12_288]], np.int64)
    rest = advice._rest(vector, done)
    bytes_of = [set(range(a, a + n)) for a, n in vector.tolist()]
    served = [b for a, n in vector.tolist() for b in range(a, a + n)][:done]
    left = [b for a, n in rest.tolist() for b in range(a, a + n)]
    assert sorted(served + left) == sorted(set().union(*bytes_of))


def test_advice_without_the_vector_call_does_the_same(
    arena: LinuxArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "_own_descriptor", lambda process: None)
    reservation = arena.reserve(100 * PAGE)
    arena.commit(page_ranges(reservation, PAGE, (0, 2), (7, 3)))
    assert arena.audit() == 5 * PAGE
    arena.release(page_ranges(reservation, PAGE, (0, 2), (7, 3)))
    assert arena.audit() == 0


def process_maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def num_mappings(reservation: Reservation) -> int:
    """Mappings that the range alone consists of; other threads make and drop theirs meanwhile."""
    first, end = reservation.address, reservation.address + reservation.num_bytes
    ranges = (line.split()[0].split("-") for line in process_maps())
    return sum(int(start, 16) < end and int(stop, 16) > first for start, stop in ranges)


def test_shared_memory_is_there_once_and_copied_on_write(arena: LinuxArena) -> None:
    shared = arena.new_shared(4 * PAGE)
    shared.tensor(torch.uint8)[:] = 3
    reservation = arena.reserve(100 * PAGE)
    places = page_ranges(reservation, PAGE, (10, 2), (50, 2))
    assert num_mappings(reservation) == 1
    assert arena.map_shared(shared, np.array([PAGE, PAGE]), places)
    flat = reservation.tensor(torch.uint8)
    assert set(flat[10 * PAGE : 12 * PAGE].tolist()) == {3}
    assert num_mappings(reservation) == 5
    assert (arena.shared_bytes, arena.committed_bytes, arena.audit()) == (4 * PAGE, 0, 4 * PAGE)
    flat[50 * PAGE] = 9
    assert int(flat[10 * PAGE]) == 3, "a write is the writer's own"
    assert arena.audit() == 5 * PAGE, "and costs a page"
    shared.close()
    assert int(flat[10 * PAGE]) == 3, "closed, but mapped"
    arena.unmap_shared(shared, places)
    assert int(flat[10 * PAGE]) == int(flat[50 * PAGE]) == 0
    assert (arena.shared_bytes, arena.audit()) == (0, 0)
    assert num_mappings(reservation) == 1, "nothing is split"
    inode = str(os.fstat(shared.file.descriptor).st_ino)
    assert all(line.split()[4] != inode for line in process_maps()), "nor is the memory mapped"
    arena.commit(page_ranges(reservation, PAGE, (10, 1)))


def test_shared_memory_goes_when_closed_and_not_mapped(arena: LinuxArena) -> None:
    shared, other = arena.new_shared(8 * PAGE), arena.new_shared(PAGE)
    for memory in (shared, other):
        memory.tensor(torch.uint8)[:] = 1
    file = shared.file
    assert file.committed_bytes(0, 9 * PAGE) == 9 * PAGE
    shared.close()
    assert file.committed_bytes(0, 9 * PAGE) == PAGE
    assert int(other.tensor(torch.uint8)[0]) == 1


def test_shared_memory_of_one_arena_can_be_mapped_in_another(arena: LinuxArena) -> None:
    shared = arena.new_shared(PAGE)
    shared.tensor(torch.uint8)[:] = 5
    other = LinuxArena()
    reservation = other.reserve(10 * PAGE)
    other.map_shared(shared, np.array([0]), page_ranges(reservation, PAGE, (4, 1)))
    shared.close()
    assert int(reservation.tensor(torch.uint8)[4 * PAGE]) == 5
    other.close()
    assert shared.file.committed_bytes(0, PAGE) == 0


def test_nothing_is_mapped_beyond_half_of_the_limit(
    arena: LinuxArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation, shared = arena.reserve(10 * PAGE), arena.new_shared(PAGE)
    places = page_ranges(reservation, PAGE, (0, 1), (5, 1))
    monkeypatch.setattr(mappings, "_counted", 0)  # counted anew
    monkeypatch.setattr(mappings, "limit", lambda: mappings.count() + 3)
    assert not arena.map_shared(shared, np.array([0, 0]), places)
    assert shared.num_mappings == 0
    monkeypatch.setattr(mappings, "limit", lambda: mappings.count() + 4)
    assert arena.map_shared(shared, np.array([0, 0]), places)
    arena.unmap_shared(shared, places)


def test_a_file_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = LinuxArena()

    def refuse(self: MemoryFile, num_bytes: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryFile, "commit", refuse)
    with pytest.raises(KVMemoryError, match="No space left"):
        arena.new_shared(PAGE)


def test_a_device_without_a_backend_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no memory backend for the device meta"):
        new_arena(Settings(), torch.device("meta"))
