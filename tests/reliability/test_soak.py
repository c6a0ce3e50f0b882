"""Kills at random among workers, nodes and the driver, until the trial is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import figures
import pytest
from sound_results import require_sound

from cluster.results.results import Results

TRIALS = Path(__file__).parents[1] / "support" / "trials"


@pytest.mark.slow
def test_a_trial_survives_a_kill_every_five_seconds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TRIALS / "soak_trial.py"), "hold", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    figures.note(
        17,
        "soak",
        "complete, no row twice; executions <= cells + kills x in flight; growth < 50 MiB",
        **found,
    )
    assert found["code"] == 0
    assert found["num_cells"] == 300
    assert found["num_kills"] >= 5
    in_flight = found["num_workers"]
    assert found["num_executions"] <= found["num_cells"] + found["num_kills"] * in_flight
    assert found["driver_growth_bytes"] < 50 << 20
    results = Results(str(tmp_path / "out"))
    require_sound(results.plan(), results, num_killed=found["num_kills"] * in_flight)
