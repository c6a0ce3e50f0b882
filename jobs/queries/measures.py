"""What the summary describes: each measure's name, meaning, and where its values come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.spec.metrics import METRICS, Metric, column

Of = Literal["row", "cell", "target"]

SOURCES: dict[Of, str] = {
    "row": "generations WHERE error IS NULL",
    "cell": "cells WHERE kind = 'generations' AND coalesce(num_errors, 0) < rows",
    "target": "likelihoods WHERE error IS NULL AND candidate = -1",
}
"""The SQL of where the values are; rows that failed have none."""


@dataclass(frozen=True)
class Measure:
    """One number that each row, cell or target has."""

    name: str
    meaning: str
    of: Of
    above: str
    """The value's SQL, or that of its numerator."""
    below: str | None = None
    """Of a ratio, the SQL of its denominator: its mean is total over total."""
    is_timed: bool = False
    """Whether rows of a cold engine are left out."""

    @property
    def value(self) -> str:
        if self.below is None:
            return self.above
        return f"({self.above}) / nullif(({self.below})::DOUBLE, 0)"


def _of(metric: Metric) -> Measure:
    label = metric.label.removeprefix("· ")
    if metric.source == "rate":
        return Measure(metric.name, label, "cell", *metric.totals)
    if metric.source == "per":
        return Measure(metric.name, label, "row", *metric.parts, is_timed=metric.is_timed)
    if metric.source == "peak":
        return Measure(metric.name, label, "cell", metric.name)
    if metric.source == "quality":
        return Measure(metric.name, label, "target", "nats / ln(2) / nullif(num_bytes, 0)")
    return Measure(metric.name, label, "row", column(metric.name), is_timed=metric.is_timed)


MEASURES = (
    *[_of(metric) for metric in METRICS if metric.source != "failure"],
    Measure("queue_s", "waiting for a slot", "row", "queue_s", is_timed=True),
    Measure(
        "completion_tokens_per_s",
        "throughput in tokens of the configuration's own vocabulary",
        "cell",
        "completion_tokens",
        "wall_s",
    ),
    Measure("wall_s", "engine time", "cell", "wall_s"),
    Measure(
        "mean_occupied_share",
        "slots that held a sequence, as a share of the batch size: mean over decode steps",
        "cell",
        "mean_occupied_share * num_steps",
        "num_steps",
    ),
    Measure("kv_used_peak_bytes", "KV memory of live tokens, peak", "cell", "kv_used_peak_bytes"),
    Measure("kv_reserved_peak_bytes", "KV address space, peak", "cell", "kv_reserved_peak_bytes"),
    Measure(
        "weight_bytes_shared",
        "weights that other configurations of the worker use too",
        "cell",
        "weight_bytes_shared",
    ),
    Measure(
        "weight_bytes_private",
        "weights that are this configuration's alone",
        "cell",
        "weight_bytes_private",
    ),
)
