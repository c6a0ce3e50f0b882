"""Scores of two configurations on the same outputs, reduced by DuckDB as in `queries.pairing`.

They are read from a table `scores` (columns as `jobs.scoring.rows.SCORES`), which
`jobs.analysis.scored` adds to a connection. A score that is missing or no finite number leaves its
pair out, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from jobs.queries.pairing import cluster_of

TABLE = "scores"
_GROUPS = """groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts GROUP BY ALL)"""
# Scores by likelihood have no seed.
_SAME = """o.scorer = r.scorer AND o.dataset = r.dataset AND o.prompt_id = r.prompt_id
            AND o.seed IS NOT DISTINCT FROM r.seed"""
_BOTH = "coalesce(isfinite(o.value), false) AND coalesce(isfinite(r.value), false)"


@dataclass
class PairedScores:
    """Of one scorer: an entry per (dataset, prompt), the mean over the seeds that both have."""

    datasets: list[str] = field(default_factory=list)
    clusters: list[tuple[str, str]] = field(default_factory=list)
    reference: list[float | None] = field(default_factory=list)
    own: list[float | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Pairs of outputs that an entry is the mean of."""
    num_pairs: int = 0
    """Outputs of both sides, whether they have a score or not."""
    num_failed: int = 0
    """Outputs of the configuration that have no score."""
    num_failed_reference: int = 0
    num_failed_apart: int = 0
    """Pairs of which one side alone has a score."""
    num_unequal: int = 0
    """Pairs whose scores differ, whatever the means over seeds."""


def paired_scores(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> dict[str, PairedScores]:
    """By scorer."""
    has_own, has_theirs = (f"coalesce(isfinite({side}.value), false)" for side in "or")
    rows = connection.execute(
        f"""
        WITH {_GROUPS}
        SELECT o.scorer, o.dataset, o.prompt_id, any_value(groups.cluster),
            avg(r.value) FILTER ({_BOTH}), avg(o.value) FILTER ({_BOTH}), count(*) FILTER ({_BOTH}),
            count(*), count(*) FILTER (NOT {has_own}), count(*) FILTER (NOT {has_theirs}),
            count(*) FILTER ({has_own} <> {has_theirs}),
            count(*) FILTER ({_BOTH} AND o.value <> r.value)
        FROM {TABLE} o JOIN {TABLE} r ON {_SAME}
        LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ?
        GROUP BY o.scorer, o.dataset, o.prompt_id ORDER BY o.scorer, o.dataset, o.prompt_id
        """,
        [configuration, reference],
    ).fetchall()
    found: dict[str, PairedScores] = {}
    for scorer, dataset, prompt, cluster, theirs, own, size, *counts in rows:
        pairs = found.setdefault(scorer, PairedScores())
        pairs.datasets.append(dataset)
        pairs.clusters.append(cluster_of(dataset, prompt, cluster))
        pairs.reference.append(theirs)
        pairs.own.append(own)
        pairs.sizes.append(size)
        pairs.num_pairs += counts[0]
        pairs.num_failed += counts[1]
        pairs.num_failed_reference += counts[2]
        pairs.num_failed_apart += counts[3]
        pairs.num_unequal += counts[4]
    return found


def score_influences(
    connection: duckdb.DuckDBPyConnection, pair: tuple[str, str], scorer: str
) -> tuple[list[float], list[tuple[Any, ...]]]:
    """The difference of each (unit, seed), and the unit, as `sample_size.influences` has them."""
    rows = connection.execute(
        f"""
        WITH {_GROUPS}
        SELECT o.dataset, coalesce('cluster ' || groups.cluster, 'prompt ' || o.prompt_id) AS unit,
            avg(o.value - r.value)
        FROM {TABLE} o JOIN {TABLE} r ON {_SAME}
        LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ? AND o.scorer = ? AND {_BOTH}
        GROUP BY o.dataset, unit, o.seed ORDER BY o.dataset, unit, o.seed
        """,
        [*pair, scorer],
    ).fetchall()
    return [row[2] for row in rows], [row[:2] for row in rows]


def is_sampled(connection: duckdb.DuckDBPyConnection, scorer: str) -> bool:
    """Whether it scores completions, which another seed gives more of."""
    row = connection.execute(f"SELECT count(seed) FROM {TABLE} WHERE scorer = ?", [scorer])
    return bool((row.fetchone() or (0,))[0])


def aligned_scores(
    connection: duckdb.DuckDBPyConnection, scorer: str, configurations: Sequence[str]
) -> list[Any]:
    """What all configurations have: (dataset, prompt, cluster, 0, configuration, mean, 1)."""
    return connection.execute(
        f"""
        WITH {_GROUPS}, used AS (
            SELECT dataset, prompt_id, configuration, value FROM {TABLE}
            WHERE scorer = $scorer AND configuration IN (SELECT unnest($names))
                AND coalesce(isfinite(value), false)
            QUALIFY count(*) OVER (PARTITION BY dataset, prompt_id, seed) = len($names))
        SELECT used.dataset, used.prompt_id, any_value(groups.cluster), 0, used.configuration,
            avg(value), 1
        FROM used LEFT JOIN groups ON groups.dataset = used.dataset
            AND groups.prompt_id = used.prompt_id
        GROUP BY used.dataset, used.prompt_id, used.configuration ORDER BY ALL
        """,
        {"scorer": scorer, "names": list(configurations)},
    ).fetchall()
