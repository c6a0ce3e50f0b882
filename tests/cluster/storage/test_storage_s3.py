"""Results on a real S3 server on loopback: commits, failures, and a whole trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3_server
import yaml
from program import Run
from s3_server import S3
from trial_results import make_results

from cluster.compaction.compaction import compact
from cluster.results.files import part_name
from cluster.results.receipts import Receipts
from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.storage.open_store import ObjectStore, StorageUnreachable, open_store
from jobs.queries import views
from jobs.queries.cells import CELLS
from jobs.queries.sql import run_sql
from optim.errors import InputError

KEY, SECRET = "AKIAOPTRIALTESTKEY", "a-secret-that-appears-nowhere"
SMALL = {"num_datasets": 1, "num_prompts": 4, "num_shards": 2, "seeds": (1,)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server.running(tmp_path_factory.mktemp("s3") / "log") as running:
        running.make_bucket("trials")
        yield running
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with credentials in the environment and nothing wrong with it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server.switch()
    return server


@pytest.fixture
def store(s3: S3, request: pytest.FixtureRequest) -> ObjectStore:
    opened = open_store(f"s3://trials/{request.node.name.replace('[', '-').strip(']')}")
    assert isinstance(opened, ObjectStore)
    return opened


def at_once(store: ObjectStore, name: str, num_writers: int = 6) -> list[bytes]:
    """What each of several writers that won has written."""
    won: list[bytes] = []
    ready = threading.Barrier(num_writers)

    def write(mark: bytes) -> None:
        ready.wait()
        if store.create(name, mark * 100_000):
            won.append(mark)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(num_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_writers_at_once_have_one_winner(store: ObjectStore, s3: S3) -> None:
    assert store.create_is_exclusive
    assert "If-None-Match" in store.commit_protocol
    s3.switch()
    for i in range(5):
        [mark] = at_once(store, f"part-{i}")
        assert store.read(f"part-{i}") == mark * 100_000
    assert s3.counts()["conditional"] > 5, "several were told only by the PUT itself"
    assert not [name for name in store.list("") if "probe" in name]


def test_a_put_whose_answer_was_lost_has_won(store: ObjectStore, s3: S3) -> None:
    assert store.create_is_exclusive
    s3.switch(lose=1)
    assert store.create("part", b"mine")
    assert s3.counts()["conditional"] == 2, "it was repeated, and met itself"
    assert not store.create("part", b"other")


def test_a_store_that_heeds_no_conditions(store: ObjectStore, s3: S3) -> None:
    s3.switch(heeds_conditions=False)
    assert not store.create_is_exclusive
    assert "does not heed If-None-Match" in store.commit_protocol
    assert store.create("part", b"1")
    assert not store.create("part", b"2"), "it looks before it writes"
    assert at_once(store, "race")
    assert len(set(store.read("race"))) == 1, "one whole file, whoever's"


def test_two_commits_on_a_store_that_heeds_no_conditions(s3: S3) -> None:
    """Whoever comes last, the part is as one of the receipts says."""
    s3.switch(heeds_conditions=False)
    results = make_results("s3://trials/unheeded", **SMALL)
    cell = next(results.plan().blocks()).cells[0]
    data = results.store.read(part_name(cell))
    results.store.replace(part_name(cell), b"x")
    assert [fault.name for fault in faults_of(results)] == [part_name(cell)]
    results.store.replace(part_name(cell), data)
    assert list(faults_of(results)) == []


@pytest.mark.parametrize(
    "failing",
    [
        {"status": "503 Slow Down", "code": "SlowDown"},
        {"status": "500 Internal Server Error", "code": "InternalError"},
        {"reset": True},
    ],
    ids=["throttled", "500", "reset"],
)
def test_what_passes_is_retried(store: ObjectStore, s3: S3, failing: dict[str, object]) -> None:
    assert store.create_is_exclusive
    s3.switch(fail=2, **failing)
    assert store.create("part", b"1")
    s3.switch(fail=2, **failing)
    assert store.read("part") == b"1"
    s3.switch(fail=2, **failing)
    assert store.list("") == ["part"]


def test_a_server_that_does_not_answer(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store.filesystem.config_kwargs, "retries", {"max_attempts": 1})
    store.filesystem.connect(refresh=True)
    s3.switch(fail=1000, status="500 Internal Server Error", code="InternalError")
    with pytest.raises(StorageUnreachable, match="AWS_ENDPOINT_URL"):
        store.replace("part", b"1")
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_no_bucket(s3: S3) -> None:
    results = Results("s3://no-such-bucket/x")
    for call in (
        lambda: results.store.create("part", b""),
        results.manifest,
        lambda: results.store.list(""),
    ):
        with pytest.raises(InputError, match="no such bucket"):
            call()


READING = (
    ("report",), ("query", "SELECT 1"), ("explain",), ("score",), ("verify",),
    ("verify", "--repair"), ("compact",), ("export", "--out"), ("watch",), ("settle",),
)  # fmt: skip


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_what_cannot_be_reached_is_said_by_every_command(
    s3: S3, run: Run, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never taken for a file of it that is broken, which a person would mend from a copy."""
    command, *rest = words
    if command == "export":
        rest = ["--out", str(tmp_path / "exported")]
    code, out, err = run(command, "s3://nobucket/x", *rest)
    assert code == 2, out + err
    assert err.count("error:") == 1
    assert "there is no such bucket. Make it first, or correct its name" in " ".join(err.split())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, out, err = run(command, "s3://trials/dead-endpoint", *rest)
    assert code == 2, out + err
    said = " ".join(err.split())
    assert "s3://trials/dead-endpoint: output: cannot be reached" in said
    for wrong in ("not valid JSON", "from a copy", "Traceback"):
        assert wrong not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run[1]", "run{1}", "run*", "run?"])
