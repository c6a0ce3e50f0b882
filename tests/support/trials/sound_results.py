"""What must hold of a trial's results, whatever happened while it ran."""

from __future__ import annotations

from pathlib import Path

from cluster.plan import Plan
from cluster.results.results import Results
from cluster.results.verification import faults_of


def require_sound(
    plan: Plan, results: Results, *, is_complete: bool = True, num_killed: int = 0
) -> None:
    """No row twice, none missing, nothing half-written, every part as its receipt says.

    Of `num_killed` processes that were ended from outside, each may have been writing: its draft
    is left until a run's start sweeps it.
    """
    table = results.read("generations", ["dataset", "seed", "prompt_id"])
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert len(rows) == len(set(rows))
    if is_complete:
        assert list(faults_of(results)) == []
        cells = [cell for block in plan.blocks() for cell in block.cells]
        assert len(rows) == sum(cell.stop - cell.start for cell in cells)
    folder = Path(plan.output) / "_tmp"
    drafts = list(folder.iterdir()) if folder.exists() else []
    assert len(drafts) <= num_killed
    assert results.sweep(older_than_s=-1) == len(drafts)
