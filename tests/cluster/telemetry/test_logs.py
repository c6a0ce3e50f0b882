"""Structured logs: lines of JSON with ids, in the results, without secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray

from cluster.storage.open_store import LocalStore, ObjectStore, open_store
from cluster.telemetry import logs
from cluster.telemetry.logs import LOGS, attach_run_log, attach_worker_log, run_logger
from cluster.telemetry.redaction import STRUCK_OUT, Redaction, secret_in, strike_out_credentials

Store = LocalStore | ObjectStore
SECRET = 's3cr3t-"quoted"-value'


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "out")
        return
    yield open_store("memory://bucket/logs-out")
    fsspec.filesystem("memory").store.clear()


def lines(store: Store) -> list[dict[str, Any]]:
    found = []
    for name in store.list(LOGS):
        assert name.startswith("_logs/driver-")
        assert name.endswith(".jsonl")
        found += [json.loads(line) for line in store.read(name).decode().splitlines()]
    return found


def test_events_have_ids_and_a_place(store: Store) -> None:
    with attach_run_log(store, "run-1"):
        logging.getLogger("optrial.scheduler").info(
            "cell committed", extra={"cell": "k", "block": 7, "seed": None, "worker": "worker-0"}
        )
        run_logger("driver").warning("something", extra={"counts": {"a": [1, 2]}})
        logging.getLogger("elsewhere").warning("not ours")
    first, second = lines(store)
    assert first["event"] == "cell committed"
    assert (first["run_id"], first["cell"], first["block"], first["worker"]) == (
        "run-1", "k", 7, "worker-0",
    )  # fmt: skip
    assert first["seed"] is None
    assert (first["level"], first["logger"]) == ("INFO", "optrial.scheduler")
    assert first["time"].endswith("+00:00")
    assert first["node"]
    assert second["counts"] == {"a": [1, 2]}


def test_what_is_logged_after_the_run_goes_nowhere(store: Store) -> None:
    level = logging.getLogger("optrial").level
    with attach_run_log(store, "r"):
        run_logger("driver").debug("too much")
    run_logger("driver").info("late")
    assert lines(store) == []
    assert logging.getLogger("optrial").level == level


def test_a_run_that_is_refused_leaves_no_log(store: Store) -> None:
    with attach_run_log(store, "r", held=True):
        run_logger("driver").info("before")
    assert store.list("") == []
    with attach_run_log(store, "r", held=True) as log:
        run_logger("driver").info("before")
        log.begin()
        run_logger("driver").info("after")
    assert [line["event"] for line in lines(store)] == ["before", "after"]


def test_a_local_log_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with attach_run_log(store, "r"):
        run_logger("driver").info("one")
        assert [line["event"] for line in lines(store)] == ["one"]


def test_objects_are_written_whole_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://bucket/chunks")
    monkeypatch.setattr(logs, "_CHUNK_BYTES", 4000)
    try:
        with attach_run_log(store, "r"):
            for i in range(200):
                run_logger("driver").info("event", extra={"i": i})
        names = store.list(LOGS)
        assert len(names) > 3
        assert [line["i"] for line in lines(store)] == list(range(200))
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_log_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOGS).write_text("a file where the folder should be")
    with attach_run_log(LocalStore(tmp_path), "r"):
        for _ in range(3):
            run_logger("driver").info("event")
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_secrets_are_struck_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("DB_PASSWORD", "hunter2-hunter2")
    monkeypatch.setenv("SHORT_KEY", "1")
    with attach_run_log(store, "r"):
        log = run_logger("driver")
        log.info("token %s", SECRET, extra={"nested": {"a": [f"x{SECRET}y"]}})
        log.info("reads s3://user:pa55-word@bucket/x?X-Amz-Signature=abcdef012345&versionId=7")
        try:
            raise ValueError("wrong: hunter2-hunter2")
        except ValueError:
            log.exception("failed")
    text = "".join(store.read(name).decode() for name in store.list(LOGS))
    for secret in (SECRET, json.dumps(SECRET)[1:-1], "hunter2", "pa55-word", "abcdef012345"):
        assert secret not in text
    found = lines(store)
    assert found[0]["event"] == f"token {STRUCK_OUT}"
    assert "versionId=7" in found[1]["event"]
    assert "ValueError: wrong" in found[2]["exc_info"]


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("s3://key:secret@bucket/x", True),
        ("https://host/x?sig=abc123&a=1", True),
        ("https://:pw@host/x", True),
        ("s3://bucket/a:b@c", False),
        ("https://user@host/x", False),
        ("model@revision", False),
        ("Answer: a@b.c?token", False),
        ("Q: {question}?\nA:", False),
    ],
)
def test_what_is_secret_in_a_text(text: str, is_secret: bool) -> None:
    assert (secret_in(text, {}) is not None) == is_secret
    assert (strike_out_credentials(text) != text) == is_secret


def test_values_of_variables_that_sound_secret() -> None:
    environment = {
        "HF_TOKEN": "hf_abcdefgh",
        "AWS_SECRET_ACCESS_KEY": "abc/def+ghi",
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "RAY_AUTH_TOKEN_PATH": "relative/place",
        "SSH_KEY": "/home/me/.ssh/id",
        "HOME": "/home/me/longenough",
    }
    redaction = Redaction(environment)
    assert redaction("hf_abcdefgh abc/def+ghi") == f"{STRUCK_OUT} {STRUCK_OUT}"
    kept = "falsefalse relative/place /home/me/.ssh/id /home/me/longenough"
    assert redaction(kept) == kept
    assert secret_in("x hf_abcdefgh", environment) == (
        "the value of the environment variable HF_TOKEN"
    )


@pytest.fixture
def _own_logger() -> Iterator[None]:
    logger = logging.getLogger("optrial")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


@pytest.mark.usefixtures("_own_logger")
def test_workers_write_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    attach_worker_log("run-1", "worker-0")
    attach_worker_log("run-1", "worker-3")
    run_logger("worker").info("cell committed", extra={"cell": "k"})
    [line] = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["worker"], found["run_id"], found["cell"]) == ("worker-3", "run-1", "k")


@pytest.mark.usefixtures("ray_cluster")
def test_rays_worker_logs_have_them() -> None:
    @ray.remote
    class Actor:
        def say(self) -> str:
            attach_worker_log("run-of-actor", "worker-7")
            run_logger("worker").warning("said by an actor")
            sys.stderr.flush()
            return str(ray.get_runtime_context().get_worker_id())

    actor = Actor.remote()  # type: ignore[attr-defined]
    worker = ray.get(actor.say.remote())
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    [file] = folder.glob(f"worker-{worker}-*.err")
    said = [json.loads(line) for line in file.read_text().splitlines() if "said by" in line]
    ray.kill(actor)
    assert [line["worker"] for line in said] == ["worker-7"]
