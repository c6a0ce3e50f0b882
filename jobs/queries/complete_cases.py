"""Numbers of several configurations on the same units, as a factorial and a front need them.

A pair needs what both sides completed; these need what all completed. Every unit's cluster is its
shard for time and memory (in leases the round), the dataset's cluster (or the prompt) for the rest.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from cluster.plan import origin
from jobs.queries.paired_scores import aligned_scores
from jobs.queries.pairing import ROUNDS, cluster_of, in_leases
from jobs.spec.metrics import Metric, column
from jobs.stats.intervals import Floats


@dataclass(frozen=True)
class Aligned:
    """Entry i of every array is the same cluster's total."""

    totals: dict[str, Floats]
    """Configuration -> (quantities, clusters): (sum, units), or (amount, below) of a rate."""
    clusters: list[Hashable]
    by_set: dict[str, Floats]
    """Configuration -> (quantities, data sets, clusters): what each data set has of it."""
    sets: list[str]


def aligned(
    connection: duckdb.DuckDBPyConnection, metric: Metric, configurations: Sequence[str]
) -> Aligned:
    """Totals per cluster of what every one of the configurations has; empty where nothing is."""
    leases = in_leases(connection)
    if metric.source == "score":
        rows = aligned_scores(connection, metric.name, configurations)
    else:
        names = {"names": list(configurations)}
        rows = connection.execute(_query(metric, leases), names).fetchall()
    places: dict[Hashable, int] = {}
    sets: dict[str, int] = {}
    for dataset, unit, cluster, shard, *_ in rows:
        places.setdefault(_cluster(metric, leases, dataset, unit, cluster, shard), len(places))
        sets.setdefault(origin(dataset), len(sets))
    by_set = {name: np.zeros((2, len(sets), len(places))) for name in configurations}
    for dataset, unit, cluster, shard, name, above, below in rows:
        place = places[_cluster(metric, leases, dataset, unit, cluster, shard)]
        by_set[name][:, sets[origin(dataset)], place] += (above, below)
    totals = {name: each.sum(axis=1) for name, each in by_set.items()}
    return Aligned(totals, list(places), by_set, list(sets))


def _cluster(
    metric: Metric,
    leases: bool,
    dataset: str,
    unit: str | None,
    cluster: str | None,
    shard: int,
) -> Hashable:
    """`shard` is the round where leases were used."""
    if metric.is_timed or metric.is_memory or unit is None:
        return ("round" if leases else dataset), shard
    return cluster_of(dataset, unit, cluster)


def _query(metric: Metric, leases: bool) -> str:
    """Rows of (dataset, prompt, cluster, shard or round, configuration, above, below)."""
    place = "round" if leases else "shard"
    if metric.source in ("rate", "peak"):
        above, below = metric.totals if metric.source == "rate" else (metric.name, "1")
        return f"""
            WITH used AS (
                SELECT dataset, shard, {place} AS place, seed, configuration, {above} AS above,
                    {below} AS below
                FROM cells WHERE kind = 'generations' AND configuration IN (SELECT unnest($names))
                    AND {above} IS NOT NULL AND {below} IS NOT NULL AND num_errors = 0),
            whole AS (SELECT dataset, shard, seed FROM used GROUP BY ALL
                HAVING count(DISTINCT configuration) = len($names))
            SELECT dataset, NULL, NULL, place, configuration, sum(above), sum(below)
            FROM used JOIN whole USING (dataset, shard, seed) GROUP BY ALL ORDER BY ALL"""
    if metric.source == "quality":
        above, below, table, key = "nats / ln(2) / num_bytes", "1", "likelihoods", "candidate"
        usable = "candidate = -1 AND num_bytes > 0 AND nats IS NOT NULL"
    else:
        above, below = metric.parts if metric.source == "per" else (column(metric.name), "1")
        table, key = "generations", "seed"
        usable = f"{above} IS NOT NULL AND {below} IS NOT NULL"
        if metric.is_timed:
            usable += " AND NOT coalesce(warmup, false)"
    by_round = leases and metric.is_timed
    place = "round" if by_round else "shard"
    source = f"{table} JOIN rounds USING (dataset, shard, seed)" if by_round else table
    return f"""
        WITH {ROUNDS}, used AS (
            SELECT dataset, prompt_id, {key} AS repeat, {place} AS place,
                configuration, {above} AS above, {below} AS below
            FROM {source} WHERE configuration IN (SELECT unnest($names)) AND error IS NULL
                AND {usable}),
        whole AS (SELECT dataset, prompt_id, repeat FROM used GROUP BY ALL
            HAVING count(DISTINCT configuration) = len($names)),
        groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts GROUP BY ALL)
        SELECT used.dataset, used.prompt_id, any_value(groups.cluster), used.place,
            used.configuration, avg(above), avg(below)
        FROM used JOIN whole USING (dataset, prompt_id, repeat)
            LEFT JOIN groups ON groups.dataset = used.dataset
                AND groups.prompt_id = used.prompt_id
        GROUP BY used.dataset, used.prompt_id, used.place, used.configuration ORDER BY ALL"""
