"""Paired numbers of two configurations, reduced by DuckDB so that memory grows with prompts.

Rows are paired by (dataset, prompt, seed) first and averaged over seeds after, so that a seed that
only one side completed enters neither mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from jobs.metrics import column

ROW_METRICS = (
    "prompt_tokens", "completion_tokens", "total_tokens", "base_completion_tokens",
    "completion_bytes",
)  # fmt: skip
TIME_METRICS = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True)
class PairedPrompts:
    """One entry per (dataset, prompt): means over the seeds that both sides completed."""

    clusters: list[tuple[str, str]]
    """The prompt's group of dependent prompts; itself where the dataset names none."""
    shards: list[tuple[str, int]]
    means: dict[str, tuple[list[float | None], list[float | None]]]
    """Metric -> (reference, configuration); None where no seed has the metric on both sides."""


@dataclass(frozen=True)
class PairedCells:
    """One entry per (dataset, shard): totals over the seeds that both sides committed."""

    shards: list[tuple[str, int]]
    values: dict[str, tuple[list[float | None], list[float | None]]]
    """Column -> (reference, configuration)."""
    unequal: frozenset[str] = frozenset()
    """Columns in which some cell differs, whatever the seeds' sums and means."""


@dataclass(frozen=True)
class TextComparison:
    """How many (dataset, prompt, seed) have another text; rows with an error are left out."""

    differing: int
    compared: int


@dataclass(frozen=True)
class RowComparison:
    """How rows of equal (dataset, prompt, seed) end: what may be called equal, and what failed."""

    num_pairs: int = 0
    num_failed: int = 0
    """Of the configuration."""
    num_failed_reference: int = 0
    num_failed_apart: int = 0
    """Rows that failed on one side only."""
    num_empty_sets: int = 0
    """Data sets without a single pair that both sides completed."""
    unequal: Mapping[str, int] = field(default_factory=dict)
    """Metric -> completed pairs that are not equal in it; counts that the length budget decided are
    equal only where texts are."""


