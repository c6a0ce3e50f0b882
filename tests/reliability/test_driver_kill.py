"""A driver that is killed loses what was in flight and nothing else; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import figures
import psutil
import pytest
import ray
import yaml
from program import Run
from trial_results import make_results

from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.scheduling.scheduler import Scheduler
from cluster.storage.driver_lock import LOCK_FILE
from cluster.telemetry.logs import LOGS

ROOT = Path(__file__).parents[2]
NUM_SEEDS = 30


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_driver_is_resumed(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"prompt {i}"} for i in range(16))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 8}],
        "configurations": [{"name": "baseline", "batch_size": 2}],
        "seeds": NUM_SEEDS,
        "generation": {"max_new_tokens": 8, "temperature": 0.8},
        "workers": {"count": 2, "cpus": 1},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(spec))
    output, total = tmp_path / "out", 8 * NUM_SEEDS * 2
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs", "evaluate", str(path),
         "--address", ray.get_runtime_context().gcs_address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while len(list(output.rglob("part-*.parquet"))) < 20:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = time.monotonic()
    results = Results(str(output))
    workers = results.manifest()["hardware"]["workers"]
    pids = [worker["pid"] for worker in workers]
    assert len(pids) == 2
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() - killed < figures.limit(5), "its workers outlive it"
        time.sleep(0.05)
    gone_s = time.monotonic() - killed
    assert results.store.exists(LOCK_FILE), "nobody was there to give it up"
    before = {p: p.stat().st_mtime_ns for p in output.rglob("part-*.parquet")}
    assert 20 <= len(before) < total

    code, out, err = run("evaluate", path)
    assert code == 0, err
    assert f"resuming: {len(before)} of {total} cells" in " ".join(out.split())
    assert "taking over from process" in " ".join(out.split())
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing was run again"
    assert list(faults_of(results)) == []
    table = results.read("generations").to_pylist()
    keys = {(row["configuration"], row["prompt_id"], row["seed"]) for row in table}
    assert len(table) == len(keys) == 16 * NUM_SEEDS * 2
    events = [
        json.loads(line)
        for name in results.store.list(LOGS)
        for line in results.store.read(name).decode().splitlines()
    ]
    [ended] = [event for event in events if event["event"] == "run ended"]
    assert ended["rows"] == (total - len(before)) * 2
    assert ended["duplicates"] == 0
    figures.note(
        4, "kill -9", "committed cells run again: 0; workers gone < 5 s",
        cells_committed=len(before), cells_total=total, run_again=0, workers_gone_s=gone_s,
    )  # fmt: skip
    assert not results.store.exists(LOCK_FILE)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_is_there_is_found_within_a_second_per_thousand_parts(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", num_prompts=24, num_shards=24, seeds=(1, 2, 3, 4))
    plan, times = results.plan(), []
    num_parts = len(results.committed_keys())
    assert num_parts >= 900
    for _ in range(3):
        started = time.perf_counter()
        assert Scheduler(plan, Results(results.output)).num_pending == 0
        times.append(time.perf_counter() - started)
    figures.note(4, "scan", "< 1 s per 1,000 parts", s_per_1000_parts=min(times) * 1000 / num_parts)
    assert min(times) < figures.limit(num_parts / 1000)
