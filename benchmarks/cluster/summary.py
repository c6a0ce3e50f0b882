"""The summary of 100 million rows, against plain SQL.

    python -m benchmarks.cluster.summary [--quick]

Synthetic results in the published schema (8 configurations, 2 datasets, 5 seeds; 125,000 rows a
part) are written below a temporary folder, which takes 4.4 GB at full size. Then `write_summary`
and the same aggregation in plain DuckDB SQL over the same files run by turns, each in a process of
its own, whose peak memory is measured. The SQL is tried as one statement, and as one for each
measure where that does not fit the memory. Prints a table, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe, median_and_spread
from cluster.plan import Cell, Configuration, Dataset, Generation, ModelSource, Plan
from cluster.results.receipts import sha256_of, write_receipt
from cluster.results.results import CELL_FACTS, MANIFEST, Results, part_name
from cluster.results.schema import schema
from jobs.queries.measures import MEASURES
from jobs.queries.summary import SUMMARY_FILE, write_summary

ROWS_PER_PART, THREADS = 125_000, 2
MEMORY = 8 * 2**30
ROW_MEASURES = [measure for measure in MEASURES if measure.of == "row"]
QUANTILES = "[0.5, 0.9, 0.95, 0.99]"
ONE, EACH = "one statement", "one for each measure"


def make_plan(output: str, num_shards: int) -> Plan:
    return Plan(
        run_id="synthetic",
        output=output,
        model=ModelSource(path="none"),
        configurations=tuple(
            Configuration(name=f"c{i}", vs="c0" if i else None, fingerprint=str(i))
            for i in range(8)
        ),
        datasets=tuple(
            Dataset(
                name=f"set{i}",
                num_prompts=num_shards * ROWS_PER_PART,
                first_row=i * num_shards * ROWS_PER_PART,
                num_shards=num_shards,
                fingerprint=str(i),
            )
            for i in range(2)
        ),
        seeds=(0, 1, 2, 3, 4),
        generation=Generation(),
    )


def write_results(results: Results, plan: Plan) -> int:
    """All parts of the plan; returns their bytes."""
    results.store.create(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    size = 0
    for block in plan.blocks():
        for number, cell in enumerate(block.cells):
            rows = synthetic_rows(cell, np.random.default_rng([block.index, number]))
            facts = cell.model_dump(mode="json") | {
                "rows": ROWS_PER_PART,
                "wall_s": pa.compute.sum(rows["e2e_s"]).as_py() / 8,
                **{
                    name: pa.compute.sum(rows[name]).as_py()
                    for name in ("completion_tokens", "base_completion_tokens", "completion_bytes")
                },
            }
            metadata = {**(rows.schema.metadata or {}), CELL_FACTS: json.dumps(facts).encode()}
            path = Path(results.store.path(part_name(cell)))
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows.replace_schema_metadata(metadata), path, compression="zstd")
            num_bytes = path.stat().st_size
            sha256 = sha256_of(results.store, part_name(cell))
            write_receipt(results.store, cell.key, sha256, num_bytes, ROWS_PER_PART)
            size += num_bytes
    return size


def synthetic_rows(cell: Cell, rng: np.random.Generator) -> pa.Table:
    """Log-normal lengths and times; 1 row of 1,000 failed, and 1 of 100 is of a cold engine."""
    count = cell.stop - cell.start
    tokens = np.maximum(2, rng.lognormal(4, 0.6, count)).astype(np.int64)
    ttft_s, tpot_s = 0.02 * rng.lognormal(0, 0.3, count), 0.01 * rng.lognormal(0, 0.1, count)
    failed = rng.random(count) < 0.001
    full = {
        "completion_tokens": tokens,
        "base_completion_tokens": tokens + rng.integers(0, 5, count),
        "completion_bytes": 4 * tokens + rng.integers(0, 9, count),
        "queue_s": 0.1 * rng.random(count),
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": ttft_s + tpot_s * (tokens - 1),
    }
    columns = {name: pa.array(values, mask=failed) for name, values in full.items()} | {
        "prompt_tokens": rng.integers(10, 400, count),
        "dataset": [cell.dataset] * count,
        "prompt_id": [f"p{i:07}" for i in range(cell.start, cell.stop)],
        "seed": np.full(count, cell.seed),
        "shard": np.full(count, cell.shard, np.int32),
        "cell": [cell.key] * count,
        "run_id": ["synthetic"] * count,
        "finish_reason": np.where(failed, "error", np.where(tokens > 250, "length", "stop")),
        "error": pa.array(np.full(count, "out of memory"), mask=~failed),
        "warmup": rng.random(count) < 0.01,
    }
    fields = [field for field in schema("generations") if field.name in columns]
    published = pa.schema(fields, metadata=schema("generations").metadata)
    return pa.table([pa.array(columns[f.name], f.type) for f in fields], schema=published)


def plain_sql(folder: str, names: list[str]) -> str:
    """One statement that a person would write for these measures, over the files themselves."""
    measures = {measure.name: measure for measure in ROW_MEASURES}
    values, statistics = [], []
    for name in names:
        measure = measures[name]
        cold = " AND NOT warmup" if measure.is_timed else ""
        usable = f"CASE WHEN error IS NULL{cold} THEN"
        values.append(f"{usable} {measure.value} END AS {name}")
        mean = f"avg({name})"
        if measure.below is not None:
            values += [
                f"{usable} {measure.above} END AS {name}_above",
                f"{usable} {measure.below} END AS {name}_below",
            ]
            mean = f"sum({name}_above) / sum({name}_below)"
        statistics.append(
            f"count({name}), {mean}, stddev_samp({name}), min({name}), "
            f"quantile_cont({name}, {QUANTILES}), max({name}), sum({name})"
        )
    return f"""
        SELECT configuration, dataset, seed, count(*), count(error),
            count(*) FILTER (warmup), count(*) FILTER (finish_reason = 'stop'),
            count(*) FILTER (finish_reason = 'length'), {", ".join(statistics)}
        FROM (SELECT configuration, dataset, seed, error, warmup, finish_reason,
                {", ".join(values)}
            FROM read_parquet('{folder}/generations/*/*.parquet', hive_partitioning = true))
        GROUP BY GROUPING SETS
            ((configuration, dataset, seed), (configuration, dataset), (configuration))"""


def run_plain(folder: str, statements: list[list[str]]) -> list[list[Any]]:
    """What each statement, of these measures, gives."""
    with tempfile.TemporaryDirectory() as spill:
        connection = duckdb.connect(
            config={"threads": THREADS, "memory_limit": f"{MEMORY}B", "temp_directory": spill}
        )
        return [connection.execute(plain_sql(folder, names)).fetchall() for names in statements]


def run_once(who: str, folder: str) -> dict[str, Any]:
    """In this process: seconds, and the peak of its memory."""
    names = [measure.name for measure in ROW_MEASURES]
    start = perf_counter()
    failure = None
    try:
        if who == "ours":
            write_summary(Results(folder))
        else:
            run_plain(folder, [names] if who == ONE else [[name] for name in names])
    except duckdb.OutOfMemoryException as error:
        failure = str(error).splitlines()[0]
    seconds = perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "failure": failure,
    }


def measure_in_process(who: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cluster.summary", "--run", who, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def largest_difference(folder: str) -> float:
    """The largest relative difference between the two answers, over all numbers of rows."""
    names = [measure.name for measure in ROW_MEASURES]
    ours = {
        (row["configuration"], row["dataset"], row["seed"], row["metric"]): row
        for row in pq.read_table(Path(folder) / SUMMARY_FILE).to_pylist()
    }
    worst, compared = 0.0, 0
    for name, rows in zip(names, run_plain(folder, [[name] for name in names]), strict=True):
        for configuration, dataset, seed, num_rows, *counts_and_statistics in rows:
            row = ours[configuration.removeprefix("c-"), dataset or "*", seed, name]
            n, mean, sd, least, quantiles, most, total = counts_and_statistics[4:]
            theirs = [num_rows, *counts_and_statistics[:4], n, mean, sd, least, *quantiles, most]
            keys = ["num_rows", "num_errors", "num_warmup", "num_stop", "num_length", "n", "mean"]
            keys += ["sd", "min", "p50", "p90", "p95", "p99", "max"]
            pairs = [(row[key], value) for key, value in zip(keys, theirs, strict=True)]
            if row["total"] is not None:
                pairs.append((row["total"], float(total)))
            worst = max(worst, *(abs(a - b) / max(abs(b), 1e-300) for a, b in pairs))
            compared += len(pairs)
    assert compared
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 million rows, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where results are, or are written; kept")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_once(options.run, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or f"{temporary}/results"
        report(folder, 1 if options.quick else 10, 1 if options.quick else options.rounds)


def report(folder: str, num_shards: int, rounds: int) -> None:
    results = Results(folder)
    if not results.store.exists(MANIFEST):
        write_results(results, make_plan(folder, num_shards))
    parts = results.parts("generations")
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], ONE: [], EACH: []}
    for _ in range(rounds):
        for who, found in runs.items():
            if not (found and found[0]["failure"]):
                found.append(measure_in_process(who, folder))
    trial = {
        "num_rows": len(parts) * ROWS_PER_PART,
        "size_bytes": sum(Path(results.store.path(part.name)).stat().st_size for part in parts),
        "largest_relative_difference": largest_difference(folder),
    }
    result = {"machine": {**describe(), "threads": THREADS}, **trial, **compared(runs)}
    show(result)
    print(json.dumps(result))


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each, and ours over the quickest SQL that fits the memory.

    Processor time is beside the clock's, as other load on the machine does less to it.
    """
    done = {who: found for who, found in runs.items() if not found[0]["failure"]}
    medians = {
        key: {who: median_and_spread([run[key] for run in found]) for who, found in done.items()}
        for key in ("seconds", "cpu_s")
    }
    ratios = {
        key: of["ours"]["median"]
        / min(found["median"] for who, found in of.items() if who != "ours")
        for key, of in medians.items()
    }
    return {
        **medians,
        "ours_over_sql": ratios,
        "peak_bytes": {who: max(run["peak_bytes"] for run in found) for who, found in runs.items()},
        "out_of_memory": {
            who: found[0]["failure"] for who, found in runs.items() if who not in done
        },
    }


def show(result: dict[str, Any]) -> None:
    title = f"{result['num_rows']:,} rows, {result['size_bytes'] / 1e9:.2f} GB of Parquet"
    table = Table("summary by", "seconds", "range", "processor s", "peak memory", title=title)
    for who, peak in result["peak_bytes"].items():
        shown = f"{peak / 2**30:.2f} GiB"
        if who in result["out_of_memory"]:
            table.add_row(who, "out of memory", "", "", shown)
            continue
        s, cpu = result["seconds"][who], result["cpu_s"][who]["median"]
        times = f"{s['min']:.1f} to {s['max']:.1f}"
        table.add_row(who, f"{s['median']:.1f}", times, f"{cpu:.1f}", shown)
    console = Console()
    console.print(table)
    ratios = result["ours_over_sql"]
    console.print(
        f"Ours takes {ratios['seconds']:.2f}x the quickest SQL that fits {MEMORY / 2**30:.0f} GiB "
        f"({ratios['cpu_s']:.2f}x the processor time); the largest relative difference between "
        f"their numbers is {result['largest_relative_difference']:.1e}."
    )


if __name__ == "__main__":
    main()