def test_an_address_that_is_a_pattern_is_refused_before_anything_runs(
    s3: S3, run: Run, name: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n')
    spec = tmp_path / "trial.yaml"
    spec.write_text(
        f"model: demo\ndatasets: [{{path: {tmp_path / 'prompts.jsonl'}}}]\n"
        f"configurations: [{{name: one}}]\noutput: 's3://trials/{name}'\n"
    )
    for words in (("evaluate", spec), ("report", f"s3://trials/{name}")):
        code, out, err = run(*words)
        assert code == 2, out + err
        assert "is a pattern to what reads it. Choose one without" in " ".join(err.split())
    assert "PUT" not in s3.counts(), "nothing is written"


def test_denied(store: ObjectStore, s3: S3) -> None:
    for call in (lambda: store.replace("part", b""), lambda: store.read("part")):
        s3.switch(fail=10, status="403 Forbidden", code="AccessDenied")
        with pytest.raises(InputError, match="access is denied") as raised:
            call()
        assert "rights" in str(raised.value)


def test_full(store: ObjectStore, s3: S3) -> None:
    s3.switch(fail=1, status="403 Forbidden", code="QuotaExceeded")
    with pytest.raises(InputError, match="no room left"):
        store.replace("part", b"")


def test_no_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match="no usable credentials") as raised:
        open_store("s3://trials/x").list("")
    assert "AWS_ACCESS_KEY_ID" in str(raised.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_damage_repair_and_compaction(s3: S3, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "s3://trials/damaged"
    results = make_results(url, **SMALL)
    sql = "SELECT configuration, count(*) AS n FROM generations GROUP BY ALL ORDER BY ALL"
    before = run_sql(results, sql)
    part = results.parts("generations")[0]
    data = bytearray(results.store.read(part.name))
    data[len(data) // 2] ^= 1
    results.store.replace(part.name, bytes(data))
    with pytest.raises(InputError, match="--repair"):
        run_sql(results, sql)
    assert run("verify", url, "--repair")[0] == 1
    assert part.key not in results.sound_keys()
    assert len(results.store.list("_quarantine")) == 2, "the part and its receipt"
    assert Receipts(results.store).seals(part.key) == []

    whole = make_results("s3://trials/whole", **SMALL)
    made = compact(whole, CELLS)
    assert made.num_parts == 16
    assert run_sql(whole, sql).equals(before)
    assert run("verify", "s3://trials/whole")[0] == 0
    monkeypatch.setattr(views, "_SMALL_BYTES", 0)
    assert run_sql(whole, sql).equals(before), "read where it lies"
    for attack in (
        "FROM read_text('s3://trials/whole/manifest.json')",
        "FROM read_text('s3://trials/damaged/manifest.json')",
        "FROM glob('s3://trials/*')",
    ):
        with pytest.raises(InputError):
            run_sql(whole, attack)


def test_a_trial_from_end_to_end(s3: S3, tmp_path: Path, tiny_model_folder: Path, run: Run) -> None:
    """With credentials from the environment alone, which Ray's workers inherit."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": f"p{i}", "prompt": f"prompt {i}", "target": "x"}) for i in range(8)]
    prompts.write_text("\n".join(lines) + "\n")
    url = "s3://trials/end-to-end"
    spec = {
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 4}],
        "configurations": [{"name": "baseline", "batch_size": 2}],
        "generation": {"max_new_tokens": 4},
        "output": url,
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
    said = ""
    for _ in range(2):
        # A Ray of its own: the workers of one that runs already have its environment.
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "evaluate", "trial.yaml"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        said += done.stdout + done.stderr
    for words in (
        ["verify", url],
        ["compact", url],
        ["query", url, "SELECT count(*) AS n FROM generations", "--format", "csv"],
        ["report", url],
        ["export", url, "--out", tmp_path / "rows.csv"],
    ):
        code, out, err = run(*words)
        assert code == 0, (words, out, err)
        said += out + err
    assert "Nothing to do" in said
    assert "0 faults" in said
    assert "conditional PUT" in said
    assert '"n"\n16\n' in said
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 17

    results = Results(url)
    written = b"".join(results.store.read(name) for name in results.store.list(""))
    # Parts are compressed, so that their rows and facts are looked at as well.
    rows = str(results.read("generations").to_pylist()) + str(results.cells())
    for secret in (KEY, SECRET):
        assert secret not in said
        assert secret.encode() not in written
        assert secret not in rows
