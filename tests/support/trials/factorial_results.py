"""Synthetic results of a 2 x 2 factorial with planted effects: what each factor does is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from trial_results import make_results

from cluster.plan import Cell, Configuration, digest
from cluster.results.results import Results

ENCODING = 0.8
"""`vocabulary: new` takes 0.8 of the tokens for the same text."""
LENGTH = 0.95
"""... and writes 0.95 of the text, in base tokens."""
SPEED = 0.9
"""`sparse: on` takes 0.9 of the time, and changes no text."""


def arms(*, leave_out: str | None = None) -> tuple[Configuration, ...]:
    made = [Configuration(name="old.off", levels={"vocabulary": "old", "sparse": "off"})]
    made += [
        Configuration(
            name=f"{v}.{s}", vs="old.off", levels={"vocabulary": v, "sparse": s}
        )
        for v, s in (("old", "on"), ("new", "off"), ("new", "on"))
    ]  # fmt: skip
    made.append(Configuration(name="repeat", vs="old.off", duplicate_of="old.off"))
    return tuple(
        c.model_copy(update={"fingerprint": digest(c.name)}) for c in made if c.name != leave_out
    )


def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if cell.kind != "generations":
        return
    is_new, is_sparse = "new" in cell.configuration, cell.configuration.endswith(".on")
    for i, row in enumerate(rows):
        noise = np.random.default_rng([cell.start + i, cell.seed or 0, is_new])
        base = row["base_completion_tokens"]
        if is_new:
            base = max(2, round(base * LENGTH * math.exp(noise.normal(0, 0.05))))
            row["completion_text"] += " in other words"
        tokens = max(2, round(base * ENCODING)) if is_new else base
        row |= {"completion_tokens": tokens, "base_completion_tokens": base}
        row["prompt_tokens"] = 4 if is_new else 5
        row["completion_bytes"] = row["completion_chars"] = 4 * base
        for name in ("ttft_s", "tpot_s"):
            row[name] *= SPEED if is_sparse else 1.0
        row["e2e_s"] = row["ttft_s"] + row["tpot_s"] * (tokens - 1)
    for name in ("completion_tokens", "base_completion_tokens", "completion_bytes"):
        facts[name] = sum(row[name] for row in rows)


def factorial_results(folder: Path | str, **options: Any) -> Results:
    """Two datasets of 24 prompts, two seeds, the four combinations, and the baseline's repeat."""
    return make_results(folder, **({"edit": edit, "arms": arms()} | options))
