"""How the rows of two configurations end: equal or not, failed, cut by the length budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import duckdb

from cluster.plan import origin
from jobs.queries.pairing import ROW_METRICS, TIME_METRICS, cluster_of
from jobs.spec.metrics import column

_WHATEVER_THE_BUDGET = frozenset({"prompt_tokens", "ends_in_loop"})
"""Metrics that are equal where the length budget decided both."""


@dataclass(frozen=True)
class TextComparison:
    """How many (dataset, prompt, seed) have another text; rows with an error are left out."""

    differing: int
    compared: int


@dataclass(frozen=True)
class RowCounts:
    """How pairs of rows of equal (dataset, prompt, seed) end."""

    num_pairs: int = 0
    num_completed: int = 0
    """By both sides."""
    num_failed: int = 0
    """Of the configuration."""
    num_failed_reference: int = 0
    num_failed_apart: int = 0
    """Rows that failed on one side only."""
    num_cut: int = 0
    """Completions that the length budget ended; of the configuration."""
    num_cut_reference: int = 0
    num_cut_apart: int = 0
    """Completed pairs of other texts that the budget cut on either side."""


@dataclass(frozen=True)
class RowComparison(RowCounts):
    """Of all data sets and of each: what may be called equal, and what failed."""

    by_set: Mapping[str, RowCounts] = field(default_factory=dict)
    """Data set -> its own; what was added to one later is part of it."""
    unequal: Mapping[str, int] = field(default_factory=dict)
    """Metric -> completed pairs that are not equal in it; counts that the length budget decided are
    equal only where texts are."""

    @property
    def sets(self) -> Mapping[str, RowCounts]:
        """Each data set's; all rows as one where it is not known of which they are."""
        return self.by_set or {"": self}


def compare_rows(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> tuple[TextComparison, RowComparison]:
    """In an A/A pair, and for an optimisation that is meant to be exact, nothing should differ."""
    done = "o.error IS NULL AND r.error IS NULL"
    other_text = "o.completion_text IS DISTINCT FROM r.completion_text"
    by_budget = "(o.finish_reason = 'length' OR r.finish_reason = 'length')"
    unequal = ", ".join(
        f"count(*) FILTER ({done} AND ({column(m, 'o')} IS DISTINCT FROM {column(m, 'r')}"
        + ("))" if m in _WHATEVER_THE_BUDGET else f" OR ({other_text} AND {by_budget})))")
        for m in ROW_METRICS
    )
    timed = f"{done} AND NOT coalesce(o.warmup, false) AND NOT coalesce(r.warmup, false)"
    unequal += "".join(
        f", count(*) FILTER ({timed} AND o.{m} IS DISTINCT FROM r.{m})" for m in TIME_METRICS
    )
    rows = connection.execute(
        f"""
        SELECT o.dataset, count(*) FILTER ({done} AND {other_text}), count(*),
            count(*) FILTER ({done}),
            count(*) FILTER (o.error IS NOT NULL), count(*) FILTER (r.error IS NOT NULL),
            count(*) FILTER ((o.error IS NULL) <> (r.error IS NULL)),
            count(*) FILTER ({done} AND o.finish_reason = 'length'),
            count(*) FILTER ({done} AND r.finish_reason = 'length'),
            count(*) FILTER ({done} AND {other_text} AND {by_budget}), {unequal}
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
        WHERE o.configuration = ? AND r.configuration = ?
        GROUP BY o.dataset
        """,
        [configuration, reference],
    ).fetchall()
    size = len(fields(RowCounts))
    totals = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    totals = totals or [0] * (1 + size + len(ROW_METRICS) + len(TIME_METRICS))
    sets: dict[str, list[int]] = {}
    for name, _, *counts in rows:
        so_far = sets.setdefault(origin(name), [0] * size)
        sets[origin(name)] = [sum(pair) for pair in zip(so_far, counts[:size], strict=True)]
    compared = RowComparison(
        **asdict(RowCounts(*totals[1 : 1 + size])),
        by_set={name: RowCounts(*counts) for name, counts in sorted(sets.items())},
        unequal=dict(zip((*ROW_METRICS, *TIME_METRICS), totals[1 + size :], strict=True)),
    )
    return TextComparison(totals[0], compared.num_completed), compared


@dataclass(frozen=True)
class PairedFailures:
    """One entry per (dataset, prompt): how many of its pairs of rows failed on each side."""

    clusters: list[tuple[str, str]]
    failed: tuple[list[float], list[float]]
    """(reference, configuration)."""
    num_pairs: list[float]


def paired_failures(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> PairedFailures:
    """Over all rows that both sides have, whether they completed or not."""
    rows = connection.execute(
        """
        WITH groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts GROUP BY ALL)
        SELECT o.dataset, o.prompt_id, any_value(groups.cluster),
            count(r.error), count(o.error), count(*)
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
        LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ?
        GROUP BY o.dataset, o.prompt_id ORDER BY o.dataset, o.prompt_id
        """,
        [configuration, reference],
    ).fetchall()
    return PairedFailures(
        clusters=[cluster_of(row[0], row[1], row[2]) for row in rows],
        failed=([float(row[3]) for row in rows], [float(row[4]) for row in rows]),
        num_pairs=[float(row[5]) for row in rows],
    )
