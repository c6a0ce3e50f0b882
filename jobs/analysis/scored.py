"""Scores as metrics: what any scorer or task says of outputs, compared and judged.

The effect is the mean difference in the score's own unit: outputs are paired by (data set, prompt,
seed) and averaged over seeds, prompts are swapped together where the data set's cluster column says
so, and the data sets that have the score count alike. Zeros and ones of one data set, one pair a
prompt, are tested by McNemar's exact test (`jobs.stats.permutation.mcnemar`), all else by drawn
swaps; of what is within 0 and 1 differences other than none are tested by what that alone shows too
(`jobs.stats.permutation.bounded`). More is better, unless the task or the spec's `directions` say
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np

from cluster.plan import Plan, origin
from jobs.analysis.comparison import Comparison, MetricEffect
from jobs.analysis.guards.withholding import FAILURE_MARGIN
from jobs.formatting import plural
from jobs.queries.paired_scores import TABLE, PairedScores, paired_scores
from jobs.scoring.scores import Collected, collect, statistics_of
from jobs.spec.metrics import BY_NAME, Metric, score_metric
from jobs.spec.score_names import plan_scores
from jobs.stats.permutation.effect import NO_PAIRS, NONE, Effect
from jobs.stats.permutation.effects import score_effect
from jobs.stats.permutation.mcnemar import exact_difference
from jobs.stats.permutation.units import Strata
from optim.errors import InputError

_NO_MEAN = (
    "it is no mean of its documents, so their sides cannot be swapped; its interval, by the "
    "jackknife, stands among the scores"
)


@dataclass(frozen=True)
class Scored:
    """The scores of a trial, made once, as its report and its verdicts need them."""

    metrics: tuple[Metric, ...] = ()
    """One per scorer or task metric; what is a metric without scores already is none of them."""
    statistics: tuple[dict[str, Any], ...] = ()
    """Per configuration, data set and scorer, as `jobs.scoring.scores.score_statistics`."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Metric -> why some data set is not scored by it here."""
    aggregated: frozenset[str] = frozenset()
    """Metrics that are no mean of their documents, so that sides cannot be swapped in them."""

    def why_not(self, metric: str) -> str | None:
        """Why a score cannot be tested; None where it can."""
        if metric in self.aggregated and metric not in self.failures:
            return _NO_MEAN
        return self.failures.get(metric)

    @property
    def comparable(self) -> tuple[Metric, ...]:
        """Those that can be tested."""
        return tuple(metric for metric in self.metrics if self.why_not(metric.name) is None)

    @property
    def notes(self) -> list[str]:
        """What could not be scored, one line a reason."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.failures.items():
            by_reason.setdefault(reason, []).append(name)
        return [
            f"there are no scores by {', '.join(names)}: {why}" for why, names in by_reason.items()
        ]


def read_scores(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Scored:
    """Score all outputs, and add the table `scores` to the connection; nothing without a scorer.

    What cannot be scored here, because a scorer or a task cannot be loaded, is in `failures`.
    """
    names = plan_scores(plan)
    if not names:
        return Scored()
    collected = collect(connection, plan, keeps_on=True)
    connection.register("_scores", collected.table)
    connection.execute(f"CREATE OR REPLACE TABLE {TABLE} AS SELECT * FROM _scores")
    connection.unregister("_scores")
    found = (name for (name,) in connection.execute(f"SELECT DISTINCT scorer FROM {TABLE} "
                                                    "ORDER BY scorer").fetchall())  # fmt: skip
    failures = {name: reason for (_, name), reason in collected.failures.items()}
    try:
        statistics = statistics_of(collected)
    except InputError as error:  # A task's own aggregation asked for what it may not have.
        statistics = []
        failures |= {n: str(error) for t in collected.tasks.values() for n in t.aggregations}
    known = [name for name in dict.fromkeys((*names, *found)) if name not in BY_NAME]
    aggregated = {n for t in collected.tasks.values() for n in t.aggregations.keys() - t.means}
    return Scored(
        tuple(score_metric(name, _direction(collected, name)) for name in known),
        tuple(row for row in statistics if row["scorer"] in known),
        {name: reason for name, reason in failures.items() if name in known},
        frozenset(aggregated & set(known)),
    )


def _direction(collected: Collected, name: str) -> Any:
    """As the tasks that have the metric say; `neither` where they contradict each other."""
    said = {
        task.higher_is_better[name]
        for task in collected.tasks.values()
        if name in task.higher_is_better
    }
    if len(said) > 1:
        return "neither"
    return "lower" if said == {False} else "higher"


def with_scores(
    connection: duckdb.DuckDBPyConnection,
    comparison: Comparison,
    scored: Scored,
    weights: Mapping[str, float] | None = None,
) -> Comparison:
    """The comparison with an effect of every score; `weights` are what data sets count."""
    if not scored.metrics:
        return comparison
    pairs = paired_scores(connection, comparison.configuration, comparison.vs)
    effects = tuple(
        _effect(metric, comparison, pairs.get(metric.name, PairedScores()), scored, weights or {})
        for metric in scored.metrics
    )
    return replace(comparison, effects=comparison.effects + effects)


def _effect(
    metric: Metric,
    comparison: Comparison,
    pairs: PairedScores,
    scored: Scored,
    weights: Mapping[str, float],
) -> MetricEffect:
    if metric.name in scored.aggregated:
        return _aggregated(metric, comparison, scored)
    usable = [i for i, size in enumerate(pairs.sizes) if size]
    a = np.array([pairs.reference[i] for i in usable], dtype=np.float64)
    b = np.array([pairs.own[i] for i in usable], dtype=np.float64)
    clusters = [pairs.clusters[i] for i in usable]
    sets = [origin(pairs.datasets[i]) for i in usable]
    if _is_right_or_wrong(a, b) and _is_alone(pairs, usable) and len(set(sets)) == 1:
        effect = exact_difference(a, b)
    else:
        effect = score_effect(a, b, clusters, strata=Strata(sets, weights))
    if effect.identical and pairs.num_unequal:
        effect = effect.not_identical()
    effect = replace(effect, num_left_out=effect.num_left_out + len(pairs.sizes) - len(usable))
    means = [float(side.mean()) if len(side) else None for side in (a, b)]
    reason = scored.failures.get(metric.name)
    if reason is not None and effect.estimate is None:
        effect = replace(effect, reason=reason)
    withheld = reason or _why_withheld(metric, comparison, pairs, effect)
    return MetricEffect(metric, "mean difference", means[0], means[1], effect, withheld)


def _is_right_or_wrong(a: Any, b: Any) -> bool:
    return bool(len(a)) and bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())


def _is_alone(pairs: PairedScores, usable: Sequence[int]) -> bool:
    """Whether every prompt is one pair of outputs, and depends on no other prompt."""
    clusters = {pairs.clusters[i] for i in usable}
    return len(clusters) == len(usable) and all(pairs.sizes[i] == 1 for i in usable)


def _why_withheld(
    metric: Metric, comparison: Comparison, pairs: PairedScores, effect: Effect
) -> str | None:
    """Where what was scored is not the same outputs; failed rows are withheld for already."""
    num, own, theirs = pairs.num_pairs, pairs.num_failed, pairs.num_failed_reference
    if pairs.num_failed_apart > FAILURE_MARGIN * num:
        return (
            f"`{metric.name}` failed on {own:,} of {num:,} outputs, and on {theirs:,} of "
            f"{comparison.vs}'s: what was scored does not compare"
        )
    if effect.identical and pairs.num_failed_apart:
        apart = plural(pairs.num_failed_apart, "output")
        return f"`{metric.name}` failed on one side only for {apart}"
    empty = len(set(pairs.datasets)) - len(
        {d for d, size in zip(pairs.datasets, pairs.sizes, strict=True) if size}
    )
    if effect.identical and empty:
        return f"{plural(empty, 'data set')} without a single scored pair"
    return None


def _aggregated(metric: Metric, comparison: Comparison, scored: Scored) -> MetricEffect:
    """Of a metric of all documents together: its difference, and why that has no verdict."""
    names = (comparison.vs, comparison.configuration)
    by_name = [
        {row["dataset"]: row for row in scored.statistics
         if row["scorer"] == metric.name and row["configuration"] == name}
        for name in names
    ]  # fmt: skip
    differences = [row["difference"] for row in by_name[1].values()]
    means = [_mean([row["mean"].estimate for row in rows.values()]) for rows in by_name]
    estimate = _mean([each.estimate for each in differences])
    size = sum(each.num_units for each in differences)
    identical = bool(differences) and all(each.identical for each in differences)
    reason = scored.why_not(metric.name)
    effect = Effect(estimate, None, None, size, size, NONE, reason if size else NO_PAIRS)
    if identical:
        effect = differences[0] if len(differences) == 1 else replace(
            differences[0], num_units=size, num_clusters=size
        )  # fmt: skip
    return MetricEffect(
        metric, "mean difference", means[0], means[1], effect, None if identical else reason
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of data sets, which count alike; None where one has none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
