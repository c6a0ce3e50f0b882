"""A configuration against its reference: every effect with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import duckdb

from cluster.plan import Configuration, Plan, origin
from jobs.analysis.effects import (
    Effect,
    Numbers,
    difference_effect,
    geometric_effect,
    rate_effect,
    ratio_effect,
)
from jobs.metrics import METRICS, Metric
from jobs.pairing import (
    PairedCells,
    PairedPrompts,
    RowComparison,
    TextComparison,
    compare_rows,
    paired_cells,
    paired_likelihoods,
    paired_prompts,
    share_apart,
)
from jobs.wording import plural
from optim.errors import InputError
from optim.registry import optimization

MIN_SHARDS = 8
"""Shards per dataset that an interval for time, throughput or memory needs: rows of a shard share
its cells' noise, so shards are what is independent, and fewer say too little of their spread."""

Statistic = Literal["ratio of totals", "geometric mean", "mean difference"]


@dataclass(frozen=True)
class MetricEffect:
    metric: Metric
    statistic: Statistic
    reference_mean: float | None
    """Mean over the paired units; of a rate, total amount over total time."""
    mean: float | None
    effect: Effect


@dataclass(frozen=True)
class Comparison:
    configuration: str
    vs: str
    is_duplicate: bool
    caches: tuple[str, str]
    """Where the configuration and its reference keep keys and values."""
    texts: TextComparison
    effects: tuple[MetricEffect, ...]
    share_apart: float = 0.0
    """Share of cells that did not run back to back with their reference's."""

    rows: RowComparison = field(default_factory=RowComparison)

    def effect(self, metric: str) -> Effect | None:
        """The metric's main effect: the ratio of totals, or the mean difference."""
        found = [e.effect for e in self.effects if e.metric.name == metric]
        return found[0] if found else None


def cache_name(configuration: Configuration) -> str:
    """What keeps a configuration's keys and values: the cache that it names, or an optimisation."""
    for chosen in configuration.optimizations:
        try:
            stage = optimization(chosen.name, chosen.settings).stage
        except InputError:  # results can be read where a third party's optimisation is missing
            continue
        if stage == "cache":
            return chosen.name
    return configuration.cache


def compare(
    connection: duckdb.DuckDBPyConnection, configuration: Configuration, plan: Plan
) -> Comparison:
    """All effects of a configuration that has a reference (`vs`)."""
    name, vs = configuration.name, configuration.vs
    if vs is None:
        raise ValueError(f"{name} is a reference: there is nothing to compare it with")
    prompts = paired_prompts(connection, name, vs)
    cells = paired_cells(connection, name, vs)
    targets = paired_likelihoods(connection, name, vs)
    texts, rows = compare_rows(connection, name, vs)
    unequal = {m for m, count in rows.unequal.items() if count} | cells.unequal
    effects = [
        _unless_rows_differ(effect, unequal)
        for metric in METRICS
        for effect in _effects(metric, prompts, cells, targets)
    ]
    return Comparison(
        configuration=name,
        vs=vs,
        is_duplicate=configuration.duplicate_of is not None,
        caches=(cache_name(configuration), cache_name(plan.configuration(vs))),
        texts=texts,
        rows=rows,
        effects=tuple(effects),
        share_apart=share_apart(connection, name, vs),
    )


def _unless_rows_differ(found: MetricEffect, unequal: Set[str]) -> MetricEffect:
    """Means over seeds can be equal where rows are not: that is no equality, but no difference."""
    metric = found.metric
    parts = {"rate": lambda: metric.totals, "per": lambda: metric.parts}
    names = parts.get(metric.source, lambda: (metric.name,))()
    if not found.effect.identical or unequal.isdisjoint(names):
        return found
    return replace(found, effect=found.effect.not_identical())


