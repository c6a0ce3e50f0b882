"""A run's numbers for Prometheus, by Ray's metrics agent: on every node's metrics port, as `ray_…`.

The driver exports what a run has come to (`RunMetrics`), each worker what it does itself
(`WorkerMetrics`). Numbers that cannot be exported are said once in the log and end nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from cluster.telemetry.progress import Progress

log = logging.getLogger("optrial.driver")

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True)
class Measure:
    """One metric as it is exported."""

    name: str
    kind: Kind
    meaning: str

    @property
    def exported(self) -> str:
        """The name that Prometheus sees."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


RUN_MEASURES = (
    Measure("optrial_cells_planned", "gauge", "cells of the trial"),
    Measure("optrial_cells_committed", "gauge", "of those, cells that are committed"),
    Measure("optrial_rows", "counter", "rows that this run has committed"),
    Measure("optrial_error_rows", "counter", "of those, rows with an error"),
    Measure("optrial_completion_tokens", "counter", "tokens that this run has generated"),
    Measure("optrial_tokens_per_second", "gauge", "of this run so far"),
    Measure("optrial_retries", "counter", "executions that were begun again"),
    Measure("optrial_quarantined", "gauge", "what was set aside after its last attempt"),
    Measure("optrial_workers_alive", "gauge", "workers that have opened the model"),
    Measure("optrial_driver_rss_bytes", "gauge", "resident memory of the driver"),
)
"""Of the driver; tagged with `run_id`."""

WORKER_MEASURES = (
    Measure("optrial_worker_cells", "counter", "cells that a worker has run"),
    Measure("optrial_worker_rows", "counter", "rows of them"),
    Measure("optrial_worker_error_rows", "counter", "of those, rows with an error"),
    Measure("optrial_worker_tokens", "counter", "tokens that a worker has generated"),
    Measure("optrial_worker_busy_seconds", "counter", "engine time of a worker"),
    Measure("optrial_worker_rss_bytes", "gauge", "resident memory of a worker"),
    Measure("optrial_worker_cuda_bytes", "gauge", "GPU memory that a worker has reserved"),
    Measure("optrial_worker_kv_peak_bytes", "gauge", "KV memory at the peak of its last cell"),
)
"""Of each worker; tagged with `run_id` and `worker`."""

MEASURES = (*RUN_MEASURES, *WORKER_MEASURES)


class _Exporter:
    """Ray metrics under fixed tags, which never raise."""

    def __init__(self, measures: tuple[Measure, ...], tags: Mapping[str, str]) -> None:
        self.measures, self.tags = measures, dict(tags)
        self._metrics: dict[str, Any] | None = None
        self._has_failed = False

    def export(self, values: Callable[[], Mapping[str, float]]) -> None:
        """Set gauges to what `values` gives, and add to counters what it gives."""
        if self._has_failed:
            return
        try:
            import ray

            if not ray.is_initialized():
                self._give_up("Ray is not initialised")
                return
            metrics = self._made()
            for name, value in values().items():
                metrics[name](float(value))
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        self._has_failed = True
        log.warning("metrics are not exported", extra={"reason": reason})

    def _made(self) -> dict[str, Any]:
        if self._metrics is None:
            from ray.util.metrics import Counter, Gauge

            self._metrics = {}
            for measure in self.measures:
                kind: Any = Counter if measure.kind == "counter" else Gauge
                metric = kind(measure.name, measure.meaning, tuple(self.tags))
                metric.set_default_tags(self.tags)
                is_counter = measure.kind == "counter"
                self._metrics[measure.name] = _adding(metric) if is_counter else metric.set
        return self._metrics


def _adding(counter: Any) -> Callable[[float], None]:
    def add(value: float) -> None:
        if value > 0:  # Ray's counters refuse to be raised by nothing.
            counter.inc(value)

    return add


class RunMetrics:
    """The driver's numbers, from each `Progress`."""

    def __init__(self, run_id: str) -> None:
        self._exporter = _Exporter(RUN_MEASURES, {"run_id": run_id})
        self._before: Progress | None = None
        self._process = psutil.Process()

    def update(self, progress: Progress) -> None:
        """Export a moment of the run; counters by what they grew since the last one."""
        self._exporter.export(lambda: self._values(progress))

    def _values(self, progress: Progress) -> dict[str, float]:
        before, self._before = self._before, progress

        def grown(name: str) -> float:
            now: float = getattr(progress, name)
            return now - (getattr(before, name) if before is not None else 0)

        return {
            "optrial_cells_planned": progress.cells_total,
            "optrial_cells_committed": progress.cells_done,
            "optrial_rows": grown("rows"),
            "optrial_error_rows": grown("errors"),
            "optrial_completion_tokens": grown("completion_tokens"),
            "optrial_tokens_per_second": progress.tokens_per_s,
            "optrial_retries": grown("retries"),
            "optrial_quarantined": progress.quarantined,
            "optrial_workers_alive": progress.num_workers,
            "optrial_driver_rss_bytes": self._process.memory_info().rss,
        }


class WorkerMetrics:
    """A worker's own numbers, from each cell that it commits."""

    def __init__(self, run_id: str, worker: str) -> None:
        self._exporter = _Exporter(WORKER_MEASURES, {"run_id": run_id, "worker": worker})
        self._process = psutil.Process()

    def committed(self, receipt: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> None:
        """Export a cell: its receipt (`cluster.results.Receipt` as a dict), and its facts."""
        self._exporter.export(lambda: self._values(receipt, facts or {}))

    def _values(self, receipt: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
        values = {
            "optrial_worker_cells": 1.0,
            "optrial_worker_rows": receipt["rows"],
            "optrial_worker_error_rows": receipt["num_errors"],
            "optrial_worker_tokens": receipt["completion_tokens"],
            "optrial_worker_busy_seconds": receipt["wall_s"],
            "optrial_worker_rss_bytes": self._process.memory_info().rss,
        }
        cuda = _cuda_bytes()
        if cuda is not None:
            values["optrial_worker_cuda_bytes"] = cuda
        kv = facts.get("kv_committed_peak_bytes")
        if kv is not None:
            values["optrial_worker_kv_peak_bytes"] = float(kv)
        return values


def _cuda_bytes() -> int | None:
    """Reserved by this process; None where it uses no GPU."""
    import torch

    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not is_used:
        return None
    return int(torch.cuda.memory_reserved())
