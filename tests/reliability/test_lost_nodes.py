"""Nodes that vanish, and workers that outlive theirs: each cell counts once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures
import pytest
from sound_results import require_sound

from cluster.plan import Plan
from cluster.results.results import Results

TRIALS = Path(__file__).parents[1] / "support" / "trials"


def trial(folder: Path, *words: str) -> tuple[dict[str, Any], Plan]:
    """What a run of `cluster_trial.py` found, and its plan."""
    done = subprocess.run(
        [sys.executable, str(TRIALS / "cluster_trial.py"), words[0], str(folder), *words[1:]],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found, Results(str(folder / "out")).plan()


@pytest.mark.parametrize(
    ("words", "within_s"),
    [((), 10), pytest.param(("--slow-detection",), 30, marks=pytest.mark.slow)],
)
def test_a_node_that_is_lost_costs_what_was_in_flight_on_it(
    tmp_path: Path, words: tuple[str, ...], within_s: float
) -> None:
    found, plan = trial(tmp_path, "remove", *words)
    figures.note(
        2,
        "slow" if words else "fast",
        f"executions <= 60 + 1; recovered within {within_s} s",
        **found,
    )
    assert found["is_complete"]
    assert found["executions"] <= 61
    assert found["loads"] == 3
    assert found["recovered_s"] < figures.limit(within_s)
    require_sound(plan, Results(plan.output), num_killed=1)


@pytest.mark.slow
def test_a_worker_that_outlives_its_node_commits_first_and_once(tmp_path: Path) -> None:
    found, plan = trial(tmp_path, "raylet")
    assert found["is_complete"]
    figures.note(3, "raylet", "both finish, one part counts, the other is told", **found)
    # Both executions of one block have finished, and the later one was told that it is a duplicate.
    assert found["cells_finished"] == found["executions"] == 7
    assert found["duplicates"] == 1
    require_sound(plan, Results(plan.output))
    assert len(Results(plan.output).parts("generations")) == 6


@pytest.mark.slow
def test_a_node_that_comes_later_is_used(tmp_path: Path) -> None:
    found, plan = trial(tmp_path, "grow")
    assert found["is_complete"]
    assert (found["workers_before"], found["workers_after"]) == (1, 2)
    assert found["executions"] == 40
    assert found["failures"] == {}
    require_sound(plan, Results(plan.output))
