"""What each factor of a trial does: main effects, interactions and Shapley shares.

A factor is what is on in some configurations and off in others: a factor of the spec at two levels,
or an optimisation where configurations are listed. Only a full factorial can be taken apart: where
a combination is missing, it is named and nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import duckdb
import numpy as np

from cluster.plan import Configuration, Plan, origin
from jobs.queries.complete_cases import aligned
from jobs.spec.analysis_plan import MIN_SHARDS, Judgement
from jobs.spec.metrics import METRICS, Metric
from jobs.stats.factorial import Contrast, Share, contrasts, shapley
from jobs.stats.intervals import Floats

TOKENS = ("completion_tokens", "tokens_per_base_token", "base_completion_tokens")
_FEWEST_CLUSTERS = 2


@dataclass(frozen=True)
class Design:
    """The configurations of a factorial, by the factors that are on in each."""

    factors: dict[str, tuple[str, str]]
    """Factor -> what it is when off, and when on."""
    cells: dict[frozenset[str], str]
    """Factors that are on -> the configuration."""
    missing: tuple[frozenset[str], ...] = ()
    left_out: tuple[str, ...] = ()
    """Configurations that are no part of it."""
    reason: str | None = None
    """Why nothing can be attributed; None where all of it can."""


@dataclass(frozen=True)
class Attribution:
    """One metric taken apart, on the logs of ratios or in the metric's own unit."""

    metric: Metric
    contrasts: tuple[Contrast, ...]
    shares: tuple[Share, ...]
    num_clusters: int
    reason: str | None = None


def design_of(plan: Plan) -> Design:
    """The factorial that a plan's configurations make up, if they do."""
    arms = [c for c in plan.configurations if c.duplicate_of is None]
    with_levels = [c for c in arms if c.levels]
    return _by_levels(arms, with_levels) if with_levels else _by_optimizations(arms)


def _by_levels(arms: Sequence[Configuration], crossed: Sequence[Configuration]) -> Design:
    reference = next((c for c in crossed if c.vs is None), crossed[0])
    levels: dict[str, list[str]] = {}
    for configuration in crossed:
        for factor, level in configuration.levels.items():
            if level not in levels.setdefault(factor, []):
                levels[factor].append(level)
    several = [factor for factor, names in levels.items() if len(names) > 2]
    if several:
        reason = f"`{several[0]}` has {len(levels[several[0]])} levels: attribution is of two"
        return Design({}, {}, reason=reason)
    off = reference.levels
    factors = {
        factor: (off[factor], next(name for name in names if name != off[factor]))
        for factor, names in levels.items()
        if len(names) == 2
    }
    cells = {
        frozenset(f for f in factors if c.levels[f] != off[f]): c.name
        for c in crossed
        if all(c.levels.get(f) in pair for f, pair in factors.items())
    }
    return _checked(factors, cells, arms)


def _by_optimizations(arms: Sequence[Configuration]) -> Design:
    """Listed configurations: an optimisation, with one group of settings, is a factor."""
    engine = {(c.batch_size, c.cache, c.prefill_chunk) for c in arms}
    settings: dict[str, set[str]] = {}
    for configuration in arms:
        for chosen in configuration.optimizations:
            settings.setdefault(chosen.name, set()).add(chosen.model_dump_json())
    several = [name for name, found in settings.items() if len(found) > 1]
    if several or len(engine) > 1:
        what = f"`{several[0]}` has several settings" if several else "engine settings differ"
        return Design({}, {}, reason=f"{what}: declare `factors` for an attribution")
    factors = dict.fromkeys(settings, ("off", "on"))
    cells = {frozenset(o.name for o in c.optimizations): c.name for c in arms}
    return _checked(factors, cells, arms)


def _checked(
    factors: dict[str, tuple[str, str]],
    cells: dict[frozenset[str], str],
    arms: Sequence[Configuration],
) -> Design:
    if not factors:
        return Design(
            factors, cells, reason="no factor is on in some configurations and off in others"
        )
    if len(factors) < 2:
        return Design(factors, cells, reason="there is one factor: its effect is the comparison's")
    names = list(factors)
    wanted = [
        frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)
    ]
    missing = tuple(on for on in wanted if on not in cells)
    left_out = tuple(c.name for c in arms if c.name not in cells.values())
    reason = None
    if missing:
        shown = "; ".join(" + ".join(sorted(on)) or "none of them" for on in missing)
        reason = f"the factorial is not full; combinations that are missing: {shown}"
    return Design(factors, cells, missing, left_out, reason)


def attributions(
    connection: duckdb.DuckDBPyConnection,
    design: Design,
    judgement: Judgement,
    scores: Sequence[Metric] = (),
) -> list[Attribution]:
    """One per primary metric and per part of a token difference; none without a full factorial.

    `scores` are metrics as well, of outputs that the connection has the scores of.
    """
    if design.reason is not None:
        return []
    names = dict.fromkeys((*judgement.primary, *TOKENS, "prompt_tokens"))
    # All intervals of the primary metrics hold together (Bonferroni), as their verdicts do.
    num_contrasts = 2 ** len(design.factors) - 1
    confidence = 1 - judgement.alpha / (num_contrasts * len(judgement.primary))
    every = (*METRICS, *scores)
    wanted = [m for m in every if m.name in names and m.source != "failure"]
    return [_attribution(connection, design, m, confidence, judgement.weights) for m in wanted]


def _attribution(
    connection: duckdb.DuckDBPyConnection,
    design: Design,
    metric: Metric,
    confidence: float,
    weights: Mapping[str, float],
) -> Attribution:
    found = aligned(connection, metric, list(design.cells.values()))
    size = len(found.clusters)
    if size < _FEWEST_CLUSTERS:
        reason = (
            "no unit was completed by all of its configurations"
            if not size
            else ("one unit alone says nothing of the spread")
        )
        return Attribution(metric, (), (), size, reason)
    few = _too_few_shards(metric, found.clusters)
    if few is not None:
        return Attribution(metric, (), (), size, few)
    totals = {on: found.by_set[name].reshape(-1, size) for on, name in design.cells.items()}
    if metric.is_relative and any((each.sum(axis=1) <= 0).any() for each in totals.values()):
        return Attribution(metric, (), (), size, "a total is zero")
    counted = np.array([weights.get(name, 1.0) for name in found.sets])
    statistic = partial(log_mean if metric.is_relative else plain_mean, counted / counted.sum())
    factors = list(design.factors)
    return Attribution(
        metric,
        tuple(contrasts(totals, factors, statistic, confidence)),
        tuple(shapley(totals, factors, statistic, confidence)),
        size,
    )


def _too_few_shards(metric: Metric, clusters: Sequence[Hashable]) -> str | None:
    """As for comparisons: rows of a shard share its noise."""
    if not (metric.is_timed or metric.is_memory):
        return None
    counts = Counter(origin(cluster[0]) for cluster in clusters if isinstance(cluster, tuple))
    few = [name for name, count in counts.items() if count < MIN_SHARDS]
    return f"{few[0]} has fewer than {MIN_SHARDS} shards" if few else None


def log_mean(weights: Floats, totals: Floats) -> Floats:
    """Weighted mean over data sets of log(amounts / what they are divided by), as comparisons have
    it; totals are each data set's amounts, then what divides them."""
    above, below = np.split(totals, 2)
    return np.asarray(weights @ (np.log(above) - np.log(below)), dtype=np.float64)


def plain_mean(weights: Floats, totals: Floats) -> Floats:
    above, below = np.split(totals, 2)
    return np.asarray(weights @ (above / below), dtype=np.float64)
