"""`driver.lock`: one driver at a time, dead ones are no hindrance, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import pytest

from cluster.storage import driver_lock
from cluster.storage.driver_lock import (
    LOCK_FILE,
    DriverLock,
    LockedError,
    driving,
    read_holder,
    require_free,
)
from cluster.storage.holder import STALE_S, Holder
from cluster.storage.open_store import (
    LocalStore,
    ObjectStore,
    StorageFull,
    StorageUnreachable,
    open_store,
)
from optim.errors import InputError

Store = LocalStore | ObjectStore
REAL_TIME = time.time
HOLDS = """
import sys, time
from cluster.storage.driver_lock import driving
from cluster.storage.open_store import LocalStore
from cluster.ray_session import terminated_as_interrupted

with terminated_as_interrupted(), driving(LocalStore(sys.argv[1]), 'out'):
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "out")
        return
    yield open_store("memory://bucket/out")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(driver_lock, "_CONFIRM_S", 0.3)


def until(condition: object, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def put(store: Store, **changes: object) -> Holder:
    """The lock of another driver, as the changes say."""
    own = DriverLock(store, "out")._own
    now = {"beat_at": time.time(), "beat_s": time.monotonic()}
    holder = replace(own, **({"id": "other"} | now | changes))  # type: ignore[arg-type]
    store.replace(LOCK_FILE, json.dumps(asdict(holder)).encode())
    return holder


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_driver_is_told_who_runs_the_trial(store: Store) -> None:
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held
        with pytest.raises(LockedError) as caught, driving(store, "out"):
            pass
        text = str(caught.value)
        for part in ("out:", f"process {os.getpid()} on {socket.gethostname()}", "since 20",
                     "--join", "last heard from"):  # fmt: skip
            assert part in text
        with pytest.raises(LockedError):
            require_free(store, "out")
    assert not store.exists(LOCK_FILE)
    require_free(store, "out")


def test_the_lock_is_renewed_and_given_up(store: Store) -> None:
    with driving(store, "out"):
        first = read_holder(store)
        assert first is not None
        until(lambda: read_holder(store).beat_at > first.beat_at)  # type: ignore[union-attr]
    assert read_holder(store) is None
    time.sleep(0.3)
    assert read_holder(store) is None, "a beat after the end would bring it back"


def test_an_error_gives_it_up_too(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), driving(store, "out"):
        raise KeyboardInterrupt
    assert not store.exists(LOCK_FILE)


def test_the_lock_of_a_dead_process_here_is_taken_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_lock, "_CONFIRM_S", 600.0)
    put(store, pid=dead_pid())
    require_free(store, "out")
    said: list[str] = []
    with driving(store, "out", on_stage=said.append) as lock:
        assert lock is not None
        assert lock.is_held
    assert any("taking over" in line for line in said)
    assert store.list("") == []


def test_a_pid_that_is_another_process_now_is_dead(store: Store) -> None:
    put(store, start_ticks=1)
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held


def test_pids_of_another_container_say_nothing(store: Store) -> None:
    put(store, pid=dead_pid(), pid_namespace="pid:[1]")
    with pytest.raises(LockedError), driving(store, "out"):
        pass


def test_another_machine_is_dead_when_it_was_silent_for_long(store: Store) -> None:
    put(store, host="elsewhere", boot="another")
    with pytest.raises(LockedError), driving(store, "out"):
        pass
    silent = put(store, host="elsewhere", boot="another")
    silent = replace(silent, beat_at=time.time() - STALE_S - 1)
    store.replace(LOCK_FILE, json.dumps(asdict(silent)).encode())
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held


