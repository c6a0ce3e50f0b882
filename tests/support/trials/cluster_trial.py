"""A simulated trial on several nodes of one machine, one of which is lost: a program.

    python tests/support/trials/cluster_trial.py remove|raylet|grow FOLDER [--slow-detection]

Writes FOLDER/found.json. A process of its own, because a process is in one cluster only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from faulty_worker import RemoteFaulty, events, held
from ray.cluster_utils import Cluster

from benchmarks.cluster.simulated import prepared, simulated_plan
from cluster.plan import Plan, WorkerResources
from cluster.scheduling.limits import Limits
from cluster.scheduling.scheduler import Scheduler
from cluster.telemetry.progress import Progress

FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def started_cluster(*, is_fast: bool) -> Cluster:
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    if is_fast:
        head["_system_config"] = FAST
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return cluster


class Trial:
    """One run, watched, with something done to the cluster while it runs.

    `disturb` is called by the scheduler's loop, until it says that it has done it: only the main
    thread may start nodes. `holds` keep executions waiting, each until what it waits for has
    happened: a busy machine may take longer to notice a loss than the whole trial lasts.
    """

    def __init__(self, plan: Plan, disturb: Callable[[], bool]) -> None:
        self.plan, self.disturb = plan, disturb
        self.holds: dict[Path, Callable[[], bool]] = {}
        self.disturbed = 0.0
        self.seen: list[tuple[float, int, int]] = []
        self.scheduler = Scheduler(
            plan, prepared(plan), remote_worker=RemoteFaulty, limits=Limits(straggle_s=1e9)
        )
        self.scheduler.on_progress = self._see

    def _see(self, progress: Progress) -> None:
        if not self.disturbed:
            at = monotonic()
            self.disturbed = at if self.disturb() else 0.0
        self.seen.append((monotonic(), progress.num_workers, progress.retries))
        for hold in [hold for hold, is_over in self.holds.items() if is_over()]:
            hold.unlink()
            del self.holds[hold]

    def _noticed(self) -> list[float]:
        """Times at which it was known that an execution was lost."""
        at = self.disturbed
        return [t for t, _, retries in self.seen if at and t > at and retries]

    def whole(self) -> list[float]:
        """Times after that at which both workers were there."""
        noticed = self._noticed()
        return [t for t, workers, _ in self.seen if noticed and t > noticed[0] and workers == 2]

    def run(self) -> dict[str, Any]:
        self.scheduler.start()
        outcome = self.scheduler.run()
        at, noticed, whole = self.disturbed, self._noticed(), self.whole()
        done = events(self.plan)
        return {
            "is_complete": outcome.is_complete,
            "executions": outcome.executions,
            "loads": outcome.loads,
            "duplicates": outcome.duplicates,
            "failures": outcome.failures,
            "noticed_s": noticed[0] - at if noticed else None,
            "recovered_s": whole[0] - at if whole else None,
            "cells_finished": done["cell"],
        }


def remove_node(folder: Path, *, is_fast: bool) -> dict[str, Any]:
    """A node and its worker vanish in the middle; a new node comes at once."""
    cluster = started_cluster(is_fast=is_fast)
    lost = cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    plan = simulated_plan(folder, num_shards=60, latency_s=0.4, workers=WorkerResources(count=2))

    def disturb() -> bool:
        if events(plan)["cell"] < 10:
            return False
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(**NODE)
        return True

    trial = Trial(plan, disturb)
    trial.holds[held(plan, 50, 1000)] = lambda: bool(trial.whole())
    found = trial.run()
    ray.shutdown()
    cluster.shutdown()
    return found


def kill_raylet(folder: Path, *, is_fast: bool) -> dict[str, Any]:
    """A node's raylet dies, and its worker goes on: an orphan, whose commit comes first."""
    cluster = started_cluster(is_fast=is_fast)
    orphaned = cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    plan = simulated_plan(folder, num_shards=6, latency_s=0.5, workers=WorkerResources(count=2))
    raylet = orphaned.all_processes["raylet"][0].process.pid

    def disturb() -> bool:
        if events(plan)["begin"] < 2:
            return False
        os.kill(raylet, signal.SIGKILL)
        cluster.add_node(**NODE)
        return True

    trial = Trial(plan, disturb)
    trial.holds[held(plan, 1, 2)] = lambda: events(plan)["begin"] > 2
    trial.holds[held(plan, 3, 3)] = lambda: events(plan)["cell"] > 1
    found = trial.run()
    ray.shutdown()
    cluster.shutdown()
    return found


def grow(folder: Path, *, is_fast: bool) -> dict[str, Any]:
    """There is room for one of two workers; a node comes in the middle."""
    cluster = started_cluster(is_fast=is_fast)
    cluster.add_node(**NODE)
    plan = simulated_plan(folder, num_shards=40, latency_s=0.4, workers=WorkerResources(count=2))
    trial = Trial(plan, lambda: False)

    def disturb() -> bool:
        if events(plan)["cell"] < 5:
            return False
        cluster.add_node(**NODE)
        return True

    trial.disturb = disturb
    found = trial.run()
    before = {workers for at, workers, _ in trial.seen if at < trial.disturbed}
    after = {workers for at, workers, _ in trial.seen if at > trial.disturbed}
    ray.shutdown()
    cluster.shutdown()
    return found | {"workers_before": max(before), "workers_after": max(after)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=["remove", "raylet", "grow"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slow-detection", action="store_true")
    arguments = parser.parse_args()
    scenario = {"remove": remove_node, "raylet": kill_raylet, "grow": grow}[arguments.scenario]
    found = scenario(arguments.folder, is_fast=not arguments.slow_detection)
    (arguments.folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
