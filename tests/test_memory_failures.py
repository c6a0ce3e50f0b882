"""A configuration that Ray ends for its memory is told apart and set aside; the others complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import figures
import psutil
import pytest
from sound_results import require_sound

from cluster.results import Results

TESTS = Path(__file__).parent


@pytest.mark.slow  # what else the machine runs takes memory too, and then it sets aside more
def test_what_runs_out_of_memory_is_set_aside_alone(tmp_path: Path) -> None:
    # So much that other tests beside this one do not take it.
    memory = psutil.virtual_memory()
    allowed = (memory.total - memory.available + (3 << 30)) / memory.total
    done = subprocess.run(
        [sys.executable, str(TESTS / "memory_trial.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
            "RAY_memory_usage_threshold": f"{allowed:.3f}",
            "RAY_memory_monitor_refresh_ms": "100",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads((tmp_path / "found.json").read_text())
    assert outcome["failures"].keys() == {"out_of_memory"}
    assert outcome["cells_done"] == 6 < outcome["cells_total"]
    blocks = [reason for reason in outcome["quarantined"] if not reason.startswith("all of")]
    assert len(blocks) == 3
    assert all(reason.startswith("greedy: ") and "out of memory" in reason for reason in blocks)
    # A block runs whole, then one configuration at a time, each at most two times more.
    assert outcome["executions"] <= 3 * (1 + 2 * 2)
    results = Results(str(tmp_path / "out"))
    require_sound(results.plan(), results, is_complete=False)
    figures.note(10, "memory", "classified; set aside after 3; others complete", **outcome)
