"""Two writers of one name on a store that tells both of them that theirs is the file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from test_identity import wanted, write_prompts
from trial_results import make_plan

import optim.model
from cluster.results.files import PROMPTS_FILE
from cluster.results.results import MANIFEST, Results
from cluster.storage import creation
from cluster.storage.creation import create_alone
from cluster.storage.driver_lock import LOCK_FILE, DriverLock, LockedError
from cluster.storage.open_store import ObjectStore
from jobs.trial.manifest import write_manifest
from optim.errors import InputError

Other = Callable[[Callable[[], None]], None]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[Results]:
    """In a bucket that does not heed conditions."""
    monkeypatch.setattr(ObjectStore, "create_is_exclusive", False)
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    yield Results("memory://bucket/out")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Other:
    """Lets another writer, who has looked before, put theirs right after this one's."""

    def at_once(puts: Callable[[], None]) -> None:
        monkeypatch.setattr(creation, "time", SimpleNamespace(sleep=lambda _: puts()))

    return at_once


def test_whoever_finds_anothers_file_has_lost(results: Results, other: Other) -> None:
    other(lambda: None)
    assert create_alone(results.store, "alone", b"mine")
    assert not create_alone(results.store, "alone", b"mine"), "it was there already"
    other(lambda: results.store.replace("name", b"theirs"))
    assert not create_alone(results.store, "name", b"mine")
    assert results.store.read("name") == b"theirs"
    other(lambda: results.store.delete("gone"))
    assert not create_alone(results.store, "gone", b"mine")


def test_of_two_drivers_one_has_the_lock(results: Results, other: Other) -> None:
    def puts() -> None:
        theirs = replace(DriverLock(results.store, "out")._own, id="theirs")
        theirs = replace(theirs, beat_at=time.time(), beat_s=time.monotonic())
        results.store.replace(LOCK_FILE, json.dumps(asdict(theirs)).encode())

    other(puts)
    lock = DriverLock(results.store, "out")
    with pytest.raises(LockedError):
        lock.acquire()
    assert not lock.is_held


def test_of_two_specs_one_begins(results: Results, other: Other, tmp_path: Path) -> None:
    mine = wanted(write_prompts(tmp_path / "qa.jsonl", 12))
    theirs = wanted(tmp_path / "qa.jsonl", seeds=3)

    def puts() -> None:
        manifest = {"plan": theirs.plan.model_dump(mode="json")}
        results.store.replace(MANIFEST, json.dumps(manifest).encode())

    other(puts)
    with pytest.raises(InputError, match="another driver has just begun"):
        write_manifest(results, mine, [])
    assert results.plan() == theirs.plan
    before = results.store.read(MANIFEST)
    with pytest.raises(InputError, match="another driver has just begun"):
        write_manifest(results, mine, [])
    assert results.store.read(MANIFEST) == before
    assert results.store.exists(PROMPTS_FILE)


def test_the_prompts_are_those_of_whoever_was_first(
    results: Results, other: Other, tmp_path: Path
) -> None:
    """Another one who began at the same moment has put theirs, and then lost."""
    mine = wanted(write_prompts(tmp_path / "qa.jsonl", 12))
    other(lambda: results.store.replace(PROMPTS_FILE, b"theirs"))
    write_manifest(results, mine, [])
    assert len(results.prompts()) == 12


def test_of_two_who_add_one_has_added(results: Results, other: Other) -> None:
    plan = make_plan("memory://bucket/out")
    manifest = {"plan": plan.model_dump(mode="json")}
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    theirs = json.dumps({"plan": plan.model_dump(mode="json"), "prompts": None}).encode()
    other(lambda: results.store.replace("extensions/0001.json", theirs))
    assert not results.extend(plan.model_copy(update={"seeds": (1, 2, 3)}), [])
    assert results.plan() == plan
