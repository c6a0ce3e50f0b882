"""Runs whose rows are synthetic, and go through the real commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import trial_results

from cluster.plan import Block, Cell, Plan
from cluster.results.results import Results
from jobs.trial import evaluate as evaluating


def noisy(cell: Cell, rows: list[dict[str, Any]]) -> None:
    """`fast` has tokens of the same mean as the baseline, and much noise; `short` is as planted."""
    for i, row in enumerate(rows if cell.configuration == "fast" else ()):
        if "completion_tokens" in row:
            draw = np.random.default_rng([cell.start + i, cell.seed or 0, 11])
            row["completion_tokens"] = round(row["completion_tokens"] * draw.lognormal(0, 0.12))


def made(
    plan: Plan, block: Block, cell: Cell, order: int, prompts: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A cell's rows and facts: of the prompts as run, and of the candidates that these have."""
    rows, facts = trial_results._cell(plan, block, cell, order)
    first, kept = plan.dataset(block.dataset).first_row, []
    for row in rows:
        prompt = prompts[first + int(row["prompt_id"][1:])]
        candidates = {-1: prompt["target"], **dict(enumerate(prompt["choices"] or ()))}
        if "candidate" not in row or candidates.get(row["candidate"]):
            kept.append(row | {"prompt_id": prompt["prompt_id"]})
    return kept, facts | {"rows": len(kept)}


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
        prompts = results.prompts().to_pylist()
        for block in plan.blocks():
            for order, cell in enumerate(block.cells):
                if cell.key in there:
                    continue
                if len(self.cells[-1]) == self.num_at_most:
                    raise KeyboardInterrupt
                rows, facts = made(plan, block, cell, order, prompts)
                noisy(cell, rows)
                results.commit(cell, rows, facts)
                self.cells[-1].append(cell)
        outcome = evaluating.Outcome(cells_total=len(all_cells), cells_done=len(all_cells))
        return evaluating._finish(results, outcome, lambda stage: None)
