"""Paired numbers of two configurations, reduced by DuckDB so that memory grows with prompts.

Rows are paired by (dataset, prompt, seed) first and averaged over seeds after, so that a seed that
only one side completed enters neither mean.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import duckdb

from jobs.spec.metrics import RATES, column

ROW_METRICS = (
    "prompt_tokens", "completion_tokens", "total_tokens", "base_completion_tokens",
    "completion_bytes", "ends_in_loop",
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

    @property
    def datasets(self) -> list[str]:
        return [dataset for dataset, _ in self.shards]


@dataclass(frozen=True)
class PairedTimes:
    """What was timed, by what shares its noise.

    Workers that hold all configurations run a shard's cells back to back: the sides of a shard were
    drawn at random, an entry is a prompt, and its cluster the shard. In leases the order of
    configurations was drawn by round, and all that a round runs of one shares the state of the
    machine: an entry is a prompt's part in a round, and its cluster is the round.
    """

    clusters: list[Hashable]
    datasets: list[str]
    values: dict[str, tuple[list[float | None], list[float | None]]]
    """Metric -> (reference, configuration); of a prompt in several rounds parts of its mean."""
    in_leases: bool = False


@dataclass(frozen=True)
class PairedCells:
    """One entry per (dataset, shard): totals over the seeds that both sides committed.

    In leases per (dataset, round), as `PairedTimes`.
    """

    clusters: list[Hashable]
    datasets: list[str]
    values: dict[str, tuple[list[float | None], list[float | None]]]
    """Column -> (reference, configuration). Of a rate, its name and then each of both columns: of
    cells that have both on both sides."""
    in_leases: bool = False
    unequal: frozenset[str] = frozenset()
    """Columns in which some cell differs, whatever the seeds' sums and means."""


def paired_prompts(
    connection: duckdb.DuckDBPyConnection, configuration: str, reference: str
) -> PairedPrompts:
    """Prompt means of tokens, bytes and times; rows of a cold engine have no times."""
    warm = " AND NOT coalesce(r.warmup, false) AND NOT coalesce(o.warmup, false)"
    metrics = [(m, m, "") for m in ROW_METRICS]
    metrics += [(m, m, warm) for m in TIME_METRICS]
    # What times are divided by is of the rows that are timed.
    metrics += [(f"warm {m}", m, warm) for m in ROW_METRICS]
    means = ", ".join(
        f"avg({column(m, side)}) FILTER ({column(m, 'r')} IS NOT NULL AND "
        f"{column(m, 'o')} IS NOT NULL{condition})"
        for _, m, condition in metrics
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
        means={name: _columns(rows, 4 + 2 * i) for i, (name, *_) in enumerate(metrics)},
    )


