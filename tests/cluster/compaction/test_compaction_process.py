"""Compaction as a process: killed at any moment, and how much memory it takes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from trial_results import make_results

from cluster.compaction.compaction import compact
from cluster.results.compacted_files import CURRENT, FOLDER, Compacted
from cluster.results.results import Results
from jobs.queries.cells import CELLS
from jobs.queries.sql import run_sql

SMALL: dict[str, Any] = {"num_datasets": 2, "num_prompts": 8, "num_shards": 4, "seeds": (1, 2)}
VIEWS = ("generations", "likelihoods", "cells", "prompts")


def everything(results: Results) -> dict[str, pa.Table]:
    return {view: run_sql(results, f"SELECT * FROM {view} ORDER BY ALL") for view in VIEWS}


def same(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> bool:
    return all(one[view].equals(other[view]) for view in VIEWS)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return make_results(tmp_path / "out", **SMALL)


KILLED = """
import sys
from cluster.compaction.compaction import compact
from cluster.results.results import Results
from jobs.queries.cells import CELLS
print("ready", flush=True)
while True:
    compact(Results(sys.argv[1]), CELLS, full=True)
"""


def test_killed_at_any_moment_it_stays_readable(results: Results) -> None:
    before = everything(results)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    drawn = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, results.output],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(drawn.uniform(0.0, 1.5))
        process.kill()
        process.communicate()
        assert same(everything(results), before)
        if results.store.exists(CURRENT):
            assert Compacted.current(results.store) is not None
    assert compact(results, CELLS, full=True).num_parts == len(results.committed_keys())
    folders = {name.split("/")[2] for name in results.store.list(FOLDER)}
    assert len(folders) == 1, "what the killed ones left is removed by the next"
    results.sweep(-1.0)
    assert results.store.list("_tmp") == []


MEASURED = """
import resource, sys
from cluster.compaction.compaction import compact
from cluster.results.results import Results
from jobs.queries.cells import CELLS
import duckdb, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = compact(Results(sys.argv[1]), CELLS)
print(made.num_parts, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """800,000 and 3.2 million rows."""
    from many_rows import make_many

    peaks = []
    for num_prompts in (50_000, 200_000):
        results = make_many(tmp_path / str(num_prompts), num_prompts=num_prompts, num_seeds=2)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, results.output],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[1]))
    assert peaks[1] < 1.5 * peaks[0] + (200 << 20)
    assert peaks[1] < 1500 << 20
