"""The metrics of a report: what each is called, how it is shown, and each configuration's values.

Whatever outputs are scored by is a metric too, of the source `score` (`jobs.analysis.scored`),
named as the scorer or the task names it. Values are described by DuckDB over all datasets and
seeds: rows of a generation for tokens and times (failed rows and cold engines left out), cells for
throughput and memory, targets for quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import duckdb

from jobs.formatting import bytes_text, duration_text, number_text, percent_text
from jobs.stats.quantiles import order_levels

Source = Literal["row", "time", "rate", "per", "peak", "quality", "share", "failure", "score"]
Direction = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Metric:
    """One line of the report."""

    name: str
    label: str
    show: Callable[[float | None], str]
    source: Source
    is_described: bool = True
    """Whether the first table has it; effects are always given."""
    direction: Direction = "lower"
    """Which is better. `neither` where more is only other: the length of an answer, and so its
    tokens, unless counted per base token."""
    margin: float = 0.02
    """δ, the largest difference that does not matter: a fraction of the reference, or in the
    metric's own unit where effects are mean differences."""

    @property
    def is_relative(self) -> bool:
        """Whether its effect is a fraction of the reference."""
        return not self.is_quality and self.source not in ("share", "failure")

    def is_worth_a_line(self, *means: float | None) -> bool:
        """Whether tables show it: a share that is 0 on all sides is left to the JSON."""
        return self.source not in ("share", "failure") or any(means)

    @property
    def is_quality(self) -> bool:
        """Whether it says how good outputs are."""
        return self.source in ("quality", "score")

    @property
    def heading(self) -> str:
        """The label as a sentence begins with it; a score's name is as it is written."""
        text = self.label.removeprefix("· ")
        return text if self.source == "score" else text[:1].upper() + text[1:]

    @property
    def totals(self) -> tuple[str, str]:
        """Of a rate: the cell's total, and the one that it is divided by."""
        return RATES[self.name]

    @property
    def parts(self) -> tuple[str, str]:
        """Of a metric that is one sum over another, such as time per byte: both columns."""
        return _PER[self.name]

    @property
    def is_timed(self) -> bool:
        """Whether the rows of a cell share its noise, and a cold engine's rows have none of it."""
        is_time = self.source in ("time", "rate") or self.name.startswith("e2e_s")
        return is_time and self.source != "score"

    @property
    def grows_with_length(self) -> bool:
        """Whether a longer answer has more of it, so that a budget that cuts answers hides it."""
        return self.name in _WITH_LENGTH

    @property
    def is_memory(self) -> bool:
        return self.name.startswith("kv_") and self.source != "score"


_WITH_LENGTH = frozenset(
    {
        "completion_tokens", "total_tokens", "base_completion_tokens", "completion_bytes", "e2e_s",
        "kv_committed_peak_bytes", "kv_committed_mean_bytes", "kv_byte_s_per_byte",
    }
)  # fmt: skip

RATES = {
    "completion_bytes_per_s": ("completion_bytes", "wall_s"),
    "base_tokens_per_s": ("base_completion_tokens", "wall_s"),
    "kv_committed_mean_bytes": ("kv_committed_byte_s", "wall_s"),
    "device_s_per_byte": ("wall_s", "completion_bytes"),
    "kv_byte_s_per_byte": ("kv_committed_byte_s", "completion_bytes"),
}

_PER = {
    "tokens_per_base_token": ("completion_tokens", "base_completion_tokens"),
    "e2e_s_per_byte": ("e2e_s", "completion_bytes"),
}

METRICS = (
    Metric("prompt_tokens", "prompt tokens", number_text, "row", margin=0.01),
    Metric("completion_tokens", "completion tokens", number_text, "row", direction="neither"),
    Metric("total_tokens", "prompt and completion tokens", number_text, "row", direction="neither"),
    Metric(
        "tokens_per_base_token",
        "· tokens per base token",
        number_text,
        "per",
        is_described=False,
        margin=0.01,
    ),
    Metric(
        "base_completion_tokens",
        "· length in base tokens",
        number_text,
        "row",
        is_described=False,
        direction="neither",
    ),
    Metric(
        "completion_bytes",
        "completion bytes",
        number_text,
        "row",
        is_described=False,
        direction="neither",
    ),
    Metric("ttft_s", "time to first token", duration_text, "time", margin=0.05),
    Metric("tpot_s", "time per further token", duration_text, "time", margin=0.03),
    Metric("e2e_s", "time per completion", duration_text, "time", margin=0.03),
    Metric("e2e_s_per_byte", "time per byte", duration_text, "per", margin=0.03),
    Metric(
        "completion_bytes_per_s",
        "throughput, bytes/s",
        number_text,
        "rate",
        direction="higher",
        margin=0.03,
    ),
    Metric(
        "base_tokens_per_s",
        "throughput, base tokens/s",
        number_text,
        "rate",
        direction="higher",
        margin=0.03,
    ),
    Metric("device_s_per_byte", "device time per byte", duration_text, "rate", margin=0.03),
    Metric("kv_committed_peak_bytes", "KV memory held, peak", bytes_text, "peak"),
    Metric("kv_committed_mean_bytes", "KV memory held, mean", bytes_text, "rate"),
    Metric("kv_byte_s_per_byte", "KV byte-seconds per byte", number_text, "rate", margin=0.03),
    Metric("ends_in_loop", "share that ends in a loop", number_text, "share", margin=0.01),
    Metric("bits_per_byte", "bits per byte of targets", number_text, "quality", margin=0.01),
    Metric(
        "failed_share",
        "share of rows that failed",
        number_text,
        "failure",
        is_described=False,
        margin=0.01,
    ),
)


