"""What many parts cost, and what compaction saves: `python -m benchmarks.cluster.parts [--quick]`.

Synthetic trials in the published schema, of 10,000 and of 100,000 parts with 20 rows each, and one
of a million rows in parts of 2,000. Each is scanned as a resumed run does it, asked, verified,
compacted and asked again; every step runs in a process of its own, whose peak memory is measured,
and with the files in the system's cache, as they have just been written. Prints a table, and as its
last line JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import duckdb
import numpy as np
import pandas  # noqa: F401 - pyarrow looks for it at its first conversion
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from cluster.compaction.compaction import compact
from cluster.plan import Cell, Configuration, Dataset, Generation, ModelSource, Plan
from cluster.results.files import CELL_FACTS, encode_table
from cluster.results.results import MANIFEST, PROMPTS_FILE, Results, part_name
from cluster.results.schema import schema
from cluster.storage.open_store import LocalStore
from jobs.queries.cells import CELLS
from jobs.queries.sql import run_sql

WORDS = " ".join(np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta"], 20_000))
QUERIES = {
    "totals": "SELECT configuration, count(*), sum(completion_tokens), avg(e2e_s) "
    "FROM generations GROUP BY ALL ORDER BY ALL",
    "quantiles": "SELECT configuration, quantile_cont(ttft_s, [0.5, 0.95]) "
    "FROM generations WHERE NOT warmup GROUP BY ALL ORDER BY ALL",
    "pairs": "SELECT sum(b.completion_tokens) / sum(a.completion_tokens) FROM generations a "
    "JOIN generations b USING (dataset, prompt_id, seed) "
    "WHERE a.configuration = 'baseline' AND b.configuration = 'other'",
    "cells": "SELECT configuration, count(*), sum(wall_s) FROM cells GROUP BY ALL ORDER BY ALL",
}


def make_plan(output: str, num_parts: int, rows_per_part: int) -> Plan:
    """Two configurations and two seeds."""
    shards = num_parts // 4
    return Plan(
        run_id="synthetic",
        output=output,
        model=ModelSource(path="none"),
        configurations=(
            Configuration(name="baseline", fingerprint="b"),
            Configuration(name="other", fingerprint="o", vs="baseline"),
        ),
        datasets=(
            Dataset(
                name="prompts",
                num_prompts=shards * rows_per_part,
                first_row=0,
                num_shards=shards,
                fingerprint="d",
            ),
        ),
        seeds=(0, 1),
        generation=Generation(),
        likelihoods=False,
    )


def write_results(results: Results, plan: Plan) -> int:
    """Prompts, parts and receipts, not synced one by one; returns the bytes of the parts."""
    store = results.store
    assert isinstance(store, LocalStore)
    store.replace(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    [dataset] = plan.datasets
    numbers = np.arange(dataset.num_prompts)
    prompts = {
        "dataset": [dataset.name] * len(numbers),
        "row": numbers,
        "prompt_id": [f"p{i:07}" for i in numbers],
        "prompt": [f"question {i}" for i in numbers],
        "is_chat": np.zeros(len(numbers), bool),
    }
    store.replace(PROMPTS_FILE, encode_table(published("prompts", prompts, len(numbers))))
    size = 0
    (store.root / "_receipts").mkdir(exist_ok=True)
    for block in plan.blocks():
        for order, cell in enumerate(block.cells):
            path = store.root / part_name(cell)
            if path.exists():  # of an earlier run that was given the same folder
                size += path.stat().st_size
                continue
            data = encoded_part(cell, np.random.default_rng([block.index, order]))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            told = {"key": cell.key, "rows": cell.stop - cell.start, "bytes": len(data)}
            receipt = store.root / f"_receipts/{cell.key}-{len(data)}-{sha256}.json"
            receipt.write_text(json.dumps({**told, "sha256": sha256}))
            size += len(data)
    return size


def encoded_part(cell: Cell, rng: np.random.Generator) -> bytes:
    count = cell.stop - cell.start
    tokens = np.maximum(2, rng.lognormal(4, 0.6, count)).astype(np.int64)
    ttft_s, tpot_s = 0.02 * rng.lognormal(0, 0.3, count), 0.01 * rng.lognormal(0, 0.1, count)
    places = rng.integers(0, len(WORDS) // 2, count)
    columns = {
        "run_id": ["synthetic"] * count,
        "dataset": [cell.dataset] * count,
        "prompt_id": [f"p{i:07}" for i in range(cell.start, cell.stop)],
        "seed": np.full(count, cell.seed),
        "shard": np.full(count, cell.shard, np.int32),
        "cell": [cell.key] * count,
        "completion_tokens": tokens,
        "base_completion_tokens": tokens,
        "completion_bytes": 4 * tokens,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": ttft_s + tpot_s * (tokens - 1),
        "finish_reason": ["stop"] * count,
        "completion_text": [WORDS[i : i + 4 * n] for i, n in zip(places, tokens, strict=True)],
        "warmup": np.zeros(count, bool),
    }
    facts = cell.model_dump(mode="json") | {"rows": count, "wall_s": float(ttft_s.sum())}
    table = published("generations", columns, count)
    metadata = {**(table.schema.metadata or {}), CELL_FACTS: json.dumps(facts).encode()}
    return encode_table(table.replace_schema_metadata(metadata))


def published(table: str, columns: dict[str, Any], count: int) -> pa.Table:
    kind = schema(table)
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type)
        for f in kind
    ]
    return pa.table(arrays, schema=kind)


def verified(folder: str) -> None:
    assert not list(Results(folder).verify())


STEPS: dict[str, Callable[[str], object]] = {
    "scan": lambda folder: len(Results(folder).sound_keys()),
    "verify": verified,
    "compact": lambda folder: compact(Results(folder), CELLS).num_new,
    **{
        name: lambda folder, sql=sql: run_sql(Results(folder), sql) for name, sql in QUERIES.items()
    },
}


def run_step(name: str, folder: str) -> dict[str, float]:
    """In this process: seconds, and how far its memory grew beyond what imports took."""
    # What the libraries import when they are first used counts for nobody.
    duckdb.from_arrow(encoded_and_read()).to_arrow_table().to_pylist()
    before = memory_bytes("VmRSS")
    start = perf_counter()
    STEPS[name](folder)
    wall_s = perf_counter() - start
    return {
        "wall_s": wall_s,
        "cpu_s": process_time(),
        "peak_bytes": memory_bytes("VmHWM") - before,
    }


def encoded_and_read() -> pa.Table:
    return pq.read_table(pa.BufferReader(encode_table(pa.table({"one": [1]}))))


def memory_bytes(what: str) -> int:
    """Of this process. Not from `getrusage`, whose peak a child inherits from its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {what}")


