"""Two driver processes of one trial: one is told so, or both work and nothing is there twice."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pytest
import ray
import yaml

from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.storage.driver_lock import LOCK_FILE, driving
from cluster.telemetry.logs import LOGS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trial(tmp_path: Path, tiny_model_folder: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        prompts = tmp_path / "prompts.jsonl"
        rows = ({"id": f"p{i}", "prompt": f"prompt {i}"} for i in range(16))
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {
            "model": str(tiny_model_folder),
            "datasets": [{"path": str(prompts), "shards": 8}],
            "configurations": [{"name": "baseline", "batch_size": 2}],
            "generation": {"max_new_tokens": 24, "temperature": 0.8},
            "output": str(tmp_path / "out"),
        } | changes
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


def driver(spec: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "evaluate", str(spec), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_second_driver_is_told_within_5_s(trial: Callable[..., Path], tmp_path: Path) -> None:
    spec = trial()
    times = []
    with driving(Results(str(tmp_path / "out")).store, "out"):
        before = sorted(tmp_path.rglob("*"))
        for _ in range(3):
            started = time.monotonic()
            second = driver(spec)
            out, _ = second.communicate(timeout=120)
            times.append(time.monotonic() - started)
            assert second.returncode == 3, out
            said = one_line(out)
            assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in said
            assert "--join" in said
            assert "Traceback" not in out
        assert sorted(tmp_path.rglob("*")) == before
    figures.note(6, "refused", "exit code 3 within 5 s", taken_s=min(times))
    assert min(times) < figures.limit(5)


@pytest.mark.usefixtures("ray_cluster")
def test_two_drivers_share_the_work(trial: Callable[..., Path], tmp_path: Path) -> None:
    spec = trial(seeds=24)
    address = ray.get_runtime_context().gcs_address
    first = driver(spec, "--address", address)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / LOCK_FILE).exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = driver(spec, "--address", address, "--join")
    outs = [process.communicate(timeout=500)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert "running along with" in one_line(outs[1])

    results = Results(str(tmp_path / "out"))
    assert list(faults_of(results)) == []
    table = results.read("generations").to_pylist()
    keys = {(row["configuration"], row["prompt_id"], row["seed"]) for row in table}
    assert len(table) == len(keys) == 2 * 16 * 24
    assert not results.store.exists(LOCK_FILE)
    events = [
        json.loads(line)
        for name in results.store.list(LOGS)
        for line in results.store.read(name).decode().splitlines()
    ]
    ended = [event for event in events if event["event"] == "run ended"]
    assert len(ended) == 2
    assert all(event["rows"] > 0 for event in ended), "both have worked"
    assert sum(event["rows"] for event in ended) == len(table)
    wasted = sum(event["duplicates"] for event in ended)
    committed = len(results.committed_keys())
    figures.note(
        6, "--join", "no row twice; wasted executions <= 25 %",
        rows_twice=len(table) - len(keys), wasted=wasted, executions=committed + wasted,
    )  # fmt: skip
    assert wasted <= 0.25 * (committed + wasted), f"{wasted} of {committed + wasted} were wasted"
