"""A configuration against its reference: every effect with its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal, TypeGuard

import duckdb

from cluster.plan import Configuration, Plan, origin
from jobs.formatting import plural
from jobs.queries.pairing import (
    PairedCells,
    PairedPrompts,
    PairedTimes,
    paired_cells,
    paired_likelihoods,
    paired_prompts,
    paired_times,
    share_apart,
)
from jobs.queries.row_pairs import RowComparison, TextComparison, compare_rows, paired_failures
from jobs.spec.analysis_plan import MIN_SHARDS
from jobs.spec.metrics import METRICS, Metric
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import (
    difference_effect,
    geometric_effect,
    rate_effect,
    ratio_effect,
    score_effect,
    share_effect,
)
from jobs.stats.permutation.swaps import fewest_clusters
from jobs.stats.permutation.units import Numbers, Strata
from optim.names import stage_of

Statistic = Literal["ratio of totals", "geometric mean", "mean difference", "p95", "p99"]
MAIN_STATISTICS = frozenset({"ratio of totals", "mean difference"})
"""What is judged: of totals (what people pay), or a difference. A metric has one of them."""


@dataclass(frozen=True)
class MetricEffect:
    metric: Metric
    statistic: Statistic
    reference_mean: float | None
    """Mean over the paired units; of a rate, total amount over total time; of p95 and p99 the
    quantile of rows, and the geometric mean of the data sets' ones."""
    mean: float | None
    effect: Effect
    withheld: str | None = None
    """Why it gets no verdict, where that is known of the metric alone."""

    @property
    def is_shown(self) -> bool:
        """Failures are not worth a line where nothing failed."""
        return self.metric.source != "failure" or bool(self.mean or self.reference_mean)


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


def main_effects(comparison: Comparison) -> list[MetricEffect]:
    """The effect that is judged of each metric."""
    return [e for e in comparison.effects if e.statistic in MAIN_STATISTICS]


def metrics_of(comparisons: Iterable[Comparison]) -> list[Metric]:
    """All that some comparison has an effect of, in the order of effects."""
    found = {e.metric.name: e.metric for c in comparisons for e in main_effects(c)}
    return list(found.values())


def cache_name(configuration: Configuration) -> str:
    """What keeps a configuration's keys and values: the cache that it names, or an optimisation."""
    for chosen in configuration.optimizations:
        if stage_of(chosen.name) == "cache":  # None where a third party's is missing here
            return chosen.name
    return configuration.cache


def compare(
    connection: duckdb.DuckDBPyConnection,
    configuration: Configuration,
    plan: Plan,
    weights: Mapping[str, float] | None = None,
) -> Comparison:
    """All effects of a configuration that has a reference (`vs`).

    `weights` are what data sets count; those that are not named count 1.
    """
    name, vs = configuration.name, configuration.vs
    if vs is None:
        raise ValueError(f"{name} is a reference: there is nothing to compare it with")
    prompts = paired_prompts(connection, name, vs)
    cells = paired_cells(connection, name, vs)
    times = paired_times(connection, name, vs, prompts)
    targets = paired_likelihoods(connection, name, vs)
    pairs = _Paired(prompts, times, cells, targets, weights or {})
    texts, rows = compare_rows(connection, name, vs)
    unequal = {m for m, count in rows.unequal.items() if count} | cells.unequal
    effects = [
        _unless_rows_differ(effect, unequal)
        for metric in METRICS
        if metric.source != "failure"
        for effect in _effects(metric, pairs)
    ]
    effects.append(_failures(connection, (name, vs), rows, prompts.clusters))
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


def _failures(
    connection: duckdb.DuckDBPyConnection,
    pair: tuple[str, str],
    rows: RowComparison,
    clusters: Sequence[tuple[str, str]],
) -> MetricEffect:
    """The share of rows that failed: of all pairs of rows alike, whatever their data sets."""
    metric = next(m for m in METRICS if m.source == "failure")
    if not (rows.num_failed or rows.num_failed_reference):
        none = 0.0 if rows.num_pairs else None
        zeros = [0.0] * len(clusters)
        nothing = share_effect(zeros, zeros, [1.0] * len(clusters), clusters)
        return MetricEffect(metric, "mean difference", none, none, nothing)
    found = paired_failures(connection, *pair)
    effect = share_effect(*found.failed, found.num_pairs, found.clusters)
    before, after = (sum(each) / sum(found.num_pairs) for each in found.failed)
    return MetricEffect(metric, "mean difference", before, after, effect)


def _unless_rows_differ(found: MetricEffect, unequal: Set[str]) -> MetricEffect:
    """Means over seeds can be equal where rows are not: that is no equality, but no difference."""
    metric = found.metric
    parts = {"rate": lambda: metric.totals, "per": lambda: metric.parts}
    names = parts.get(metric.source, lambda: (metric.name,))()
    if not found.effect.identical or unequal.isdisjoint(names):
        return found
    return replace(found, effect=found.effect.not_identical())


@dataclass(frozen=True)
class _Paired:
    """All that two configurations are compared by."""

    prompts: PairedPrompts
    times: PairedTimes
    cells: PairedCells
    targets: PairedPrompts
    weights: Mapping[str, float]

    def sets(self, datasets: Sequence[str]) -> Strata:
        """Data sets are fixed strata; what was added to one later is part of it."""
        return Strata([origin(dataset) for dataset in datasets], self.weights)