def in_process(name: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.cluster.parts", "--step", name, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: str, num_parts: int, rows_per_part: int) -> dict[str, Any]:
    results = Results(folder)
    size = write_results(results, make_plan(folder, num_parts, rows_per_part))
    for derived in ("tables", "_verified"):
        results.store.delete_folder(derived)
    found: dict[str, Any] = {
        "num_parts": num_parts,
        "num_rows": num_parts * rows_per_part,
        "parts_bytes": size,
        "scan": in_process("scan", folder),
        "first_query": in_process("totals", folder),
        "raw": {name: in_process(name, folder) for name in QUERIES},
        "verify": in_process("verify", folder),
    }
    answers = [run_sql(results, sql) for sql in QUERIES.values()]
    found["compact"] = in_process("compact", folder)
    found["compacted_bytes"] = sum(e.num_bytes for e in results.store.entries("tables"))
    found["compacted"] = {name: in_process(name, folder) for name in QUERIES}
    for before, sql in zip(answers, QUERIES.values(), strict=True):
        require_equal(before, run_sql(results, sql))
    found["raw_over_compacted"] = {
        name: found["raw"][name]["wall_s"] / found["compacted"][name]["wall_s"] for name in QUERIES
    }
    return found


def require_equal(one: pa.Table, other: pa.Table) -> None:
    """Equal but for the last digits of sums, which are in another order."""
    for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True):
        for x, y in zip(a.values(), b.values(), strict=True):
            assert x == y or np.allclose(np.float64(x), np.float64(y), rtol=1e-12)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Many parts (seconds by the clock; each step in a process of its own)")
    columns = ("parts", "rows", "scan", "verify", "compact", "its peak memory", "first query")
    for name in (*columns, "query raw", "compacted", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        raw = [row["raw"][name]["wall_s"] for name in QUERIES]
        fast = [row["compacted"][name]["wall_s"] for name in QUERIES]
        ratios = row["raw_over_compacted"].values()
        table.add_row(
            f"{row['num_parts']:,}",
            f"{row['num_rows']:,}",
            f"{row['scan']['wall_s']:.2f}",
            f"{row['verify']['wall_s']:.1f}",
            f"{row['compact']['wall_s']:.1f}",
            f"{row['compact']['peak_bytes'] / 2**20:.0f} MiB",
            f"{row['first_query']['wall_s']:.1f}",
            f"{min(raw):.2f}-{max(raw):.2f}",
            f"{min(fast):.2f}-{max(fast):.2f}",
            f"{min(ratios):.1f}-{max(ratios):.1f}x",
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 parts, and 40,000 rows")
    parser.add_argument("--parts", type=int, help="of 20 rows, in one trial alone")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help="where the trials are, or are written; kept")
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options.step, options.folder)))
        return
    sizes = [(10_000, 20), (100_000, 20), (500, 2_000)]
    if options.quick:
        sizes = [(2_000, 20), (20, 2_000)]
    if options.parts:
        sizes = [(options.parts, 20)]
    with tempfile.TemporaryDirectory(prefix="optrial-parts-") as temporary:
        base = options.folder or temporary
        rows = [measure(f"{base}/{parts}x{each}", parts, each) for parts, each in sizes]
    show(rows)
    print(json.dumps({"machine": describe(), "parts": rows}))


if __name__ == "__main__":
    main()
