"""`optrial watch`: what is seen of a run elsewhere."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from program import Run
from trial_results import make_results

from cluster.results.results import Results
from cluster.storage.driver_lock import LOCK_FILE, DriverLock, driving
from cluster.telemetry.progress import Progress, ProgressFile
from jobs.cli.trial_progress import Sight, watch


def put(results: Results, done: int, total: int = 10) -> None:
    progress = Progress(
        cells_total=total, cells_done=done, rows=3 * done, errors=1, completion_tokens=90,
        retries=2, quarantined=0, elapsed_s=9.0,
    )  # fmt: skip
    ProgressFile(results.store)(progress, now=True)


def test_a_run_elsewhere_in_one_line(run: Run, tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", num_prompts=2, num_shards=1, num_datasets=1)
    code, out, _ = run("watch", results.output)
    assert code == 0
    assert "nothing has run yet, no driver runs it" in " ".join(out.split())
    put(results, 4)
    with driving(results.store, results.output):
        code, out, _ = run("watch", results.output)
    said = " ".join(out.split())
    assert code == 0
    assert out.count("\n") == 1
    assert "4/10 cells, 12 rows, 10 tokens/s" in said
    assert "1 error rows, 2 retries" in said
    assert "running: process" in said
    put(results, 10)
    assert "done" in run("watch", results.output)[1]


def test_a_dead_driver_runs_nothing(run: Run, tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", num_prompts=2, num_shards=1, num_datasets=1)
    put(results, 4)
    own = DriverLock(results.store, "out")._own
    gone = replace(own, start_ticks=1, beat_s=time.monotonic())
    results.store.replace(LOCK_FILE, json.dumps(asdict(gone)).encode())
    assert "no driver runs it" in " ".join(run("watch", results.output)[1].split())


def test_what_is_no_trial_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("watch", tmp_path / "none")
    assert code == 2
    assert "not a results folder" in " ".join(err.split())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "not an object"),
        ('{"cells_done": 1}', "cells_total"),
        ('{"cells_total": "some", "cells_done": 1}', "cells_total"),
        ("{", "not valid JSON"),
    ],
)
def test_progress_that_is_none_is_named(run: Run, tmp_path: Path, text: str, problem: str) -> None:
    results = make_results(tmp_path / "out", num_prompts=2, num_shards=1, num_datasets=1)
    results.store.replace("progress.json", text.encode())
    code, _, err = run("watch", results.output)
    said = " ".join(err.split())
    assert code == 2
    assert problem in said
    assert "progress.json" in said
    assert "Delete it" in said


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_watching_ends_with_the_run(tmp_path: Path, ends: str) -> None:
    results = make_results(tmp_path / "out", num_prompts=2, num_shards=1, num_datasets=1)
    seen: list[Sight] = []
    with driving(results.store, results.output) as lock:
        assert lock is not None
        done = 0

        def wait(seconds: float) -> None:
            nonlocal done
            done += 5
            put(results, done)
            if ends == "killed":
                lock.release()

        seen = list(watch(results, wait))
    counts = [None if sight.progress is None else sight.progress.cells_done for sight in seen]
    assert counts == ([None, 5, 10] if ends == "done" else [None, 5])
    assert seen[-1].is_over
