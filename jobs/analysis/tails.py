"""p95 and p99 of times: whether the slowest rows became slower, of all rows that both sides have.

Rows are read once per pair of configurations; above a million DuckDB counts them in bins of
logarithms instead, so that memory grows with clusters and bins. The test:
`jobs.stats.permutation.tails`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.plan import origin
from jobs.analysis.comparison import Comparison, MetricEffect, Statistic, main_effects
from jobs.analysis.findings import Findings
from jobs.analysis.standing import standing
from jobs.analysis.verdicts import Judged
from jobs.formatting import plural
from jobs.queries.pairing import ROUNDS, TIME_METRICS, in_leases
from jobs.spec.analysis_plan import MIN_SHARDS
from jobs.spec.metrics import METRICS
from jobs.stats.levels import SMALLEST, Bins, Rows, Sample
from jobs.stats.permutation.swaps import fewest_clusters
from jobs.stats.permutation.tails import LEVEL, fewest_rows, num_clusters, tail_effect

TAILS: dict[Statistic, float] = {"p95": 0.95, "p99": 0.99}
MOST_ROWS = 1_000_000
"""Rows of both sides up to which every one is read; more are counted in bins."""
BIN_WIDTH = 0.005
"""Of logarithms, so that a bin is 0.5 % wide."""
_LARGEST_S = 1e12

Ints = npt.NDArray[np.int64]


def with_tails(connection: duckdb.DuckDBPyConnection, found: Findings) -> Findings:
    """The same findings, with the effects on the slowest rows behind those of each comparison."""
    judged = []
    for each in found.judged:
        tails = _withheld(found, each, tail_effects(connection, each.comparison))
        effects = (*each.comparison.effects, *tails)
        judged.append(replace(each, comparison=replace(each.comparison, effects=effects)))
    return replace(found, judged=judged)


def _withheld(found: Findings, judged: Judged, tails: list[MetricEffect]) -> list[MetricEffect]:
    """Without an interval and p where the verdict of the metric is withheld, for its reason."""
    reasons = {
        effect.metric.name: standing(found, judged, effect).why_withheld
        for effect in main_effects(judged.comparison)
        if effect.metric.name in TIME_METRICS
    }
    made = []
    for tail in tails:
        reason = reasons.get(tail.metric.name)
        if reason is not None and tail.effect.estimate is not None:
            bare = replace(tail.effect.withheld(reason), identical=False)
            tail = replace(tail, effect=bare)
        made.append(tail)
    return made


def tail_effects(
    connection: duckdb.DuckDBPyConnection, comparison: Comparison
) -> list[MetricEffect]:
    """p95 and p99 of each time. They are exploratory, and get no verdict."""
    leases = in_leases(connection)
    pair = comparison.configuration, comparison.vs
    read = _in_bins if 2 * comparison.rows.num_pairs > MOST_ROWS else _of_rows
    samples = read(connection, pair, leases)
    metrics = {metric.name: metric for metric in METRICS}
    found = []
    for name in TIME_METRICS:
        given = samples[name]
        for statistic, q in TAILS.items():
            tail = tail_effect(
                given.sets,
                q,
                is_joint=leases,
                why_not=_shortage(given.sets, statistic, leases),
                num_left_out=given.num_left_out,
            )
            found.append(
                MetricEffect(metrics[name], statistic, tail.reference, tail.other, tail.effect)
            )
    return found


def _shortage(sets: Mapping[str, Sample], statistic: Statistic, leases: bool) -> str | None:
    """Why there can be no interval, with the rows or clusters that would allow one."""
    fewest, needed = min((s.size for s in sets.values()), default=0), fewest_rows(TAILS[statistic])
    reasons = []
    if fewest < needed:
        reasons.append(
            f"{plural(fewest, 'row')} per dataset, and {needed} are needed for an interval of "
            f"{statistic}"
        )
    if leases:
        rounds = num_clusters([*sets.values()], is_joint=True)
        if rounds < (least := fewest_clusters(LEVEL)):
            reasons.append(
                f"{plural(rounds, 'round')} of leases, and {least} are needed for an interval: "
                "`workers.rounds`"
            )
        return "; ".join(reasons) or None
    shards = min((num_clusters([each], is_joint=False) for each in sets.values()), default=0)
    if shards < MIN_SHARDS:
        reasons.append(
            f"{plural(shards, 'shard')} per dataset, and {MIN_SHARDS} are needed for an interval"
        )
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class _Given:
    """What there is of one metric."""

    sets: dict[str, Sample]
    """By data set, without those that have no row."""
    num_left_out: int


def _of_rows(
    connection: duckdb.DuckDBPyConnection, pair: tuple[str, str], leases: bool
) -> dict[str, _Given]:
    columns = ", ".join(
        f"CAST({side}.{name} AS DOUBLE) AS {side}_{name}" for name in TIME_METRICS for side in "ro"
    )
    table = (
        connection.cursor()
        .sql(
            f"WITH {ROUNDS} SELECT o.dataset, {_unit(leases)} AS unit, {columns} {_pairs(leases)}",
            params=list(pair),
        )
        .to_arrow_table()
    )
    names, codes = _encoded(table["dataset"])
    units = table["unit"].to_numpy().astype(np.int64)
    found = {}
    for metric in TIME_METRICS:
        sides = [table[f"{side}_{metric}"].to_numpy() for side in "ro"]
        with np.errstate(invalid="ignore"):
            usable = np.logical_and.reduce([(x >= 0) & (x <= _LARGEST_S) for x in sides])
        clusters = _Clusters(names, codes[usable], units[usable], leases)
        reference, other = (side[usable] for side in sides)
        sets: dict[str, Sample] = {
            name: Rows(reference[own], other[own], numbers, num)
            for name, own, numbers, num in clusters.by_set()
        }
        found[metric] = _Given(sets, int((~usable).sum()))
    return found


def _in_bins(
    connection: duckdb.DuckDBPyConnection, pair: tuple[str, str], leases: bool
) -> dict[str, _Given]:
    """One pass over the rows; what is kept is a count per cluster, side and bin."""
    columns = []
    for name in TIME_METRICS:
        both = " AND ".join(
            f"coalesce({side}.{name} BETWEEN 0 AND {_LARGEST_S}, false)" for side in "ro"
        )
        columns += [
            f"histogram(CAST(floor(ln(greatest({side}.{name}, {SMALLEST})) / {BIN_WIDTH}) AS INT)) "
            f"FILTER ({both}) AS {side}_{name}"
            for side in "ro"
        ]
        columns += [
            f"count(*) FILTER (NOT ({both})) AS out_{name}",
            f"coalesce(bool_and(r.{name} = o.{name}) FILTER ({both}), true) AS same_{name}",
        ]
    table = (
        connection.cursor()
        .sql(
            f"WITH {ROUNDS} SELECT o.dataset, {_unit(leases)} AS unit, {', '.join(columns)} "
            f"{_pairs(leases)} GROUP BY o.dataset, {_unit(leases)}",
            params=list(pair),
        )
        .to_arrow_table()
    )
    names, codes = _encoded(table["dataset"])
    units = table["unit"].to_numpy().astype(np.int64)
    found = {}
    for metric in TIME_METRICS:
        sides = [_counts(table[f"{side}_{metric}"]) for side in "ro"]
        same = table[f"same_{metric}"].to_numpy()
        some = np.flatnonzero(np.isin(np.arange(len(units)), sides[0][0]))
        clusters = _Clusters(names, codes[some], units[some], leases)
        sets: dict[str, Sample] = {
            name: _bins(sides, some[own], numbers, num, bool(same[some[own]].all()))
            for name, own, numbers, num in clusters.by_set()
        }
        found[metric] = _Given(sets, int(table[f"out_{metric}"].to_numpy().sum()))
    return found


def _unit(leases: bool) -> str:
    return "rounds.round" if leases else "o.shard"


def _pairs(leases: bool) -> str:
    """All pairs of completed rows of warm engines."""
    rounds = (
        "JOIN rounds ON rounds.dataset = o.dataset AND rounds.shard = o.shard "
        "AND rounds.seed = o.seed"
    )
    return f"""
        FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
        {rounds if leases else ""}
        WHERE o.configuration = ? AND r.configuration = ? AND o.error IS NULL AND r.error IS NULL
            AND NOT coalesce(r.warmup, false) AND NOT coalesce(o.warmup, false)"""


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """The different names, and of each row the place of its own."""
    found = column.combine_chunks().dictionary_encode()
    if isinstance(found, pa.ChunkedArray):  # of no rows
        return [], np.zeros(0, dtype=np.int64)
    return found.dictionary.to_pylist(), found.indices.to_numpy().astype(np.int64)


@dataclass(frozen=True)
class _Clusters:
    """Of entries (rows, or counts of a cluster): their data sets, and shards or rounds."""

    names: list[str]
    codes: Ints
    units: Ints
    leases: bool

    def by_set(self) -> list[tuple[str, Ints, Ints, int]]:
        """Of each data set its entries, their clusters' numbers, and how many clusters there are.

        What was added to a data set later is part of it; a round is the same in all of them.
        """
        origins = [origin(name) for name in self.names]
        rounds, in_round = np.unique(self.units, return_inverse=True)
        found = []
        for name in sorted(set(origins)):
            own = np.flatnonzero(
                np.isin(self.codes, [i for i, o in enumerate(origins) if o == name])
            )
            if not len(own):
                continue
            if self.leases:
                found.append((name, own, in_round[own], len(rounds)))
                continue
            shards = np.stack([self.codes[own], self.units[own]])
            different, numbers = np.unique(shards, axis=1, return_inverse=True)
            found.append((name, own, numbers.reshape(-1), different.shape[1]))
        return found


def _counts(column: Any) -> tuple[Ints, Ints, Ints]:
    """Of a column of maps: the row, the bin and the number of rows of each entry."""
    maps = column.combine_chunks()
    lengths = np.diff(maps.offsets.to_numpy())
    owners = np.repeat(np.arange(len(maps)), lengths)
    return owners, maps.keys.to_numpy().astype(np.int64), maps.items.to_numpy().astype(np.int64)


def _bins(
    sides: list[tuple[Ints, Ints, Ints]], entries: Ints, numbers: Ints, num: int, same: bool
) -> Bins:
    chosen = [np.isin(owners, entries) for owners, _, _ in sides]
    first = min(int(s[1][c].min()) for s, c in zip(sides, chosen, strict=True))
    last = max(int(s[1][c].max()) for s, c in zip(sides, chosen, strict=True))
    cluster_of = np.zeros(int(entries.max()) + 1, dtype=np.int64)
    cluster_of[entries] = numbers
    found = np.zeros((2, last - first + 1, num), dtype=np.int64)
    for side, ((owners, bins, counts), own) in enumerate(zip(sides, chosen, strict=True)):
        np.add.at(found[side], (bins[own] - first, cluster_of[owners[own]]), counts[own])
    return Bins(BIN_WIDTH, first, found, same)
