"""A configuration that Ray ends for its memory is told apart and set aside; the others complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import figures
import pytest
from memory_group import limited
from sound_results import require_sound

from cluster.results.results import Results

TRIALS = Path(__file__).parents[1] / "support" / "trials"
MOST_LINES = 12
"""Of what a person gets to see; Ray's own words alone are forty lines."""


def run_limited(num_bytes: int, threshold: float, *words: str) -> subprocess.CompletedProcess[str]:
    with limited(num_bytes) as command:
        return subprocess.run(
            [*command, sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=TRIALS.parents[2],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            | {
                "RAY_memory_usage_threshold": str(threshold),
                "RAY_memory_monitor_refresh_ms": "100",
            },
        )


@pytest.mark.slow
def test_what_runs_out_of_memory_is_set_aside_alone(tmp_path: Path) -> None:
    # Far enough below the limit that Ray's monitor is there before the kernel.
    done = run_limited(5 << 30, 0.6, str(TRIALS / "memory_trial.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads((tmp_path / "found.json").read_text())
    assert outcome["failures"].keys() == {"out_of_memory"}
    assert outcome["cells_done"] == 6 < outcome["cells_total"]
    blocks = [reason for reason in outcome["quarantined"] if not reason.startswith("all of")]
    assert len(blocks) == 3
    assert all(reason.startswith("greedy: ") and "out of memory" in reason for reason in blocks)
    assert all("of 5.00 GB in use" in reason for reason in blocks), blocks
    # A block runs whole, then one configuration at a time, each at most two times more.
    assert outcome["executions"] <= 3 * (1 + 2 * 2)
    results = Results(str(tmp_path / "out"))
    require_sound(results.plan(), results, is_complete=False)
    assert "Top 10 memory users" not in done.stdout + done.stderr
    figures.note(10, "memory", "classified; set aside after 3; others complete", **outcome)


@pytest.mark.slow
def test_a_preparation_that_runs_out_of_memory_ends_in_a_sentence(tmp_path: Path) -> None:
    """Ray itself would begin it again without end, and say so at length each time."""
    out = tmp_path / "artifact"
    words = ("-m", "jobs", "prepare", "larosa", "--model", "demo", "--data", "demo/training")
    done = run_limited(1300 << 20, 0.9, *words, "--out", str(out))
    assert done.returncode == 2, done.stderr[-3000:]
    said = " ".join(done.stderr.split())
    assert "the work did not go on: out of memory: Ray ended the worker (its node had 1." in said
    assert len((done.stdout + done.stderr).splitlines()) <= MOST_LINES
    assert not out.exists()
