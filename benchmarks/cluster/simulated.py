"""A worker without a model: cells take a fixed time, and commits are real.

What is left of a run is what scheduling, Ray and Parquet cost. It imports no torch, so that many of
its processes fit on a small machine. What it writes depends on configuration, seed and prompt
alone, as the real worker's deterministic columns do.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from cluster.plan import (
    Block,
    Cell,
    Configuration,
    Dataset,
    Generation,
    ModelSource,
    Plan,
    WorkerResources,
)
from cluster.results.files import encode_part
from cluster.results.results import MANIFEST, Results, write_prompts


class SimulatedWorker:
    """Has the methods of `cluster.worker.worker.Worker` that the scheduler calls."""

    def __init__(self, plan: str, index: int) -> None:
        self.plan = Plan.model_validate_json(plan)
        self.name, self.node = f"worker-{index}", socket.gethostname()
        self.results = Results(self.plan.output)
        self.latency_s = float(self.plan.model.path.removeprefix("latency:"))

    def open(self) -> dict[str, Any]:
        return {"worker": self.name, "device": "cpu", "node": self.node, "pid": os.getpid()}

    def load_configuration(self, name: str) -> None:
        """Loads nothing, and warms up: a process's first part costs it imports."""
        self.plan.configuration(name)
        encode_part("generations", [], {})

    def run(self, block: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        todo = Block.model_validate_json(block)
        cells = [cell for cell in todo.cells if cell.key in set(keys)]
        random.Random(f"{self.plan.shuffle_seed}:{todo.index}").shuffle(cells)
        attempt = uuid.uuid4().hex[:12]
        return [self.run_cell(cell, attempt, order, todo) for order, cell in enumerate(cells)]

    def run_cell(self, cell: Cell, attempt: str, order: int, block: Block) -> dict[str, Any]:
        started_at, start = datetime.now(UTC), perf_counter()
        sleep(self.latency_s)
        circumstances = {
            "run_id": self.plan.run_id,
            "attempt": attempt,
            "worker": self.name,
            "node": self.node,
            "order_in_block": order,
            "started_at": started_at,
        }
        rows = [row(cell, number) | circumstances for number in range(cell.start, cell.stop)]
        facts = {
            "key": cell.key,
            "configuration": cell.configuration,
            "dataset": cell.dataset,
            "shard": cell.shard,
            "seed": cell.seed,
            "block": block.index,
            "round": block.round,
            "attempt": attempt,
            "worker": self.name,
            "wall_s": perf_counter() - start,
        }
        return asdict(self.results.commit(cell, rows, facts))


def row(cell: Cell, number: int) -> dict[str, Any]:
    """The deterministic columns of a prompt's row."""
    key = f"{cell.configuration}:{cell.seed}:{number}"
    text = hashlib.sha256(key.encode()).hexdigest()
    return {
        "dataset": cell.dataset,
        "prompt_id": f"p{number}",
        "seed": cell.seed,
        "shard": cell.shard,
        "cell": cell.key,
        "prompt_tokens": 8,
        "completion_tokens": 16,
        "completion_bytes": len(text),
        "completion_text": text,
        "finish_reason": "length",
        "ttft_s": 0.1,
        "e2e_s": 0.3,
    }


def simulated_plan(
    folder: str | Path,
    *,
    num_shards: int,
    rows_per_shard: int = 20,
    configurations: Sequence[str] = ("baseline",),
    seeds: Sequence[int] = (0,),
    latency_s: float = 0.0,
    workers: WorkerResources | None = None,
) -> Plan:
    """A plan of simulated cells: `num_shards` x configurations x seeds, under `folder`/out."""
    return Plan(
        run_id="simulated",
        output=str(Path(folder) / "out"),
        model=ModelSource(path=f"latency:{latency_s}"),
        configurations=tuple(
            Configuration(name=name, fingerprint=name, vs=None if i == 0 else configurations[0])
            for i, name in enumerate(configurations)
        ),
        datasets=(
            Dataset(
                name="prompts",
                num_prompts=num_shards * rows_per_shard,
                first_row=0,
                num_shards=num_shards,
                fingerprint="prompts",
            ),
        ),
        seeds=tuple(seeds),
        generation=Generation(),
        likelihoods=False,
        workers=workers or WorkerResources(),
    )


def prepared(plan: Plan) -> Results:
    """The plan's output, with manifest and prompts, as before its first run."""
    results = Results(plan.output)
    dataset = plan.datasets[0]
    write_prompts(
        results.store,
        (
            {"dataset": dataset.name, "row": i, "prompt_id": f"p{i}", "prompt": "some words",
             "is_chat": False}
            for i in range(dataset.num_prompts)
        ),
    )  # fmt: skip
    manifest = json.dumps({"plan": plan.model_dump(mode="json")})
    results.store.create(MANIFEST, manifest.encode())
    return results
