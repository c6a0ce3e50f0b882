"""All stores keep the promises that resume rests on, also where file systems refuse."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cluster.storage import local as local_store
from cluster.storage.open_store import (
    LocalStore,
    ObjectStore,
    StorageFull,
    StorageRefused,
    StorageUnreachable,
    open_store,
)
from cluster.telemetry.progress import Progress, ProgressFile
from optim.errors import InputError

Store = LocalStore | ObjectStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "results")
        return
    yield open_store("memory://bucket/results")
    fsspec.filesystem("memory").store.clear()


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cluster.storage.local.os.link", link)


def test_create_is_for_the_first_only(store: Store) -> None:
    assert store.create("a/b.bin", b"first")
    assert not store.create("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"
    assert store.create_is_exclusive


def test_replace_overwrites(store: Store) -> None:
    store.replace("x.json", b"1")
    store.replace("x.json", b"2")
    assert store.read("x.json") == b"2"


def test_list_is_recursive_sorted_and_relative(store: Store) -> None:
    assert store.list("nothing") == []
    for name in ("g/b/2", "g/a/1", "h/3"):
        store.create(name, b"")
    assert store.list("g") == ["g/a/1", "g/b/2"]
    assert store.exists("h/3")
    store.delete("h/3")
    assert not store.exists("h/3")
    store.delete_folder("g")
    assert store.list("g") == []


def test_entries_tell_size_and_change(store: Store) -> None:
    store.replace("g/x", b"one")
    [first] = store.entries("g")
    assert (first.name, first.num_bytes) == ("g/x", 3)
    assert store.entry("g/x") == first
    time.sleep(0.02)
    store.replace("g/x", b"two")
    assert store.entry("g/x") != first
    assert store.entry("g/none") is None


def test_the_end_of_a_file(store: Store) -> None:
    store.create("x", b"0123456789")
    store.create("empty", b"")
    assert store.read_end("x", 4) == b"6789"
    assert store.read_end("x", 40) == b"0123456789"
    assert store.read_end("empty", 8) == b""


def test_move(store: Store) -> None:
    store.create("g/x", b"1")
    assert store.move("g/x", "_quarantine/g/x-1")
    assert not store.move("g/x", "_quarantine/g/x-2")
    assert store.list("") == ["_quarantine/g/x-1"]


def test_a_stream_appears_when_it_is_whole(store: Store) -> None:
    with store.writing("g/large") as file:
        file.write(b"abc")
        assert not store.exists("g/large")
        file.write(b"def")
    assert store.read("g/large") == b"abcdef"

    def fail() -> None:
        with store.writing("g/other") as file:
            file.write(b"abc")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.list("") == ["g/large"]


def test_missing_file_is_said(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("none")


@pytest.mark.parametrize("has_links", [True, False])
def test_one_of_many_writers_wins_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        refuse_links(monkeypatch, errno.EPERM)
    stores = [LocalStore(tmp_path) for _ in range(8)]
    won: list[bytes] = []

    def write(store: LocalStore, mark: bytes) -> None:
        if store.create("part", mark * 100_000):
            won.append(mark)

    threads = [
        threading.Thread(target=write, args=(store, bytes([65 + i])))
        for i, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert stores[0].read("part") == won[0] * 100_000
    assert stores[0].list("_tmp") == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_links(monkeypatch, number)
    store = LocalStore(tmp_path)
    assert store.create("g/part", b"1")
    assert not store.create("g/part", b"2")
    assert store.create("g/other", b"3")
    assert "refuses hard links" in store.commit_protocol
    assert store.list("") == ["g/other", "g/part"]


def test_a_dead_writers_claim_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr(local_store, "_STALE_CLAIM_S", 0.3)
    store = LocalStore(tmp_path)
    died = False

    def die(source: object, target: object) -> None:
        nonlocal died
        if not died and str(target).endswith("part"):
            died = True
            raise SystemExit
        rename(source, target)  # type: ignore[arg-type]

    rename = os.rename
    monkeypatch.setattr("cluster.storage.local.os.rename", die)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(SystemExit):
        store.create("part", b"1")
    monkeypatch.undo()
    refuse_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr(local_store, "_STALE_CLAIM_S", 0.3)
    assert any("claim" in name for name in store.list("_tmp"))
    assert store.create("part", b"2")
    assert store.read("part") == b"2"
    assert not any("claim" in name for name in store.list("_tmp"))


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ETIMEDOUT])
def test_a_link_that_is_reported_as_failed_and_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As NFS does when the answer to a request was lost and the request is repeated."""
    link = os.link

    def lossy(source: str, target: str) -> None:
        link(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cluster.storage.local.os.link", lossy)
    store = LocalStore(tmp_path)
    assert store.create("part", b"mine")
    assert store.list("") == ["part"]


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def picky(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr("cluster.storage.local.os.fsync", picky)
    assert LocalStore(tmp_path).create("g/part", b"1")


def test_a_failed_write_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cluster.storage.local.os.fsync", full)
    store = LocalStore(tmp_path)
    for write in (store.create, store.replace):
        with pytest.raises(StorageFull, match="No space left") as raised:
            write("part", b"data")
        assert str(tmp_path) in str(raised.value)
        assert store.list("") == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_written_is_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    store = LocalStore(tmp_path / "out")
    for call in ("fsync", "link", "replace", "mkdir"):
        for write in (store.create, store.replace):
            if (call, write) in (("link", store.replace), ("replace", store.create)):
                continue
            with monkeypatch.context() as broken:
                broken.setattr(f"os.{call}", refuses)
                with pytest.raises(StorageRefused, match=os.strerror(number)) as raised:
                    write(f"folder-{call}/part", b"data")
            error = raised.value
            assert isinstance(error, InputError)
            assert (error.source, error.field) == (str(tmp_path / "out"), "output")
            assert error.mend is not None
            assert error.errno == number, "whoever can do without it catches it as an OSError"
            assert [name for name in store.list("") if "claim" not in name] == []


def test_a_folder_that_is_gone_is_of_the_output(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "disk" / "out")
    (tmp_path / "disk").write_text("what was mounted there is no folder any more")
    for write in (store.create, store.replace):
        with pytest.raises(StorageRefused, match=r"Not a directory|File exists"):
            write("part", b"data")
    with pytest.raises(StorageRefused), store.writing("part") as file:
        file.write(b"data")


def test_errors_of_whoever_writes_a_stream_stay_theirs(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(FileNotFoundError), store.writing("large"):
        (tmp_path / "source").read_bytes()
    assert store.list("") == []


def test_progress_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(2, 1, 1, 0, 5, 0, 0, 1.0)
    file = ProgressFile(LocalStore(tmp_path))
    with monkeypatch.context() as broken:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        broken.setattr("cluster.storage.local.os.fsync", full)
        file(progress, now=True)
    assert file.problem is not None
    assert "no room" in file.problem
    file(progress, now=True)
    assert file.problem is None
    assert (tmp_path / "progress.json").exists()


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.sweep(10) == 0
    (tmp_path / "_tmp").mkdir()
    for name, age_s in (("old", 7200), ("young", 60)):
        path = tmp_path / "_tmp" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    assert store.sweep(3600) == 1
    assert store.list("_tmp") == ["_tmp/young"]


def test_errors_cross_process_borders() -> None:
    errors = (
        StorageFull("/data", "No space"),
        StorageRefused("/data", "Read-only file system", errno.EROFS),
        StorageUnreachable("s3://b", "timed out"),
    )
    for error in errors:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - what Ray does
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="cannot open this kind of address"):
        open_store("nosuch://bucket/x")


def test_credentials_in_an_address_are_refused() -> None:
    with pytest.raises(InputError, match="do not belong") as raised:
        open_store("s3://AKIAKEY:secret@bucket/x")
    assert "secret" not in str(raised.value)
