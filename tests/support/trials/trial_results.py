"""Synthetic results of a trial with planted, known effects, through the real commit protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.plan import (
    Block,
    Cell,
    Configuration,
    Dataset,
    Generation,
    ModelSource,
    Plan,
    digest,
)
from cluster.results.results import MANIFEST, Results, write_prompts

FASTER = 0.90
"""Planted: `fast` takes 0.9 of the time and memory of `baseline`, with the same texts."""
FEWER = 0.80
"""Planted: `short` has 0.8 of the baseline's tokens, and other texts."""

Edit = Callable[[Cell, list[dict[str, Any]], dict[str, Any]], bool | None]
"""Changes a cell's rows and facts before they are committed; False leaves the cell out."""


def configurations() -> tuple[Configuration, ...]:
    made = [
        Configuration(name="baseline"),
        Configuration(name="again", vs="baseline", duplicate_of="baseline"),
        Configuration(name="fast", vs="baseline"),
        Configuration(name="short", vs="baseline"),
    ]
    return tuple(c.model_copy(update={"fingerprint": digest(c.name)}) for c in made)


def make_plan(
    output: str,
    *,
    arms: Sequence[Configuration] | None = None,
    num_datasets: int = 2,
    num_prompts: int = 24,
    num_shards: int = 8,
    seeds: Sequence[int] = (1, 2),
    scorers: Sequence[str] = ("contains",),
) -> Plan:
    datasets = tuple(
        Dataset(
            name=f"set{i}",
            num_prompts=num_prompts,
            first_row=i * num_prompts,
            num_shards=num_shards,
            fingerprint=digest(i),
            scorers=tuple(scorers),
            has_targets=True,
        )
        for i in range(num_datasets)
    )
    return Plan(
        run_id="r",
        output=output,
        model=ModelSource(path="demo"),
        configurations=configurations() if arms is None else tuple(arms),
        datasets=datasets,
        seeds=tuple(seeds),
        generation=Generation(),
    )


def make_results(folder: Path | str, *, edit: Edit | None = None, **options: Any) -> Results:
    """A folder of results; `options` go to `make_plan`."""
    plan = make_plan(str(folder), **options)
    results = Results(str(folder))
    manifest = {"plan": plan.model_dump(mode="json"), "versions": {}, "hardware": {}}
    results.store.create(MANIFEST, json.dumps(manifest).encode())
    write_prompts(results.store, [row for d in plan.datasets for row in _prompt_rows(d)])
    for block in plan.blocks():
        for order, cell in enumerate(block.cells):
            rows, facts = _cell(plan, block, cell, order)
            if edit is None or edit(cell, rows, facts) is not False:
                results.commit(cell, rows, facts)
    return results


def _prompt_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset.name,
            "row": i,
            "prompt_id": f"p{i:03}",
            "prompt": f"question {i}",
            "is_chat": False,
            "target": str(i),
            "choices": ["yes", str(i)],
            "cluster": None,
        }
        for i in range(dataset.num_prompts)
    ]


def _cell(
    plan: Plan, block: Block, cell: Cell, order: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    noise = np.random.default_rng([block.index, order])
    speed = (FASTER if cell.configuration == "fast" else 1.0) * noise.lognormal(0, 0.01)
    make = _generation if cell.kind == "generations" else _likelihood
    rows = [
        row for i in range(cell.start, cell.stop) for row in make(cell, i, speed) if row is not None
    ]
    facts = cell.model_dump(mode="json") | {
        "rows": len(rows),
        "num_errors": 0,
        "wall_s": float(sum(row.get("e2e_s", 0.01) for row in rows)) / 4,
        "completion_tokens": sum(row.get("completion_tokens", 0) for row in rows),
        "base_completion_tokens": sum(row.get("base_completion_tokens", 0) for row in rows),
        "completion_bytes": sum(row.get("completion_bytes", 0) for row in rows),
        "kv_used_peak_bytes": 1000,
        "kv_committed_peak_bytes": 9000 if cell.configuration == "fast" else 10000,
        "kv_reserved_peak_bytes": 20000,
        "weight_bytes_shared": 5000,
        "weight_bytes_private": 0,
        "device": "cpu",
        "started_at": "2026-01-02T03:04:05+00:00",
        "block": block.index,
        "order_in_block": order,
    }
    return rows, facts


def _generation(cell: Cell, i: int, speed: float) -> list[dict[str, Any]]:
    seed = cell.seed or 0
    size = float(np.random.default_rng([i, seed, 7]).lognormal(3.5, 0.4))
    tokens = max(2, round(size))
    text = f"answer {i} seed {seed}"
    if cell.configuration == "short":
        tokens, text = max(2, round(size * FEWER)), "short"
    ttft, tpot = 0.02 * speed, 0.004 * speed
    return [
        {
            "run_id": "r",
            "dataset": cell.dataset,
            "prompt_id": f"p{i:03}",
            "seed": seed,
            "shard": cell.shard,
            "cell": cell.key,
            "prompt_tokens": 5,
            "completion_tokens": tokens,
            "base_completion_tokens": tokens,
            "completion_bytes": 4 * tokens,
            "completion_chars": 4 * tokens,
            "finish_reason": "stop",
            "queue_s": 0.0,
            "ttft_s": ttft,
            "tpot_s": tpot,
            "e2e_s": ttft + tpot * (tokens - 1),
            "completion_text": text,
            "device": "cpu",
            "warmup": False,
        }
    ]


def _likelihood(cell: Cell, i: int, speed: float) -> list[dict[str, Any]]:
    """The model gives 1 bit per byte to targets, 2 under `short`; the right choice costs less."""
    bits = 2.0 if cell.configuration == "short" else 1.0
    size = len(str(i))
    common = {
        "run_id": "r",
        "dataset": cell.dataset,
        "prompt_id": f"p{i:03}",
        "shard": cell.shard,
        "cell": cell.key,
        "num_tokens": size,
    }
    candidates = [(-1, size, bits), (0, 3, 3.0), (1, size, bits)]
    return [
        {**common, "candidate": c, "num_bytes": n, "nats": b * np.log(2) * n}
        for c, n, b in candidates
    ]