def _effects(
    metric: Metric, prompts: PairedPrompts, cells: PairedCells, targets: PairedPrompts
) -> list[MetricEffect]:
    if metric.source == "rate":
        return [_rate(metric, cells)]
    if metric.source == "per":
        return [_per(metric, prompts)]
    if metric.source == "quality":
        a, b = targets.means[metric.name]
        return [
            _given(
                metric,
                "mean difference",
                a,
                b,
                difference_effect(a, b, targets.clusters, strata=_sets(targets.clusters)),
            )
        ]
    if metric.source == "peak":
        a, b = cells.values[metric.name]
        effect = _guarded(
            ratio_effect(a, b, cells.shards, strata=_sets(cells.shards)), a, b, cells.shards
        )
        return [_given(metric, "ratio of totals", a, b, effect)]
    a, b = prompts.means[metric.name]
    clusters = _clusters(metric, prompts)
    ratio = ratio_effect(a, b, clusters, strata=_sets(clusters))
    geometric = geometric_effect(a, b, clusters, strata=_sets(clusters))
    if metric.source == "time":
        ratio = _guarded(ratio, a, b, prompts.shards)
        geometric = _guarded(geometric, a, b, prompts.shards)
    return [
        _given(metric, "ratio of totals", a, b, ratio),
        _given(metric, "geometric mean", a, b, geometric),
    ]


def _clusters(metric: Metric, prompts: PairedPrompts) -> Sequence[tuple[str, object]]:
    return prompts.shards if metric.is_timed else prompts.clusters


def _sets(clusters: Sequence[tuple[str, object]]) -> list[str]:
    """Data sets are fixed strata; what was added to one later is part of it."""
    return [origin(dataset) for dataset, _ in clusters]


def _per(metric: Metric, prompts: PairedPrompts) -> MetricEffect:
    """One sum over another, such as native tokens over base tokens of the same text."""
    above, below = (prompts.means[name] for name in metric.parts)
    clusters = _clusters(metric, prompts)
    effect = rate_effect(
        (above[0], below[0]), (above[1], below[1]), clusters, strata=_sets(clusters)
    )
    if metric.is_timed:
        effect = _guarded(effect, above[0], above[1], prompts.shards)
    rates = [_rate_of(*pair) for pair in zip(above, below, strict=True)]
    return MetricEffect(metric, "ratio of totals", rates[0], rates[1], effect)


def _rate(metric: Metric, cells: PairedCells) -> MetricEffect:
    amounts, times = (cells.values[name] for name in metric.totals)
    effect = rate_effect(
        (amounts[0], times[0]), (amounts[1], times[1]), cells.shards, strata=_sets(cells.shards)
    )
    effect = _guarded(effect, amounts[0], amounts[1], cells.shards)
    rates = [_rate_of(amount, time) for amount, time in zip(amounts, times, strict=True)]
    return MetricEffect(metric, "ratio of totals", rates[0], rates[1], effect)


def _rate_of(amounts: Sequence[float | None], times: Sequence[float | None]) -> float | None:
    pairs = [
        (amount, time)
        for amount, time in zip(amounts, times, strict=True)
        if amount is not None and time is not None
    ]
    total = sum(time for _, time in pairs)
    return sum(amount for amount, _ in pairs) / total if total > 0 else None


def _given(
    metric: Metric,
    statistic: Statistic,
    a: Sequence[float | None],
    b: Sequence[float | None],
    effect: Effect,
) -> MetricEffect:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    size = len(pairs)
    left = sum(x for x, _ in pairs) / size if size else None
    right = sum(y for _, y in pairs) / size if size else None
    return MetricEffect(metric, statistic, left, right, effect)


def _guarded(effect: Effect, a: Numbers, b: Numbers, shards: Sequence[tuple[str, int]]) -> Effect:
    """Without an interval where a dataset has fewer shards than one can be trusted with."""
    if effect.low is None or effect.identical:
        return effect
    used = {
        shard for shard, x, y in zip(shards, a, b, strict=True) if x is not None and y is not None
    }
    fewest = min(Counter(origin(dataset) for dataset, _ in used).values(), default=0)
    if fewest >= MIN_SHARDS:
        return effect
    return effect.withheld(
        f"{plural(fewest, 'shard')} per dataset, and {MIN_SHARDS} are needed for an interval"
    )
