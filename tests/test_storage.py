"""Both stores keep the promises that resume rests on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cluster.storage import LocalStore, ObjectStore, open_store
from optim.errors import InputError

Store = LocalStore | ObjectStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "results")
        return
    yield open_store("memory://bucket/results")
    fsspec.filesystem("memory").store.clear()


def test_create_is_for_the_first_only(store: Store) -> None:
    assert store.create("a/b.bin", b"first")
    assert not store.create("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"


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


def test_missing_file_is_said(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("none")


def test_one_of_many_writers_wins_and_nothing_is_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    won: list[bytes] = []

    def write(mark: bytes) -> None:
        if store.create("part", mark * 100_000):
            won.append(mark)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("part") == won[0] * 100_000
    assert store.list("_tmp") == []


def test_failed_write_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.storage.os.fsync", full)
    store = LocalStore(tmp_path)
    with pytest.raises(OSError, match="No space"):
        store.create("part", b"data")
    assert store.list("") == []


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="cannot open this kind of address"):
        open_store("nosuch://bucket/x")
