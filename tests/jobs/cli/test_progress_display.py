"""Progress where nobody watches: whole lines, and not many of them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.telemetry.progress import Progress
from jobs.cli import progress as progress_display
from jobs.cli.progress import LINE_EVERY_S, ProgressDisplay

PROGRESS = Progress(
    cells_total=10,
    cells_done=3,
    rows=30,
    errors=0,
    completion_tokens=900,
    retries=0,
    quarantined=0,
    elapsed_s=3.0,
)


def test_a_log_has_a_line_in_ten_seconds_and_no_broken_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_display, "monotonic", lambda: now)
    out = io.StringIO()
    place = "/tmp/ray/session_2026/runtime_resources/working_dir_files/_ray_pkg_0123456789/model"
    with ProgressDisplay(Console(file=out, width=100)) as display:
        display.stage(f"loading the model ({place}) [bold]")
        for _ in range(61):
            display.progress(PROGRESS)
            now += 1.0
    lines = out.getvalue().splitlines()
    assert lines[0] == f"· loading the model ({place}) [bold]"
    assert len(lines) == 1 + 60 // LINE_EVERY_S
    assert lines[1].startswith("3/10 cells, 30 rows, 300 tokens/s")
    assert "\x1b" not in out.getvalue()
