"""Numbers of several configurations on the same units, as a factorial and a front need them.

A pair needs what both sides completed; these need what all completed. Every unit's cluster is its
shard for time and memory, the dataset's cluster (or the prompt) for the rest.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from jobs.analysis.intervals import Floats
from jobs.metrics import Metric, column
from jobs.pairing import cluster_of


@dataclass(frozen=True)
class Aligned:
    """Entry i of every array is the same cluster's total."""

    totals: dict[str, Floats]
    """Configuration -> (quantities, clusters): (sum, units), or (amount, below) of a rate."""
    clusters: list[Hashable]


def aligned(
    connection: duckdb.DuckDBPyConnection, metric: Metric, configurations: Sequence[str]
) -> Aligned:
    """Totals per cluster of what every one of the configurations has; empty where nothing is."""
    rows = connection.execute(_query(metric), {"names": list(configurations)}).fetchall()
    places: dict[Hashable, int] = {}
    for dataset, unit, cluster, shard, *_ in rows:
        places.setdefault(_cluster(metric, dataset, unit, cluster, shard), len(places))
    totals = {name: np.zeros((2, len(places))) for name in configurations}
    for dataset, unit, cluster, shard, name, above, below in rows:
        place = places[_cluster(metric, dataset, unit, cluster, shard)]
        totals[name][:, place] += (above, below)
    return Aligned(totals, list(places))


def _cluster(
    metric: Metric, dataset: str, unit: str | None, cluster: str | None, shard: int
) -> Hashable:
    if metric.is_timed or metric.is_memory or unit is None:
        return dataset, shard
    return cluster_of(dataset, unit, cluster)


def _query(metric: Metric) -> str:
    """Rows of (dataset, prompt, cluster, shard, configuration, above, below)."""
    if metric.source in ("rate", "peak"):
        above, below = metric.totals if metric.source == "rate" else (metric.name, "1")
        return f"""
            WITH used AS (
                SELECT dataset, shard, seed, configuration, {above} AS above, {below} AS below
                FROM cells WHERE kind = 'generations' AND configuration IN (SELECT unnest($names))
                    AND {above} IS NOT NULL AND {below} IS NOT NULL AND num_errors = 0),
            whole AS (SELECT dataset, shard, seed FROM used GROUP BY ALL
                HAVING count(DISTINCT configuration) = len($names))
            SELECT dataset, NULL, NULL, shard, configuration, sum(above), sum(below)
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
    return f"""
        WITH used AS (
            SELECT dataset, prompt_id, {key} AS repeat, shard, configuration,
                {above} AS above, {below} AS below
            FROM {table} WHERE configuration IN (SELECT unnest($names)) AND error IS NULL
                AND {usable}),
        whole AS (SELECT dataset, prompt_id, repeat FROM used GROUP BY ALL
            HAVING count(DISTINCT configuration) = len($names)),
        groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts GROUP BY ALL)
        SELECT used.dataset, used.prompt_id, any_value(groups.cluster), any_value(used.shard),
            used.configuration, avg(above), avg(below)
        FROM used JOIN whole USING (dataset, prompt_id, repeat)
            LEFT JOIN groups ON groups.dataset = used.dataset
                AND groups.prompt_id = used.prompt_id
        GROUP BY used.dataset, used.prompt_id, used.configuration ORDER BY ALL"""
