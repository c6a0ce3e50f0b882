"""How a trial scales: `python -m benchmarks.cluster.scale [--quick]`.

Workers: simulated ones whose cells take a fixed time, from 1 to 64 on this machine's cores, against
what that many would need with no cost at all. Cells: a million of them, planned as a new trial does
it and resumed with half of them committed; each in a process of its own, whose memory is measured.
Prints tables, and as its last line JSON.
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

import ray
from rich.console import Console
from rich.table import Table

from benchmarks.cluster.simulated import SimulatedWorker, prepared, simulated_plan
from benchmarks.machine import describe, median_and_spread
from cluster.block_index import Layout
from cluster.plan import Plan, WorkerResources
from cluster.results.files import part_name
from cluster.results.results import Results
from cluster.scheduling.scheduler import Scheduler

RemoteSimulated = ray.remote(SimulatedWorker)
ARMS = ("baseline", "second", "third", "fourth")
GOAL = 0.9
"""Least efficiency at the most workers."""


def efficiency(num_workers: int, latency_s: float, blocks_per_worker: int) -> dict[str, Any]:
    """One run of cells that take `latency_s`: ideal over measured wall time."""
    with tempfile.TemporaryDirectory(prefix="optrial-") as folder:
        plan = simulated_plan(
            folder,
            num_shards=num_workers * blocks_per_worker,
            rows_per_shard=8,
            latency_s=latency_s,
            workers=WorkerResources(count=num_workers),
        )
        scheduler = Scheduler(plan, prepared(plan), remote_worker=RemoteSimulated)
        scheduler.start()
        assert scheduler.crew.num_alive == num_workers
        start = perf_counter()
        outcome = scheduler.run()
        wall_s = perf_counter() - start
        assert outcome.is_complete
        assert outcome.executions == len(list(plan.blocks()))
    return {"wall_s": wall_s, "efficiency": latency_s * blocks_per_worker / wall_s}


def measured_efficiency(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    ray.init(num_cpus=64, include_dashboard=False, object_store_memory=100 << 20,
             log_to_driver=False, logging_level="ERROR")  # fmt: skip
    found = []
    try:
        for num_workers in arguments.workers:
            runs = [
                efficiency(num_workers, arguments.latency_s, arguments.blocks)
                for _ in range(arguments.rounds)
            ]
            efficiencies = median_and_spread([run["efficiency"] for run in runs])
            found.append({"workers": num_workers, "latency_s": arguments.latency_s,
                          "blocks_per_worker": arguments.blocks, "runs": runs,
                          "efficiency": efficiencies})  # fmt: skip
    finally:
        ray.shutdown()
    return found


def million_plan(folder: str, num_cells: int) -> Plan:
    return simulated_plan(
        folder, num_shards=num_cells // len(ARMS), rows_per_shard=1, configurations=ARMS
    )


def commit_half(plan: Plan) -> int:
    """The names of every second cell's part and receipt, one byte each: a scan reads no more."""
    layout, out = Layout(plan), Path(plan.output)
    (out / "_receipts").mkdir(parents=True)
    for name in ARMS:
        (out / f"generations/configuration=c-{name}").mkdir(parents=True)
    num = 0
    for index in range(0, layout.num_blocks, 2):
        for cell in layout.block(index).cells:
            (out / part_name(cell)).write_bytes(b"x")
            (out / f"_receipts/{cell.key}-1-{'0' * 64}.json").touch()
            num += 1
    return num


def plan_step(folder: str, num_cells: int) -> dict[str, Any]:
    """The scheduler's part of a start: what is there, what is missing, in which order."""
    plan = million_plan(folder, num_cells)
    before = _peak_bytes()
    start = perf_counter()
    keys = Results(plan.output).sound_keys()
    scan_s = perf_counter() - start
    start = perf_counter()
    num_missing = sum(mask.bit_count() for _, _, mask in Layout(plan).missing(keys))
    plan_s = perf_counter() - start
    scheduler = Scheduler(plan, Results(plan.output))
    assert scheduler.num_pending == num_missing
    return {
        "num_cells": num_cells,
        "num_committed": len(keys),
        "num_pending": scheduler.num_pending,
        "scan_s": scan_s,
        "plan_s": plan_s,
        "memory_bytes": _peak_bytes() - before,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(folder: str, num_cells: int) -> dict[str, Any]:
    """`plan_step` in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.cluster.scale",
        "--step",
        folder,
        "--cells",
        str(num_cells),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured_cells(num_cells: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="optrial-") as folder:
        fresh = apart(folder, num_cells) | {"state": "new"}
        commit_half(million_plan(folder, num_cells))
        resumed = apart(folder, num_cells) | {"state": "half is committed"}
        assert resumed["num_committed"] == resumed["num_pending"] == num_cells // 2
    return [fresh, resumed]


def print_tables(console: Console, workers: list[dict[str, Any]], cells: list[Any]) -> None:
    table = Table(title="Efficiency: ideal over measured time (limit: 1)")
    for heading in ("workers", "cell", "efficiency: median (least-largest)"):
        table.add_column(heading, justify="right")
    for row in workers:
        e = row["efficiency"]
        table.add_row(str(row["workers"]), f"{row['latency_s']:g} s",
                      f"{e['median']:.3f} ({e['min']:.3f}-{e['max']:.3f})")  # fmt: skip
    console.print(table)
    table = Table(title="Planning and resuming")
    for heading in ("cells", "state", "scan", "plan", "memory"):
        table.add_column(heading, justify="right")
    for row in cells:
        table.add_row(f"{row['num_cells']:,}", row["state"], f"{row['scan_s']:.1f} s",
                      f"{row['plan_s']:.1f} s", f"{row['memory_bytes'] >> 20} MiB")  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--latency-s", type=float, default=2.0)
    parser.add_argument("--blocks", type=int, default=10, help="per worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(plan_step(arguments.step, arguments.cells)))
        return
    if arguments.quick:
        arguments.workers, arguments.rounds, arguments.cells = [1, 8], 1, 20_000
        arguments.latency_s, arguments.blocks = 0.5, 6
    cells = measured_cells(arguments.cells)
    workers = measured_efficiency(arguments)
    console = Console(width=100)
    print_tables(console, workers, cells)
    last = workers[-1]
    goals = {
        f"efficiency at {last['workers']} workers at least {GOAL}": last["efficiency"]["median"]
        >= GOAL
    }
    for goal, is_met in goals.items():
        console.print(f"{'met' if is_met else 'NOT MET'}: {goal}")
    print(
        json.dumps(
            {"benchmark": "scale", "machine": describe(), "workers": workers, "cells": cells,
             "goals": goals}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