def test_a_machine_whose_clock_is_slow_is_not_taken_for_dead(store: Store) -> None:
    """Its beats are old by this clock, but they go on."""
    slow = replace(put(store, host="elsewhere", boot="another"), beat_at=time.time() - 2 * STALE_S)
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.05):
            count += 1
            beaten = replace(slow, beat_at=slow.beat_at + count)
            store.replace(LOCK_FILE, json.dumps(asdict(beaten)).encode())

    thread = threading.Thread(target=beat)
    store.replace(LOCK_FILE, json.dumps(asdict(slow)).encode())
    thread.start()
    try:
        said: list[str] = []
        lock = DriverLock(store, "out")
        monkey = lock._is_dead(slow, said.append)
        assert not monkey
        assert "waiting" in said[0]
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("set_by_s", [-7200.0, 7200.0])
def test_a_clock_that_is_set_ends_no_driver_of_this_machine(
    store: Store, set_by_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it bring one back: what counts is the time since the machine's boot."""
    with driving(store, "out"):
        monkeypatch.setattr(time, "time", lambda: set_by_s + REAL_TIME())
        with pytest.raises(LockedError) as caught, driving(store, "out"):
            pass
        assert "last heard from 0 s ago" in str(caught.value)
        with pytest.raises(LockedError):
            require_free(store, "out")
    put(store, beat_s=time.monotonic() - STALE_S - 1)
    require_free(store, "out")
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held


def test_a_process_is_told_by_its_ticks_since_the_boot(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = read_holder(LocalStore(tmp_path))
        assert holder is not None
        assert not holder.is_gone
        assert replace(holder, start_ticks=holder.start_ticks + 1).is_gone
        assert not replace(holder, start_ticks=holder.start_ticks + 1, boot="another").is_gone
    finally:
        process.kill()
        process.communicate()
    assert holder.is_gone


def test_a_lock_of_another_version_is_read(store: Store) -> None:
    """What it says beside is left; what an older one does not say is not known."""
    said = asdict(put(store)) | {"process_started": 12345.0}
    for name in ("boot", "start_ticks", "beat_s"):
        del said[name]
    store.replace(LOCK_FILE, json.dumps(said).encode())
    with pytest.raises(LockedError), driving(store, "out"):
        pass


def test_of_many_that_take_over_one_does(store: Store) -> None:
    """Whoever was quicker holds it, the others are told so."""
    for _ in range(5):
        put(store, pid=dead_pid())
        locks = [DriverLock(store, "out") for _ in range(6)]
        refused: list[LockedError] = []
        start = threading.Barrier(len(locks))

        def take(lock: DriverLock, start: threading.Barrier = start,
                 refused: list[LockedError] = refused) -> None:  # fmt: skip
            start.wait()
            try:
                lock.acquire()
            except LockedError as error:
                refused.append(error)

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = [lock for lock in locks if lock.is_held]
        assert len(holders) == 1
        assert len(refused) == 5
        for lock in locks:
            lock.release()
        assert store.list("") == []


def test_a_take_over_that_was_cut_off_is_no_hindrance(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = put(store, pid=dead_pid())
    store.create(f"{LOCK_FILE}.{holder.id}", repr(time.time() - 100).encode())
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held


def test_one_that_joins_takes_the_lock_when_the_other_ends(store: Store) -> None:
    said: list[str] = []
    with driving(store, "out") as first:
        assert first is not None
        with driving(store, "out", joins=True, on_stage=said.append) as second:
            assert second is not None
            assert not second.is_held
            assert "running along with" in said[0]
            first.release()
            until(lambda: second.is_held)
            with pytest.raises(LockedError):
                require_free(store, "out")
    assert not store.exists(LOCK_FILE)


def test_whoever_lost_the_lock_leaves_it_alone(store: Store) -> None:
    """A process that was stopped for a minute finds another one in its place."""
    with driving(store, "out") as lock:
        assert lock is not None
        other = put(store)
        until(lambda: not lock.is_held)
    found = read_holder(store)
    assert found is not None
    assert found.id == other.id


def test_a_file_that_is_no_lock_is_replaced(store: Store) -> None:
    store.replace(LOCK_FILE, b"{half")
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held


def test_where_nothing_can_be_written_there_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)

    def refuses(name: str, data: bytes) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "create", refuses)
    with driving(store, "out") as lock:
        assert lock is None


def test_a_bucket_that_is_only_read_needs_no_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(store, LocalStore):
        pytest.skip("object stores alone say it by InputError")

    def denies(*_: object, **__: object) -> None:
        raise PermissionError(13, "AccessDenied")

    monkeypatch.setattr(ObjectStore, "_put", denies)
    with driving(store, "out") as lock:
        assert lock is None


@pytest.mark.parametrize("error", [StorageUnreachable("s3://x", "no route"),
                                   StorageFull("s3://x", "QuotaExceeded")])  # fmt: skip
def test_where_writing_fails_for_now_the_run_is_refused(
    store: Store, error: InputError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be run would be lost."""

    def fails(*_: object) -> bool:
        raise error

    monkeypatch.setattr(store, "create", fails)
    with pytest.raises(type(error)), driving(store, "out"):
        pass


def test_a_store_that_does_not_answer_ends_no_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise StorageUnreachable("s3://x", "no route")

    with driving(store, "out") as lock:
        assert lock is not None
        with monkeypatch.context() as patch:
            patch.setattr(store, "exists", fails)
            assert not lock.has_company()
        monkeypatch.setattr(store, "read", fails)
    monkeypatch.undo()
    assert store.exists(LOCK_FILE), "it could not be given up, which is no error either"


def ahead(store: Store, **changes: object) -> Holder:
    """The lock of a driver whose clock is an hour ahead of this one."""
    holder = replace(put(store, **changes), beat_at=time.time() + 3600)
    store.replace(LOCK_FILE, json.dumps(asdict(holder)).encode())
    return holder


@pytest.mark.parametrize("changes", [{"host": "elsewhere", "boot": "another"}, {"boot": "another"}])
def test_a_dead_driver_whose_clock_was_ahead_is_no_hindrance(
    store: Store, changes: dict[str, object]
) -> None:
    ahead(store, **changes)
    require_free(store, "out")
    said: list[str] = []
    with driving(store, "out", on_stage=said.append) as lock:
        assert lock is not None
        assert lock.is_held
    assert any("waiting" in line for line in said)


@pytest.mark.parametrize("changes", [{"host": "elsewhere", "boot": "another"}, {"boot": "another"}])
def test_a_living_driver_whose_clock_is_ahead_keeps_the_lock(
    store: Store, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = ahead(store, **changes)
    lock = DriverLock(store, "out")

    def beats(_: float) -> bool:
        beaten = replace(holder, beat_at=holder.beat_at + 1)
        store.replace(LOCK_FILE, json.dumps(asdict(beaten)).encode())
        return False

    monkeypatch.setattr(lock._ended, "wait", beats)
    assert not lock._is_dead(holder, lambda stage: None)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped(tmp_path: Path, stop: signal.Signals) -> None:
    """Killed, it leaves a lock that is nobody's; asked to end, it leaves none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    store = LocalStore(tmp_path)
    with pytest.raises(LockedError, match=f"process {process.pid} on"):
        require_free(store, "out")
    asked = time.monotonic()
    process.send_signal(stop)
    process.communicate(timeout=60)
    if stop != signal.SIGKILL:
        assert time.monotonic() - asked < 30
    assert store.exists(LOCK_FILE) == (stop == signal.SIGKILL)
    require_free(store, "out")
    with driving(store, "out") as lock:
        assert lock is not None
        assert lock.is_held