def in_leases(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether configurations took turns in rounds, instead of running back to back."""
    row = connection.execute("SELECT max(round) FROM cells WHERE kind = 'generations'").fetchone()
    return bool(row and row[0])


def paired_times(
    connection: duckdb.DuckDBPyConnection,
    configuration: str,
    reference: str,
    prompts: PairedPrompts,
) -> PairedTimes:
    """Of the same pairs as `prompts`, which it is made of where no leases were used."""
    names = (*TIME_METRICS, *ROW_METRICS)
    if not in_leases(connection):
        values = {m: prompts.means[m] for m in TIME_METRICS}
        values |= {m: prompts.means[f"warm {m}"] for m in ROW_METRICS}
        return PairedTimes([*prompts.shards], prompts.datasets, values)
    warm = "NOT coalesce(r.warmup, false) AND NOT coalesce(o.warmup, false)"
    both = {
        m: f"{column(m, 'r')} IS NOT NULL AND {column(m, 'o')} IS NOT NULL AND {warm}"
        for m in names
    }
    inner = ", ".join(
        f"sum({column(m, side)}) FILTER ({both[m]}) AS {side}_{m}" for m in names for side in "ro"
    )
    counts = ", ".join(f"count(*) FILTER ({both[m]}) AS n_{m}" for m in names)
    shares = ", ".join(
        f"{side}_{m} / sum(n_{m}) OVER (PARTITION BY dataset, prompt_id)"
        for m in names
        for side in "ro"
    )
    rows = connection.execute(
        f"""
        WITH {ROUNDS}, parts AS (
            SELECT o.dataset, o.prompt_id, rounds.round AS round, {inner}, {counts}
            FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
            JOIN rounds ON rounds.dataset = o.dataset AND rounds.shard = o.shard
                AND rounds.seed = o.seed
            WHERE o.configuration = ? AND r.configuration = ?
                AND o.error IS NULL AND r.error IS NULL
            GROUP BY o.dataset, o.prompt_id, rounds.round)
        SELECT dataset, round, {shares} FROM parts ORDER BY dataset, prompt_id, round
        """,
        [configuration, reference],
    ).fetchall()
    return PairedTimes(
        [("round", row[1]) for row in rows],
        [row[0] for row in rows],
        {m: _columns(rows, 2 + 2 * i) for i, m in enumerate(names)},
        in_leases=True,
    )


# The round of a shard and seed is the same for all configurations.
ROUNDS = """rounds AS (
            SELECT dataset, shard, seed, max(round) AS round FROM cells
            WHERE kind = 'generations' GROUP BY ALL)"""


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
    wanted: list[tuple[str, str, str, tuple[str, ...]]]
    wanted = [(c, how, c, (c,)) for c, how in columns]
    wanted += [(f"{rate} {c}", "sum", c, pair) for rate, pair in RATES.items() for c in pair]
    values = ", ".join(
        f"{how}({side}.{c}) FILTER ("
        + " AND ".join(f"r.{each} IS NOT NULL AND o.{each} IS NOT NULL" for each in there)
        + ")"
        for _, how, c, there in wanted
        for side in ("r", "o")
    )
    unequal = ", ".join(f"bool_or(o.{c} IS DISTINCT FROM r.{c})" for c, _ in columns)
    unit = "o.round" if (leases := in_leases(connection)) else "o.shard"
    rows = connection.execute(
        f"""
        SELECT o.dataset, {unit}, {values}, {unequal}
        FROM cells o JOIN cells r USING (dataset, shard, seed, kind)
        WHERE o.configuration = ? AND r.configuration = ? AND o.kind = 'generations'
            AND o.num_errors IS NOT DISTINCT FROM r.num_errors
            AND coalesce(o.num_errors, 0) < o.rows
        GROUP BY o.dataset, {unit} ORDER BY o.dataset, {unit}
        """,
        [configuration, reference],
    ).fetchall()
    return PairedCells(
        clusters=[("round" if leases else row[0], row[1]) for row in rows],
        datasets=[row[0] for row in rows],
        values={name: _columns(rows, 2 + 2 * i) for i, (name, *_) in enumerate(wanted)},
        in_leases=leases,
        unequal=frozenset(
            c
            for i, (c, _) in enumerate(columns)
            if any(row[2 + 2 * len(wanted) + i] for row in rows)
        ),
    )


def share_apart(connection: duckdb.DuckDBPyConnection, configuration: str, reference: str) -> float:
    """Share of paired cells that one execution of a block did not run back to back.

    Small where a failure cut blocks; large where the configuration was added later. Leases, whose
    rounds take turns, are not apart.
    """
    row = connection.execute(
        """
        SELECT avg((o.attempt <> r.attempt AND coalesce(o.round, 0) = 0
            AND coalesce(r.round, 0) = 0)::DOUBLE)
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


def _columns(
    rows: list[tuple[Any, ...]], first: int
) -> tuple[list[float | None], list[float | None]]:
    return [row[first] for row in rows], [row[first + 1] for row in rows]


def cluster_of(dataset: str, prompt_id: str, cluster: str | None) -> tuple[str, str]:
    """A prompt's group of dependent prompts; itself where there is none."""
    # The prefixes keep a prompt's id from meeting a cluster's name.
    return dataset, f"prompt {prompt_id}" if cluster is None else f"cluster {cluster}"
