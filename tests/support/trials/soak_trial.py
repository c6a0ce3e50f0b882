"""A simulated trial during which workers, nodes and the driver are killed at random: a program.

    python tests/support/trials/soak_trial.py hold FOLDER [--shards 150] [--every-s 5] [--seed 0]
    python tests/support/trials/soak_trial.py drive ADDRESS FOLDER

`hold` has the cluster, starts the driver, kills, and starts again what it killed, until a driver
has ended well. Writes FOLDER/found.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import ray
from cluster_trial import NODE, started_cluster
from faulty_worker import RemoteFaulty, events
from ray.cluster_utils import Cluster

from benchmarks.cluster.simulated import prepared, simulated_plan
from cluster.plan import WorkerResources
from cluster.results.results import Results
from cluster.scheduling.limits import Limits
from cluster.scheduling.scheduler import Scheduler
from cluster.telemetry.progress import Progress

NUM_NODES = 3
ARMS = ("baseline", "other")


def drive(address: str, folder: Path) -> None:
    """One driver's life: run what is missing, and write down how much memory it takes."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    results = Results(str(folder / "out"))
    limits = Limits(max_attempts=1000, max_worker_failures=1000, max_backoff_s=2.0)
    scheduler = Scheduler(results.plan(), results, remote_worker=RemoteFaulty, limits=limits)
    process = psutil.Process()

    def note(progress: Progress) -> None:
        with (folder / "memory").open("a") as file:
            file.write(f"{os.getpid()} {process.memory_info().rss}\n")

    scheduler.on_progress = note
    if scheduler.num_pending:
        scheduler.start()
        sys.exit(0 if scheduler.run().is_complete else 1)


class Holder:
    """The cluster and the driver of one soak, and who is killed next."""

    def __init__(self, folder: Path, shards: int, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.plan = simulated_plan(
            folder,
            num_shards=shards,
            configurations=ARMS,
            latency_s=0.5,
            workers=WorkerResources(count=NUM_NODES),
        )
        prepared(self.plan)
        self.cluster: Cluster = started_cluster(is_fast=True)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(NUM_NODES)]
        self.kills: Counter[str] = Counter()
        self.driver = self.started_driver()

    def started_driver(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, __file__, "drive", self.cluster.address, str(self.folder)]
        with (self.folder / "driver-log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log)

    def kill(self) -> None:
        what = self.random.choice(("worker", "node", "driver"))
        if what == "worker" and not (alive := self.workers()):
            what = "node"
        self.kills[what] += 1
        if what == "worker":
            os.kill(self.random.choice(alive), signal.SIGKILL)
        elif what == "node":
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            self.nodes.append(self.cluster.add_node(**NODE))
        else:
            self.driver.kill()
            self.driver.wait()
            self.driver = self.started_driver()

    def workers(self) -> list[int]:
        file = self.folder / "events"
        lines = file.read_text().splitlines() if file.exists() else []
        opened = [int(line.split()[-1]) for line in lines if line.startswith("open ")]
        return [pid for pid in opened[-2 * NUM_NODES :] if psutil.pid_exists(pid)]

    def run(self, every_s: float, limit_s: float) -> dict[str, Any]:
        start = monotonic()
        while self.driver.poll() is None and monotonic() - start < limit_s:
            until = monotonic() + every_s
            while self.driver.poll() is None and monotonic() < until:
                sleep(0.1)
            if self.driver.poll() is None:
                self.kill()
        wall_s = monotonic() - start
        code = self.driver.poll()
        self.driver.kill()
        done = events(self.plan)
        return {
            "code": code,
            "wall_s": wall_s,
            "num_cells": 2 * self.plan.datasets[0].num_shards,
            "kills": dict(self.kills),
            "num_kills": sum(self.kills.values()),
            "num_workers": NUM_NODES,
            "num_executions": done["begin"],
            "num_loads": done["open"],
            "driver_growth_bytes": self.growth(),
        }

    def growth(self) -> int:
        """The most that any driver grew after its first moments of running."""
        seen: dict[str, list[int]] = {}
        for line in (self.folder / "memory").read_text().splitlines():
            pid, rss = line.split()
            seen.setdefault(pid, []).append(int(rss))
        return max(max(each) - each[min(5, len(each) - 1)] for each in seen.values())

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["hold", "drive"])
    parser.add_argument("places", nargs="+")
    parser.add_argument("--shards", type=int, default=150)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--limit-s", type=float, default=1500.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.role == "drive":
        drive(arguments.places[0], Path(arguments.places[1]))
        return
    holder = Holder(Path(arguments.places[0]), arguments.shards, arguments.seed)
    try:
        found = holder.run(arguments.every_s, arguments.limit_s)
        (holder.folder / "found.json").write_text(json.dumps(found))
    finally:
        holder.close()


if __name__ == "__main__":
    main()
