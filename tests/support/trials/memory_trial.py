"""A simulated trial of which one configuration takes all memory that it can get: a program.

    python tests/support/trials/memory_trial.py FOLDER

Writes FOLDER/found.json. Whoever starts it sets how much memory Ray allows.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import ray
from faulty_worker import RemoteFaulty, set_fault

from benchmarks.cluster.simulated import prepared, simulated_plan
from cluster.scheduling.limits import Limits
from cluster.scheduling.scheduler import Scheduler


def main() -> None:
    folder = Path(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20,
             log_to_driver=False, logging_level="ERROR")  # fmt: skip
    plan = simulated_plan(folder, num_shards=3, configurations=("baseline", "greedy", "third"))
    set_fault(plan, "exhaust-greedy")
    limits = Limits(max_backoff_s=0.5)
    scheduler = Scheduler(plan, prepared(plan), remote_worker=RemoteFaulty, limits=limits)
    scheduler.start()
    outcome = scheduler.run()
    (folder / "found.json").write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
