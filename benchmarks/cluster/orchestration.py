"""What Ray, scheduling and Parquet cost per cell: `python -m benchmarks.cluster.orchestration`.

The engine is a fake of fixed latency, so that all else that the clock shows is overhead. Prints a
table, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from time import perf_counter, sleep
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from cluster.engine.completion import Completion, EngineStats, Request
from cluster.plan import Configuration, Dataset, Generation, ModelSource, Plan, WorkerResources
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.scheduling.scheduler import Scheduler
from cluster.worker.worker import Arm, Worker
from optim.cache.slot_cache import KVAccounts

ROWS_PER_CELL = 4


class FixedLatencyEngine:
    """Takes the same time for every call, whatever is asked."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.stats = EngineStats()

    def reset_stats(self) -> None:
        self.stats = EngineStats()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        sleep(self.latency_s)
        for request in requests:
            yield Completion(
                request,
                prompt_tokens=8,
                ids=[1, 2, 3],
                text="a b c",
                finish_reason="length",
                base_tokens_spent=3,
                started_at=datetime.now(UTC),
                queue_s=0.0,
                ttft_s=0.1,
                e2e_s=0.3,
                kv=KVAccounts(100, 200, 300),
            )


class FixedLatencyWorker(Worker):
    """A worker whose arms are fake engines; all else is the real one."""

    def open(self) -> dict[str, Any]:
        self.base_tokenizer = lambda text, add_special_tokens: {"input_ids": text.split()}
        return {"device": self.device, "node": self.node}

    def load_configuration(self, name: str) -> None:
        engine: Any = FixedLatencyEngine(float(self.plan.model.path.removeprefix("latency:")))
        configuration = self.plan.configuration(name)
        self.arms[name] = Arm(configuration, engine, 0, 0, prefill="", is_warm=True)


RemoteFixedLatencyWorker = ray.remote(FixedLatencyWorker)


def make_plan(output: str, cells: int, workers: int, latency_s: float) -> Plan:
    """Two configurations, one seed, as many shards as give the cells."""
    shards = cells // 2
    return Plan(
        run_id="orchestration",
        output=output,
        model=ModelSource(path=f"latency:{latency_s}"),
        configurations=(
            Configuration(name="baseline", fingerprint="b"),
            Configuration(name="other", fingerprint="o", vs="baseline"),
        ),
        datasets=(
            Dataset(
                name="prompts",
                num_prompts=shards * ROWS_PER_CELL,
                first_row=0,
                num_shards=shards,
                fingerprint="d",
            ),
        ),
        seeds=(0,),
        generation=Generation(),
        likelihoods=False,
        workers=WorkerResources(count=workers, cpus=1),
    )


def measure(cells: int, workers: int, latency_s: float) -> dict[str, Any]:
    """Run a trial of `cells` cells; seconds, bytes and rows per second."""
    with tempfile.TemporaryDirectory(prefix="optrial-") as folder:
        plan = make_plan(f"{folder}/out", cells, workers, latency_s)
        results = Results(plan.output)
        prompts = [
            {
                "dataset": "prompts",
                "row": i,
                "prompt_id": f"p{i}",
                "prompt": "some words to go on from",
                "is_chat": False,
            }
            for i in range(plan.datasets[0].num_prompts)
        ]
        write_prompts(results.store, prompts)
        manifest = json.dumps({"plan": plan.model_dump(mode="json")})
        results.store.create(MANIFEST, manifest.encode())
        scheduler = Scheduler(plan, results, remote_worker=RemoteFixedLatencyWorker)
        scheduler.start()
        del prompts
        process = psutil.Process()
        # The first hundred blocks fill Ray's and Arrow's own pools; growth is counted after them.
        peak, base, seen = 0, 0, 0

        def watch(progress: Any) -> None:
            nonlocal peak, base, seen
            seen += 1
            if seen == 100:
                base = process.memory_info().rss
            if seen % 50 == 0:
                peak = max(peak, process.memory_info().rss)

        scheduler.on_progress = watch
        start = perf_counter()
        outcome = scheduler.run()
        wall_s = perf_counter() - start
        assert outcome.is_complete
        start = perf_counter()
        committed = len(results.committed_keys())
        scan_s = perf_counter() - start
        assert committed == cells
    return {
        "cells": cells,
        "workers": workers,
        "latency_s": latency_s,
        "wall_s": wall_s,
        "overhead_per_cell_s": wall_s * workers / cells - latency_s,
        "rows_per_s": outcome.rows / wall_s,
        "driver_growth_bytes": max(peak - base, 0),
        "resume_scan_s": scan_s,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cells", type=int, default=10_000)
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    ray.init(
        num_cpus=max(chosen.workers, 2),
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        rows = [
            measure(min(chosen.cells, 400), chosen.workers, 0.05),
            measure(chosen.cells, chosen.workers, 0.0),
        ]
    finally:
        ray.shutdown()
    table = Table(title="Overhead of Ray, scheduling and Parquet (limit: 0)")
    names = ("cells", "latency", "overhead per cell", "rows/s", "driver growth", "resume scan")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["cells"]),
            f"{row['latency_s'] * 1e3:.0f} ms",
            f"{row['overhead_per_cell_s'] * 1e3:.1f} ms",
            f"{row['rows_per_s']:.0f}",
            f"{row['driver_growth_bytes'] / 2**20:.1f} MiB",
            f"{row['resume_scan_s']:.2f} s",
        )
    Console(width=100).print(table)
    print(json.dumps({"machine": describe(), "orchestration": rows}))


if __name__ == "__main__":
    main()
