"""Runs whose rows are synthetic, and go through the real commit."""

from __future__ import annotations

from typing import Any

import numpy as np
import trial_results

from cluster.plan import Cell
from cluster.results import Results
from jobs import evaluate as evaluating


def noisy(cell: Cell, rows: list[dict[str, Any]]) -> None:
    """`fast` has tokens of the same mean as the baseline, and much noise; `short` is as planted."""
    for i, row in enumerate(rows if cell.configuration == "fast" else ()):
        if "completion_tokens" in row:
            draw = np.random.default_rng([cell.start + i, cell.seed or 0, 11])
            row["completion_tokens"] = round(row["completion_tokens"] * draw.lognormal(0, 0.12))


class Ran:
    """What is run is synthetic, and goes through the real commit."""

    def __init__(self) -> None:
        self.cells: list[list[Cell]] = []
        """Of each run."""
        self.num_at_most = 10**9
        """Cells before a run is cut short."""

    def __call__(self, plan: Any, results: Results, *, freeze: Any = None, **_: Any) -> Any:
        if freeze is not None:
            freeze([])
        there = results.committed_keys()
        all_cells = [cell for block in plan.blocks() for cell in block.cells]
        self.cells.append([])
        prompts = [row["prompt_id"] for row in results.prompts().to_pylist()]
        for block in plan.blocks():
            first = plan.dataset(block.dataset).first_row
            for order, cell in enumerate(block.cells):
                if cell.key in there:
                    continue
                if len(self.cells[-1]) == self.num_at_most:
                    raise KeyboardInterrupt
                rows, facts = trial_results._cell(plan, block, cell, order)
                for row in rows:
                    row["prompt_id"] = prompts[first + int(row["prompt_id"][1:])]
                noisy(cell, rows)
                results.commit(cell, rows, facts)
                self.cells[-1].append(cell)
        outcome = evaluating.Outcome(cells_total=len(all_cells), cells_done=len(all_cells))
        return evaluating._finish(results, outcome, lambda stage: None)
