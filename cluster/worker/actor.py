"""`RemoteWorker`: the worker as a Ray actor, which says in Ray's logs and metrics what it does."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import ray

from cluster.plan import Cell
from cluster.telemetry.logs import attach_worker_log, run_logger
from cluster.telemetry.ray_metrics import WorkerMetrics
from cluster.worker.worker import Worker

log = run_logger("optrial.worker")


class ReportingWorker(Worker):
    """A worker that says in Ray's logs and metrics what it does."""

    def __init__(self, plan: str, index: int) -> None:
        super().__init__(plan, index)
        attach_worker_log(self.plan.run_id, self.name)
        self.metrics = WorkerMetrics(self.plan.run_id, self.name)

    def load_configuration(self, name: str) -> None:
        start = perf_counter()
        super().load_configuration(name)
        log.info("loaded", extra={"configuration": name, "seconds": perf_counter() - start})

    def committed(self, cell: Cell, receipt: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        log.info(
            "duplicate" if receipt["is_duplicate"] else "cell committed",
            extra={
                "cell": cell.key,
                "block": facts["block"],
                "configuration": cell.configuration,
                "dataset": cell.dataset,
                "shard": cell.shard,
                "seed": cell.seed,
                "attempt": facts["attempt"],
                "rows": receipt["rows"],
                "wall_s": receipt["wall_s"],
            },
        )
        self.metrics.committed(receipt, facts)


RemoteWorker = ray.remote(ReportingWorker)
"""The worker as an actor; the scheduler gives it its resources and never lets Ray restart it."""