def paired_prompts(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> PairedPrompts:
    """Prompt means of tokens, bytes and times; rows of a cold engine have no times."""
    metrics = [(m, "") for m in ROW_METRICS]
    metrics += [(m, " AND NOT coalesce(r.warmup, false) AND NOT coalesce(o.warmup, false)")
                for m in TIME_METRICS]  # fmt: skip
    means = ", ".join(
        f"avg({column(m, side)}) FILTER ({column(m, 'r')} IS NOT NULL AND "
        f"{column(m, 'o')} IS NOT NULL{condition})"
        for m, condition in metrics
        for side in ("r", "o")
    )
    rows = connection.execute(
        f"""
        WITH groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts
            GROUP BY ALL)
        SELECT o.dataset, o.prompt_id, any_value(groups.cluster), any_value(o.shard), {means}
        FROM generations o
        JOIN generations r USING (dataset, prompt_id, seed)
        LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ? AND o.error IS NULL AND r.error IS NULL
        GROUP BY o.dataset, o.prompt_id ORDER BY o.dataset, o.prompt_id
        """,
        [configuration, reference],
    ).fetchall()
    return PairedPrompts(
        clusters=[cluster_of(row[0], row[1], row[2]) for row in rows],
        shards=[(row[0], row[3]) for row in rows],
        means={m: _columns(rows, 4 + 2 * i) for i, (m, _) in enumerate(metrics)},
    )


CELL_TOTALS = (
    "wall_s", "completion_tokens", "base_completion_tokens", "completion_bytes",
    "kv_committed_byte_s",
)  # fmt: skip
CELL_PEAKS = ("kv_used_peak_bytes", "kv_committed_peak_bytes", "kv_reserved_peak_bytes")


def paired_cells(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> PairedCells:
    """Sums (time, output) and means of peaks (memory) over the seeds of a shard.

    Without cells where one side failed more often, or every row did: what did not run took no time
    and no memory.
    """
    columns = [(c, "sum") for c in CELL_TOTALS] + [(c, "avg") for c in CELL_PEAKS]
    values = ", ".join(
        f"{how}({side}.{c}) FILTER (r.{c} IS NOT NULL AND o.{c} IS NOT NULL)"
        for c, how in columns
        for side in ("r", "o")
    )
    unequal = ", ".join(f"bool_or(o.{c} IS DISTINCT FROM r.{c})" for c, _ in columns)
    rows = connection.execute(
        f"""
        SELECT o.dataset, o.shard, {values}, {unequal}
        FROM cells o JOIN cells r USING (dataset, shard, seed, kind)
        WHERE o.configuration = ? AND r.configuration = ? AND o.kind = 'generations'
            AND o.num_errors IS NOT DISTINCT FROM r.num_errors
            AND coalesce(o.num_errors, 0) < o.rows
        GROUP BY o.dataset, o.shard ORDER BY o.dataset, o.shard
        """,
        [configuration, reference],
    ).fetchall()
    return PairedCells(
        shards=[(row[0], row[1]) for row in rows],
        values={c: _columns(rows, 2 + 2 * i) for i, (c, _) in enumerate(columns)},
        unequal=frozenset(
            c
            for i, (c, _) in enumerate(columns)
            if any(row[2 + 2 * len(columns) + i] for row in rows)
        ),
    )


def share_apart(connection: duckdb.DuckDBPyConnection, configuration: str, reference: str) -> float:
    """Share of paired cells that one execution of a block did not run back to back.

    Small where a failure cut blocks; large where the configuration was added later. Leases, whose
    rounds take turns, are not apart.
    """
    row = connection.execute(
        """
        SELECT avg((o.attempt <> r.attempt AND o.round = 0 AND r.round = 0)::DOUBLE)
        FROM cells o JOIN cells r USING (dataset, shard, kind)
        WHERE o.configuration = ? AND r.configuration = ? AND o.kind = 'generations'
            AND o.seed = r.seed
        """,
        [configuration, reference],
    ).fetchone()
    return float(row[0]) if row and row[0] is not None else 0.0


def paired_likelihoods(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> PairedPrompts:
    """Each target's bits per UTF-8 byte, as the metric `bits_per_byte`."""
    rows = connection.execute(
        """
        WITH groups AS (
            SELECT dataset, prompt_id, any_value(cluster) AS cluster FROM prompts
            GROUP BY ALL)
        SELECT o.dataset, o.prompt_id, groups.cluster, o.shard,
            r.nats / ln(2) / r.num_bytes, o.nats / ln(2) / o.num_bytes
        FROM likelihoods o JOIN likelihoods r USING (dataset, prompt_id, candidate)
        LEFT JOIN groups ON groups.dataset = o.dataset AND groups.prompt_id = o.prompt_id
        WHERE o.configuration = ? AND r.configuration = ? AND o.candidate = -1
            AND o.nats IS NOT NULL AND r.nats IS NOT NULL AND o.num_bytes > 0 AND r.num_bytes > 0
        ORDER BY o.dataset, o.prompt_id
        """,
        [configuration, reference],
    ).fetchall()
    return PairedPrompts(
        clusters=[cluster_of(row[0], row[1], row[2]) for row in rows],
        shards=[(row[0], row[3]) for row in rows],
        means={"bits_per_byte": _columns(rows, 4)},
    )


def compare_rows(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> tuple[TextComparison, RowComparison]:
    """In an A/A pair, and for an optimisation that is meant to be exact, nothing should differ."""
    done = "o.error IS NULL AND r.error IS NULL"
    other_text = "o.completion_text IS DISTINCT FROM r.completion_text"
    by_budget = "(o.finish_reason = 'length' OR r.finish_reason = 'length')"
    unequal = ", ".join(
        f"count(*) FILTER ({done} AND ({column(m, 'o')} IS DISTINCT FROM {column(m, 'r')}"
        + ("))" if m == "prompt_tokens" else f" OR ({other_text} AND {by_budget})))")
        for m in ROW_METRICS
    )
    row = connection.execute(
        f"""
        SELECT count(*) FILTER ({done} AND {other_text}), count(*) FILTER ({done}), count(*),
            count(*) FILTER (o.error IS NOT NULL), count(*) FILTER (r.error IS NOT NULL),
            count(*) FILTER ((o.error IS NULL) <> (r.error IS NULL)),
            count(DISTINCT o.dataset) - count(DISTINCT o.dataset) FILTER ({done}), {unequal}
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
        WHERE o.configuration = ? AND r.configuration = ?
        """,
        [configuration, reference],
    ).fetchone()
    assert row is not None  # An aggregate without GROUP BY always has one row.
    counts = dict(zip(ROW_METRICS, row[7:], strict=True))
    return TextComparison(*row[:2]), RowComparison(row[2], row[3], row[4], row[5], row[6], counts)


def _columns(
    rows: list[tuple[Any, ...]], first: int
) -> tuple[list[float | None], list[float | None]]:
    return [row[first] for row in rows], [row[first + 1] for row in rows]


def cluster_of(dataset: str, prompt_id: str, cluster: str | None) -> tuple[str, str]:
    """A prompt's group of dependent prompts; itself where there is none."""
    # The prefixes keep a prompt's id from meeting a cluster's name.
    return dataset, f"prompt {prompt_id}" if cluster is None else f"cluster {cluster}"
