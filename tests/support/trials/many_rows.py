"""Results of many rows, made in columns: a factorial of 8 configurations with known effects."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from trial_results import make_plan

from cluster.plan import Cell, Configuration, Plan, digest
from cluster.results.results import CELL_FACTS, MANIFEST, PROMPTS_FILE, Results, part_name
from cluster.results.schema import schema

FACTORS = {"vocabulary": 0.8, "sparsity": 0.9, "paging": 1.0}
"""What each one leaves of the completion tokens."""


def factorial() -> tuple[Configuration, ...]:
    made = []
    for on in itertools.product((False, True), repeat=len(FACTORS)):
        levels = {name: "on" if is_on else "off" for name, is_on in zip(FACTORS, on, strict=True)}
        name = ".".join(f"{factor}-{level}" for factor, level in levels.items())
        reference = None if not any(on) else made[0].name
        made.append(Configuration(name=name, vs=reference, levels=levels, fingerprint=digest(name)))
    return tuple(made)


def make_many(folder: Path, *, num_prompts: int, num_seeds: int, num_arms: int = 8) -> Results:
    """`num_prompts` x `num_seeds` rows of each configuration, and one target per prompt."""
    plan = make_plan(
        str(folder), arms=factorial()[:num_arms], num_datasets=1, num_prompts=num_prompts,
        num_shards=8, seeds=range(num_seeds), scorers=(),
    )  # fmt: skip
    results = Results(str(folder))
    manifest = {"plan": plan.model_dump(mode="json"), "versions": {}, "hardware": {}}
    results.store.create(MANIFEST, json.dumps(manifest).encode())
    results.store.create(PROMPTS_FILE, _encoded("prompts", _prompts(plan), {}))
    for block in plan.blocks():
        for order, cell in enumerate(block.cells):
            columns, facts = _cell(plan, cell, block.index, order)
            # Not committed one by one: a disk's syncs would take longer than the rows.
            target = folder / part_name(cell)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_encoded(cell.kind, columns, facts))
    return results


def _encoded(table: str, columns: dict[str, Any], facts: dict[str, Any]) -> bytes:
    kind = schema(table)
    size = len(columns["prompt_id"])
    arrays = [
        _typed(columns[f.name], f.type) if f.name in columns else pa.nulls(size, f.type)
        for f in kind
    ]
    metadata = {**(kind.metadata or {}), CELL_FACTS: json.dumps(facts).encode()}
    sink = pa.BufferOutputStream()
    made = pa.table(arrays, schema=kind.with_metadata(metadata))
    pq.write_table(made, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _typed(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _prompts(plan: Plan) -> dict[str, Any]:
    [dataset] = plan.datasets
    numbers = np.arange(dataset.num_prompts)
    return {
        "dataset": pa.repeat(dataset.name, len(numbers)),
        "row": numbers,
        "prompt_id": _texts("p", numbers),
        "prompt": _texts("question ", numbers),
        "is_chat": np.zeros(len(numbers), bool),
        "target": _texts("", numbers),
    }


def _texts(start: str, numbers: Any) -> pa.Array:
    digits = pc.cast(pa.array(numbers), pa.string())
    return pc.binary_join_element_wise(pa.scalar(start), digits, "")


def _cell(plan: Plan, cell: Cell, block: int, order: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng([block, order])
    levels = plan.configuration(cell.configuration).levels
    left = float(np.prod([FACTORS[f] for f, level in levels.items() if level == "on"]))
    numbers = np.arange(cell.start, cell.stop)
    size = len(numbers)
    columns: dict[str, Any] = {
        "run_id": pa.repeat("r", size),
        "dataset": pa.repeat(cell.dataset, size),
        "prompt_id": _texts("p", numbers),
        "shard": np.full(size, cell.shard),
        "cell": pa.repeat(cell.key, size),
    }
    facts = cell.model_dump(mode="json") | {
        "rows": size, "num_errors": 0, "block": block, "order_in_block": order, "device": "cpu",
        "started_at": f"2026-01-02T{block // 60 % 24:02}:{block % 60:02}:{order:02}+00:00",
    }  # fmt: skip
    if cell.kind == "likelihoods":
        nats = np.log(2) * 5 * (2 - left) * rng.lognormal(0, 0.01, size)
        return columns | {
            "candidate": np.full(size, -1), "num_tokens": np.full(size, 2),
            "num_bytes": np.full(size, 5), "nats": nats,
        }, facts  # fmt: skip
    # Prompts differ alike under every configuration, as pairs do.
    base = np.random.default_rng([cell.seed or 0, cell.shard]).lognormal(3.5, 0.5, size)
    tokens = np.maximum(2, np.round(base * left * rng.lognormal(0, 0.2, size))).astype(np.int64)
    speed = rng.lognormal(0, 0.01)
    ttft = 0.02 * speed * rng.lognormal(0, 0.2, size)
    tpot = 0.004 * speed * rng.lognormal(0, 0.1, size)
    e2e = ttft + tpot * (tokens - 1)
    word = "the same words again and again; " * 3
    columns |= {
        "seed": np.full(size, cell.seed), "prompt_tokens": numbers % 50 + 5,
        "completion_tokens": tokens, "base_completion_tokens": tokens,
        "completion_bytes": 4 * tokens, "completion_chars": 4 * tokens,
        "finish_reason": pa.repeat("stop", size), "queue_s": np.zeros(size), "ttft_s": ttft,
        "tpot_s": tpot, "e2e_s": e2e, "warmup": np.zeros(size, bool),
        "completion_text": _texts(word, tokens),
    }  # fmt: skip
    kv = 1_000_000 * left
    facts |= {
        "wall_s": float(e2e.sum()) / 4, "completion_tokens": int(tokens.sum()),
        "base_completion_tokens": int(tokens.sum()), "completion_bytes": int(4 * tokens.sum()),
        "kv_used_peak_bytes": int(kv * 0.7), "kv_committed_peak_bytes": int(kv * speed),
        "kv_used_byte_s": kv * 0.5, "kv_committed_byte_s": kv * 0.8, "kv_reserved_byte_s": kv,
    }  # fmt: skip
    return columns, facts
