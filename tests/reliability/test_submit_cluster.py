"""Jobs on a real Ray head on loopback: submitted, followed, detached from, stopped and resumed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
import pytest
import yaml
from job_server import JobServer, job_server

from cluster.results.results import Results
from cluster.results.verification import faults_of

TOKEN = "a-token-that-nobody-may-see-0123456789"
SECRET = "a-value-that-nobody-may-see"
WITHIN_S = 180


@pytest.fixture(scope="module")
def guarded() -> Iterator[JobServer]:
    """A job server that wants a token."""
    with job_server(TOKEN) as server:
        yield server


Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, tiny_model_folder: Path) -> Project:
    """Write a folder with all that a small trial needs; gives the folder. Results lie beside it."""

    def write(**changes: Any) -> Path:
        folder = tmp_path / "project"
        folder.mkdir(exist_ok=True)
        lines = (json.dumps({"id": f"p{i}", "prompt": f"prompt {i}"}) for i in range(16))
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "model").symlink_to(tiny_model_folder)
        spec = {
            "model": "./model",
            "datasets": [{"path": "prompts.jsonl", "shards": 8}],
            "configurations": [
                {"name": "one", "batch_size": 1},
                {"name": "two", "batch_size": 2, "vs": "one"},
            ],
            "baseline_check": False,
            "generation": {"max_new_tokens": 4, "temperature": 0.8},
            "output": str(tmp_path / "out"),
        }
        (folder / "trial.yaml").write_text(yaml.safe_dump(spec | changes))
        return folder

    return write


def start(folder: Path, environment: dict[str, str], *words: str | Path) -> subprocess.Popen[str]:
    # What a shell starts in its background ignores SIGINT, and hands that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def optrial(folder: Path, environment: dict[str, str], *words: str | Path) -> tuple[int, str, str]:
    """Run `optrial` as people do, in a process of its own: Ray reads its variables only once."""
    process = start(folder, environment, "jobs", *words)
    out, err = process.communicate(timeout=WITHIN_S)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait_until(what: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_is_followed_to_its_end(guarded: JobServer, project: Project) -> None:
    folder = project()
    at = ("--address", guarded.address)
    start_s = time.monotonic()
    code, out, err = optrial(
        folder,
        guarded.environment | {"HIDDEN": SECRET},
        *("submit", "trial.yaml", *at, "--submission-id", "sound", "--env", "HIDDEN"),
    )
    assert code == 0, out + err
    figures.note(16, "token", "exit code 0", taken_s=time.monotonic() - start_s)
    assert "uploading" in err
    assert "SUCCEEDED" in err
    assert "python -m jobs evaluate trial.yaml" in out
    assert "two against one" in out, "the report"
    results = Results(str(folder.parent / "out"))
    assert len(results.read("generations").to_pylist()) == 16 * 2
    assert list(faults_of(results)) == []

    # All of the log and nothing twice; its first line is from before it began.
    code, log, _ = optrial(folder, guarded.environment, "logs", "sound", *at)
    assert code == 0
    assert out == log
    code, listed, _ = optrial(folder, guarded.environment, "status", *at)
    assert code == 0
    assert re.search(r"sound +SUCCEEDED .* trial\.yaml", listed)
    code, status, _ = optrial(folder, guarded.environment, "status", "sound", *at)
    assert code == 0
    assert re.search(r"^status: +SUCCEEDED$", status, re.MULTILINE)
    for text in (out, err, log, listed, status):
        assert SECRET not in text
        assert TOKEN not in text

    # The job's exit code is the driver's, the claims file is uploaded, and the id is used up.
    claim = {"configuration": "two", "metric": "completion_tokens", "at_most": -0.5}
    claims = {"claims": [{"name": "half", "text": "half as many tokens", **claim}]}
    (folder / "claims.yaml").write_text(yaml.safe_dump(claims))
    code, out, err = optrial(
        folder, guarded.environment, *("submit", "trial.yaml", *at, "--", "--claims", "claims.yaml")
    )
    assert code == 1, out + err
    assert "FAILED, exit code 1" in err
    figures.note(16, "failed", "exit code 1", code=code)
    assert "refuted" in out
    code, _, err = optrial(
        folder, guarded.environment, "submit", "trial.yaml", *at, "--submission-id", "sound"
    )
    assert code == 2
    assert "the cluster has had a job of this name" in err


@pytest.mark.slow
def test_detached_stopped_and_gone_on_with_by_hand(guarded: JobServer, project: Project) -> None:
    folder = project(seeds=8, generation={"max_new_tokens": 60, "temperature": 0.8})
    at = ("--address", guarded.address)
    parts = folder.parent / "out" / "generations"
    command = ("submit", "trial.yaml", *at, "--submission-id", "long")
    follower = start(folder, guarded.environment, "jobs", *command)
    wait_until(lambda: len(list(parts.rglob("part-*"))) >= 5, follower)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    for line in ("logs long --follow", "status long", "stop long"):
        assert f"optrial {line} --address {guarded.address}" in err

    # The job goes on, or there would be nothing to stop.
    code, out, err = optrial(folder, guarded.environment, "stop", "long", *at)
    assert code == 0, err
    assert "long: STOPPED" in out
    assert "submitted again" in out
    _, log, _ = optrial(folder, guarded.environment, "logs", "long", *at)
    assert "Interrupted. What is committed is kept" in log
    code, out, _ = optrial(folder, guarded.environment, "stop", "long", *at)
    assert (code, out) == (0, "long has ended already: STOPPED\n")
    results = Results(str(folder.parent / "out"))
    num_committed = len(results.committed_keys())
    assert 5 <= num_committed < 8 * 8 * 2
    assert {fault.kind for fault in faults_of(results)} == {"missing"}
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("part-*")}

    # The same by Ray's own command line, from a changed working directory.
    (folder / "notes.txt").write_text("a file more")
    by_hand = ("job", "submit", *at, "--working-dir", ".", "--")
    process = start(
        folder,
        guarded.environment,
        *("ray.scripts.scripts", *by_hand, "python", "-m", "jobs", "evaluate", "trial.yaml"),
    )
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, out + err
    assert f"resuming: {num_committed} of {8 * 8 * 2} cells" in out
    assert list(faults_of(results)) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing was run again"
    # Readable without a terminal: each line is one of its own, in plain text.
    lines = out.partition("Running entrypoint")[2].splitlines()
    assert not any(set(line) & {"\r", "\x1b"} for line in lines if "cli.py" not in line)


def test_a_refused_token_is_one_error_that_says_what_to_set(
    guarded: JobServer, project: Project
) -> None:
    folder = project()
    at = ("--address", guarded.address)
    wrong = "another-token-0123456789"
    for environment, said in (
        (guarded.without_token(), "wants a token (401), and RAY_AUTH_MODE is not set"),
        (guarded.without_token(RAY_AUTH_TOKEN=TOKEN), "RAY_AUTH_MODE is not set"),
        (guarded.without_token(RAY_AUTH_MODE="token"), "no token is found here"),
        (
            guarded.without_token(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=wrong),
            "refuses this token (403)",
        ),
    ):
        code, out, err = optrial(folder, environment, "submit", "trial.yaml", *at)
        assert code == 2, out + err
        assert err.count("error:") == 1
        assert said in err
        assert "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in err
        assert TOKEN not in out + err
        assert wrong not in out + err
    figures.note(16, "wrong token", "one error that says what to set, exit code 2", code=code)
    file = folder.parent / "token"
    file.write_text(TOKEN)
    by_file = guarded.without_token(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file))
    assert optrial(folder, by_file, "status", *at)[0] == 0


def test_without_authentication(project: Project) -> None:
    folder = project()
    start_s = time.monotonic()
    with job_server(None) as server:
        environment = server.environment | {"RAY_API_SERVER_ADDRESS": server.address}
        code, out, err = optrial(folder, environment, "submit", "trial.yaml", "--no-wait")
        assert code == 0, err
        name = out.strip()
        assert re.fullmatch(r"optrial-trial-[0-9a-f]{6}", name)
        assert f"optrial logs {name} --follow --address {server.address}" in err
        code, out, err = optrial(folder, environment, "logs", name, "--follow")
        assert code == 0, out + err
        figures.note(16, "no token", "exit code 0", taken_s=time.monotonic() - start_s)
        assert list(faults_of(Results(str(folder.parent / "out")))) == []


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_stopped_job_has_ended_before_ray_kills_it(
    guarded: JobServer, project: Project, attempt: int
) -> None:
    """Ray gives a job 3 s between SIGTERM and SIGKILL; here with all workers busy."""
    workers = {"count": 2, "cpus": 1}
    folder = project(
        seeds=200, generation={"max_new_tokens": 100, "temperature": 0.8}, workers=workers
    )
    at, name = ("--address", guarded.address), f"busy-{attempt}"
    words = ("submit", "trial.yaml", *at, "--submission-id", name, "--no-wait")
    code, _, err = optrial(folder, guarded.environment, *words)
    assert code == 0, err
    parts = folder.parent / "out" / "generations"
    wait_until(lambda: len(list(parts.rglob("part-*"))) >= 10)
    assert optrial(folder, guarded.environment, "stop", name, *at)[0] == 0
    supervisor = guarded.log.parent / "r/session_latest/logs/jobs" / f"supervisor-{name}.log"
    assert "has been terminated gracefully" in supervisor.read_text()
    figures.note(5, f"stop {attempt}", "ended within 3 s, STOPPED; resumable", is_graceful=True)
    _, log, _ = optrial(folder, guarded.environment, "logs", name, *at)
    assert "Interrupted. What is committed is kept" in log
    assert {fault.kind for fault in faults_of(Results(str(folder.parent / "out")))} == {"missing"}
