"""A simulated trial whose first host is cut off in the middle: a program for the hub of a network.

    python tests/support/trials/partition_trial.py ADDRESS FOLDER

Writes FOLDER/found.json once the host that was cut off has finished too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic, sleep

import ray
from faulty_worker import RemoteFaulty, events
from networks import cut_off

from benchmarks.cluster.simulated import prepared, simulated_plan
from cluster.plan import WorkerResources
from cluster.scheduling.limits import Limits
from cluster.scheduling.preflight import room_for
from cluster.scheduling.scheduler import Scheduler
from cluster.telemetry.progress import Progress


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    plan = simulated_plan(folder, num_shards=4, latency_s=8.0, workers=WorkerResources(count=2))
    scheduler = Scheduler(
        plan, prepared(plan), remote_worker=RemoteFaulty, limits=Limits(straggle_s=1e9)
    )
    cut: list[float] = []

    def disturb(progress: Progress) -> None:
        if not cut and events(plan)["run"] == 2:
            cut_off(0)
            cut.append(monotonic())

    scheduler.on_progress = disturb
    until = monotonic() + 90
    while room_for(plan.workers) < 2:
        assert monotonic() < until, "both hosts must be there before one is cut off"
        sleep(0.5)
    scheduler.start()
    outcome = scheduler.run()
    until = monotonic() + 60
    while events(plan)["cell"] < outcome.executions and monotonic() < until:
        sleep(0.2)
    found = {
        "is_complete": outcome.is_complete,
        "executions": outcome.executions,
        "duplicates": outcome.duplicates,
        "failures": outcome.failures,
        "cells_finished": events(plan)["cell"],
        "num_parts": len(scheduler.results.parts("generations")),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
