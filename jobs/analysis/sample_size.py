"""What would settle an open verdict: so many more prompts, or so many more seeds.

Should the effect be what it now seems, a difference of its size is found, or it is shown to lie
within ±δ, whichever takes less; with the power that the trial asks for, at α shared by the primary
verdicts that are still open (Holm's first step among them, so a little cautious). The spread is
this trial's own: Var = (ω² + σ² / K) / N over N units (prompts, or shards where the rows of a cell
share noise) and K seeds, ω² being how much the effect varies by unit and σ² how much one unit's
varies by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from cluster.plan import Plan, origin
from jobs.analysis.comparison import MetricEffect
from jobs.analysis.verdicts import margin_on_scale
from jobs.queries.paired_scores import is_sampled, score_influences
from jobs.queries.pairing import in_leases
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import Metric, column
from jobs.stats.components import Components, variance_components
from jobs.stats.intervals import Floats
from jobs.stats.power import Needs, needed

LEASES = "configurations took turns in rounds, so only more rounds would: `workers.rounds`"


@dataclass(frozen=True)
class Need:
    """Beyond what is there; either of the two is enough."""

    num_prompts: int | None
    """At the present seeds, over all datasets."""
    num_seeds: int | None
    """At the present prompts; None where no number of seeds would do."""
    reason: str | None = None
    """Why seeds, or both, cannot."""


def need(
    connection: duckdb.DuckDBPyConnection,
    pair: tuple[str, str],
    found: MetricEffect,
    judgement: Judgement,
    plan: Plan,
    num_open: int = 1,
) -> Need:
    """What an open verdict of (configuration, reference) needs; what is unknown is None.

    `num_open` is how many primary verdicts are open, this one among them.
    """
    if found.effect.p is None and not found.effect.identical and found.effect.num_units > 1:
        return Need(None, None, found.effect.reason)
    if (found.metric.is_timed or found.metric.is_memory) and in_leases(connection):
        return Need(None, None, LEASES)
    values, units = influences(connection, pair, found.metric, judgement.weights)
    num_units = len(set(units))
    if num_units < 2:
        return Need(None, None, "one unit alone says nothing of the spread: run a pilot of more")
    components = variance_components(values, units)
    look = len(plan.looks) + 1
    # Seeds that were added may not be this pair's.
    num_seeds = max(1, round(components.num_seeds))
    wanted = _least(components, found, judgement, num_units, num_seeds, num_open, look)
    run = [d for d in plan.datasets if d.arms is None or pair[0] in d.arms]
    per_unit = sum(d.num_prompts for d in run) / num_units
    prompts = None if wanted.num_prompts is None else math.ceil(wanted.num_prompts * per_unit)
    seeds = wanted.num_seeds if _takes_seeds(connection, found.metric) else None
    return Need(prompts, seeds, wanted.reason)


def _least(
    components: Components,
    found: MetricEffect,
    judgement: Judgement,
    num_units: int,
    num_seeds: int,
    num_open: int,
    look: int,
) -> Needs:
    """Of finding a difference, and of showing equivalence, what takes fewer prompts."""
    size = abs(found.effect.log_estimate or 0.0)
    room = margin_on_scale(found, judgement.margin(found.metric)) - size
    # The next look's, which will judge it; all of α where none is kept for one.
    level = judgement.level(look + 1) or judgement.alpha
    alpha, same = judgement.shared(level, has_sets=len(found.effect.by_set or {}) > 1)[0], level
    power = judgement.power
    # Equivalence is two one-sided tests: each at α, and both have to succeed.
    ways = [
        (size, alpha / num_open, power),
        (room, 2 * same / num_open, (1 + power) / 2),
    ]
    wanted = [
        needed(components, target, num_units, num_seeds, level, chance)
        for target, level, chance in ways
        if target > 0
    ]
    return min(wanted, key=lambda need: math.inf if need.num_prompts is None else need.num_prompts)


def _takes_seeds(connection: duckdb.DuckDBPyConnection, metric: Metric) -> bool:
    """Whether another seed says more of it: likelihoods have none."""
    if metric.source == "score":
        return is_sampled(connection, metric.name)
    return metric.source != "quality"


def influences(
    connection: duckdb.DuckDBPyConnection,
    pair: tuple[str, str],
    metric: Metric,
    weights: Mapping[str, float] | None = None,
) -> tuple[list[float], list[tuple[Any, ...]]]:
    """What each (unit, seed) adds to the effect, on the scale of its standard error.

    A relative effect is linearised in each data set: b_i / Σb − a_i / Σa times what the set counts
    and how many (unit, seed) there are, and the same of both totals of a rate. Their mean over
    units, then units, has the effect's standard error; what sets differ by is no part of it.
    """
    if metric.source == "score":
        return score_influences(connection, pair, metric.name)
    rows = connection.execute(_query(metric), list(pair)).fetchnumpy()
    columns = [np.asarray(rows[f"c{i}"], dtype=np.float64) for i in range(4)]
    datasets = rows["dataset"].tolist()
    sets = np.array([origin(name) for name in datasets], dtype=object)
    units = list(zip(datasets, rows["unit"].tolist(), strict=True))
    values = np.zeros(len(datasets))
    counted = {name: (weights or {}).get(name, 1.0) for name in dict.fromkeys(sets)}
    for name, weight in counted.items():
        own = sets == name
        share = weight / math.fsum(counted.values()) * len(sets) / int(own.sum())
        values[own] = share * _linearised(metric, [column[own] for column in columns])
    return values.tolist(), units


def _linearised(metric: Metric, columns: list[Floats]) -> Floats:
    """`columns`: the configuration's amount and what it is divided by, then the reference's."""
    if not metric.is_relative:
        difference = columns[0] - columns[2]
        return np.asarray(difference - difference.mean(), dtype=np.float64)
    parts = [
        len(column) * column / column.sum() if column.sum() else column * 0 for column in columns
    ]
    return parts[0] - parts[1] - parts[2] + parts[3]


def _query(metric: Metric) -> str:
    if metric.source in ("rate", "peak"):
        above, below = metric.totals if metric.source == "rate" else (metric.name, "1")
        return f"""
            SELECT o.dataset AS dataset, CAST(o.shard AS VARCHAR) AS unit, o.{above} AS c0,
                {_side("o", below)} AS c1, r.{above} AS c2, {_side("r", below)} AS c3
            FROM cells o JOIN cells r USING (dataset, shard, seed, kind)
            WHERE o.configuration = ? AND r.configuration = ? AND o.kind = 'generations'
                AND o.num_errors = 0 AND r.num_errors = 0 AND o.{above} IS NOT NULL
                AND r.{above} IS NOT NULL"""
    if metric.source == "failure":
        return f"""{_GROUPS}
            SELECT o.dataset AS dataset, {_UNIT} AS unit,
                (o.error IS NOT NULL)::INTEGER AS c0, 1 AS c1,
                (r.error IS NOT NULL)::INTEGER AS c2, 1 AS c3
            FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
                LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
            WHERE o.configuration = ? AND r.configuration = ?"""
    if metric.source == "quality":
        return f"""{_GROUPS}
            SELECT o.dataset AS dataset, {_UNIT} AS unit,
                o.nats / ln(2) / o.num_bytes AS c0, 1 AS c1,
                r.nats / ln(2) / r.num_bytes AS c2, 1 AS c3
            FROM likelihoods o JOIN likelihoods r USING (dataset, prompt_id, candidate)
                LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
            WHERE o.configuration = ? AND r.configuration = ? AND o.candidate = -1
                AND o.nats IS NOT NULL AND r.nats IS NOT NULL AND o.num_bytes > 0"""
    above, below = metric.parts if metric.source == "per" else (metric.name, "1")
    ours, theirs = column(above, "o"), column(above, "r")
    warm = " AND NOT coalesce(o.warmup, false) AND NOT coalesce(r.warmup, false)"
    unit = "CAST(o.shard AS VARCHAR)" if metric.is_timed else _UNIT
    # A mean difference weighs units alike; a relative effect, what they hold.
    how = "sum" if metric.is_relative else "avg"
    return f"""{_GROUPS}
        SELECT o.dataset AS dataset, {unit} AS unit, {how}({ours}) AS c0,
            sum({_side("o", below)}) AS c1, {how}({theirs}) AS c2, sum({_side("r", below)}) AS c3
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
            LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ? AND o.error IS NULL AND r.error IS NULL
            AND {ours} IS NOT NULL AND {theirs} IS NOT NULL{warm if metric.is_timed else ""}
        GROUP BY o.dataset, {unit}, seed"""


_GROUPS = """
        WITH groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts GROUP BY ALL)"""
# As `jobs.queries.pairing.cluster_of`: what effects take as independent.
_UNIT = "coalesce('cluster ' || groups.cluster, 'prompt ' || o.prompt_id)"


def _side(side: str, column: str) -> str:
    return column if column == "1" else f"{side}.{column}"