def _effects(metric: Metric, pairs: _Paired) -> list[MetricEffect]:
    prompts, cells, targets = pairs.prompts, pairs.cells, pairs.targets
    if metric.source == "rate":
        return [_rate(metric, pairs)]
    if metric.source == "per":
        return [_per(metric, pairs)]
    if metric.source in ("quality", "share"):
        own = targets if metric.source == "quality" else prompts
        a, b = own.means[metric.name]
        difference = difference_effect if metric.source == "quality" else score_effect
        effect = difference(a, b, own.clusters, strata=pairs.sets(own.datasets))
        return [_given(metric, "mean difference", a, b, effect)]
    if metric.source == "peak":
        a, b = cells.values[metric.name]
        effect = ratio_effect(a, b, cells.clusters, strata=pairs.sets(cells.datasets))
        return [_given(metric, "ratio of totals", a, b, _guarded(effect, a, b, cells))]
    a, b = prompts.means[metric.name]
    if metric.source == "time":
        c, d = pairs.times.values[metric.name]
        clusters, sets = pairs.times.clusters, pairs.sets(pairs.times.datasets)
        ratio = _guarded(ratio_effect(c, d, clusters, strata=sets), c, d, pairs.times)
        geometric = _guarded(geometric_effect(c, d, clusters, strata=sets), c, d, pairs.times)
    else:
        sets = pairs.sets(prompts.datasets)
        ratio = ratio_effect(a, b, prompts.clusters, strata=sets)
        geometric = geometric_effect(a, b, prompts.clusters, strata=sets)
    return [
        _given(metric, "ratio of totals", a, b, ratio),
        _given(metric, "geometric mean", a, b, geometric),
    ]


def _per(metric: Metric, pairs: _Paired) -> MetricEffect:
    """One sum over another, such as native tokens over base tokens of the same text."""
    if metric.is_timed:
        above, below = (pairs.times.values[name] for name in metric.parts)
        clusters, sets = pairs.times.clusters, pairs.sets(pairs.times.datasets)
    else:
        above, below = (pairs.prompts.means[name] for name in metric.parts)
        clusters, sets = [*pairs.prompts.clusters], pairs.sets(pairs.prompts.datasets)
    rates = [_rate_of(*pair) for pair in zip(above, below, strict=True)]
    effect = rate_effect((above[0], below[0]), (above[1], below[1]), clusters, strata=sets)
    if metric.is_timed:
        effect = _guarded(effect, above[0], above[1], pairs.times)
    return MetricEffect(metric, "ratio of totals", rates[0], rates[1], effect)


def _rate(metric: Metric, pairs: _Paired) -> MetricEffect:
    cells = pairs.cells
    amounts, times = (cells.values[f"{metric.name} {name}"] for name in metric.totals)
    sides = (amounts[0], times[0]), (amounts[1], times[1])
    effect = rate_effect(*sides, cells.clusters, strata=pairs.sets(cells.datasets))
    effect = _guarded(effect, amounts[0], amounts[1], cells)
    rates = [_rate_of(amount, time) for amount, time in zip(amounts, times, strict=True)]
    return MetricEffect(metric, "ratio of totals", rates[0], rates[1], effect)


def _rate_of(amounts: Sequence[float | None], times: Sequence[float | None]) -> float | None:
    pairs = [
        (amount, time)
        for amount, time in zip(amounts, times, strict=True)
        if _is_number(amount) and _is_number(time)
    ]
    total = sum(time for _, time in pairs)
    return sum(amount for amount, _ in pairs) / total if total > 0 else None


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _given(
    metric: Metric,
    statistic: Statistic,
    a: Sequence[float | None],
    b: Sequence[float | None],
    effect: Effect,
) -> MetricEffect:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if _is_number(x) and _is_number(y)]
    size = len(pairs)
    left = sum(x for x, _ in pairs) / size if size else None
    right = sum(y for _, y in pairs) / size if size else None
    return MetricEffect(metric, statistic, left, right, effect)


def _guarded(effect: Effect, a: Numbers, b: Numbers, pairs: PairedTimes | PairedCells) -> Effect:
    """Without an interval where a dataset has fewer shards than one can be trusted with.

    Rounds are no data set's own: of these there have to be so many as the test itself needs.
    """
    if pairs.in_leases and effect.num_clusters < (fewest := fewest_clusters(0.05)):
        return effect.withheld(
            f"{plural(effect.num_clusters, 'round')} of leases, and {fewest} are needed for an "
            "interval: `workers.rounds`"
        )
    if effect.estimate is None or effect.identical or pairs.in_leases:
        return effect
    used = {
        (origin(dataset), cluster)
        for dataset, cluster, x, y in zip(pairs.datasets, pairs.clusters, a, b, strict=True)
        if _is_number(x) and _is_number(y)
    }
    fewest = min(Counter(dataset for dataset, _ in used).values(), default=0)
    if fewest >= MIN_SHARDS:
        return effect
    return effect.withheld(
        f"{plural(fewest, 'shard')} per dataset, and {MIN_SHARDS} are needed for an interval"
    )