class MetricsByName(dict[str, Metric]):
    """Metrics by their names; a name that is none of theirs is a score's."""

    def __missing__(self, name: str) -> Metric:
        return score_metric(name)


def score_metric(name: str, direction: Direction = "higher") -> Metric:
    """What outputs are scored by, as a metric: a difference matters from 0.02 on, in its unit."""
    return Metric(name, name, number_text, "score", is_described=False, direction=direction)


BY_NAME = MetricsByName({metric.name: metric for metric in METRICS})

_SUMS = {"total_tokens": ("prompt_tokens", "completion_tokens")}


_FLAGS = frozenset({"ends_in_loop"})
"""Columns that are true or false: their means are shares."""


def column(name: str, side: str = "") -> str:
    """The SQL of a row's value, of the table that `side` names."""
    start = f"{side}." if side else ""
    if name in _FLAGS:
        return f"{start}{name}::DOUBLE"
    return " + ".join(start + part for part in _SUMS.get(name, (name,)))


Described = dict[str, dict[str, Any]]
"""Configuration -> n, mean, p50, p95 of one metric, and the bounds of the two."""
_QUANTILES = {"p50": 0.5, "p95": 0.95}


def describe(connection: duckdb.DuckDBPyConnection, metric: Metric) -> Described:
    """Each configuration's n, mean, median and 95th percentile with their 95 % intervals.

    The mean of a rate is total amount over total time, its quantiles are those of cells. Intervals
    are order statistics at ranks that count prompts (or shards) rather than rows, as those of one
    prompt are alike; null where there are too few.
    """
    value, mean, source = _selection(metric)
    unit = "shard" if metric.source in ("rate", "peak") else "prompt_id"
    units = connection.execute(
        f"SELECT configuration, count(DISTINCT (dataset, {unit})) FILTER ({value} IS NOT NULL) "
        f"FROM {source} GROUP BY configuration"
    ).fetchall()
    bounds = {
        name: {q: order_levels(n, share) for q, share in _QUANTILES.items()} for name, n in units
    }
    levels = {*_QUANTILES.values()}
    levels |= {level for own in bounds.values() for pair in own.values() for level in pair or ()}
    wanted = sorted(levels)
    rows = connection.execute(
        f"""
        SELECT configuration, count({value}), {mean}, quantile_cont({value}, $levels)
        FROM {source} GROUP BY configuration
        """,
        {"levels": wanted},
    ).fetchall()
    return {
        name: _described(num, mean_value, dict(zip(wanted, quantiles, strict=True)), bounds[name])
        for name, num, mean_value, quantiles in rows
        if num
    }


def _described(
    num: int,
    mean: float,
    quantiles: dict[float, float],
    bounds: dict[str, tuple[float, float] | None],
) -> dict[str, Any]:
    shown: dict[str, Any] = {"n": num, "mean": mean}
    shown |= {name: quantiles[share] for name, share in _QUANTILES.items()}
    for name, pair in bounds.items():
        low, high = (quantiles[pair[0]], quantiles[pair[1]]) if pair else (None, None)
        shown |= {f"{name}_low": low, f"{name}_high": high}
    return shown


def _selection(metric: Metric) -> tuple[str, str, str]:
    """The value's expression, its mean's, and the rows that it is taken from."""
    if metric.source == "rate":
        above, below = metric.totals
        return f"{above} / nullif({below}, 0)", _total_over_total(above, below), _CELLS
    if metric.source == "peak":
        return metric.name, f"avg({metric.name})", _CELLS
    if metric.source == "per":
        above, below = metric.parts
        warm = " AND NOT coalesce(warmup, false)" if metric.is_timed else ""
        source = f"generations WHERE error IS NULL{warm}"
        return f"{above} / nullif({below}, 0)", _total_over_total(above, below), source
    if metric.source == "failure":
        return _FAILED, f"avg({_FAILED})", "generations"
    if metric.source == "quality":
        value = "nats / ln(2) / num_bytes"
        condition = "candidate = -1 AND error IS NULL AND num_bytes > 0"
        return value, f"avg({value})", f"likelihoods WHERE {condition}"
    warm = " AND NOT coalesce(warmup, false)" if metric.source == "time" else ""
    value = column(metric.name)
    return value, f"avg({value})", f"generations WHERE error IS NULL{warm}"


def _total_over_total(above: str, below: str) -> str:
    """Of what has both, so that nothing is divided by what is not its own."""
    both = f"{above} IS NOT NULL AND {below} IS NOT NULL"
    return f"sum({above}) FILTER ({both}) / nullif(sum({below}) FILTER ({both}), 0)"


_FAILED = "(error IS NOT NULL)::INTEGER"
_CELLS = "cells WHERE kind = 'generations' AND coalesce(num_errors, 0) < rows"


def change_of(metric: Metric, value: float | None) -> str:
    """A change in the metric's own way: a share of the reference, or its own unit."""
    return percent_text(value) if metric.is_relative else number_text(value, sign=True)
