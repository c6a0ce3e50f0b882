"""`tables/summary.parquet`: what every configuration did, one row per dataset, seed and metric.

The table is derived: it can be deleted and written again at any time. Its columns are `SUMMARY`,
its metrics `jobs.queries.measures.MEASURES`; `docs/tables.md` lists both.

One configuration is read at a time, and of a large one few measures, or one: what quantiles hold in
memory is a column of values in each of the three ways in which rows are grouped.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import duckdb

from cluster.results.results import Results
from cluster.results.schema import FLOAT, INT, TEXT, Column
from jobs.queries.measures import MEASURES, SOURCES, Measure
from jobs.queries.sql import connect
from jobs.queries.table_files import VERSION, write_rows
from optim.allotment import usable_cpus

SUMMARY_FILE = "tables/summary.parquet"
ALL_DATASETS = "*"

_MEASURES = {measure.name: measure for measure in MEASURES}
_VALUES_AT_ONCE = 10_000_000
"""Values that quantiles may hold at a time: 240 MB in the three ways of grouping."""
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_GROUP = [
    Column("configuration", TEXT, "name of the configuration in the spec"),
    Column("dataset", TEXT, f"name of the dataset in the spec; {ALL_DATASETS} is all of them"),
    Column("seed", INT, "sampling seed; null is all of them"),
]
_COUNTS = {
    "num_rows": ("count(*)", "rows of the group, those that failed included"),
    "num_errors": ("count(error)", "of them, rows that failed; they have no values"),
    "num_warmup": ("count(*) FILTER (warmup)", "rows of a cold engine; they have no times"),
    "num_stop": (
        "count(*) FILTER (finish_reason = 'stop')",
        "completions that ended by an end token or stop string",
    ),
    "num_length": (
        "count(*) FILTER (finish_reason = 'length')",
        "completions that ended by the length budget",
    ),
}
SUMMARY = [
    VERSION,
    *_GROUP,
    Column("metric", TEXT, "name of the metric, as in `effects`; its unit is in the name"),
    Column("of", TEXT, "what has one value each: row, cell or target"),
    Column("n", INT, "number of values that there are"),
    *[Column(name, INT, meaning) for name, (_, meaning) in _COUNTS.items()],
    Column(
        "mean",
        FLOAT,
        "mean of the values; of a ratio, total over total, with all that has no "
        "value because its denominator is 0",
    ),
    Column("sd", FLOAT, "sample standard deviation of the values; null of one"),
    Column("min", FLOAT, "least value"),
    Column("p50", FLOAT, "median"),
    Column("p90", FLOAT, "90th percentile"),
    Column("p95", FLOAT, "95th percentile"),
    Column("p99", FLOAT, "99th percentile"),
    Column("max", FLOAT, "largest value"),
    Column("total", FLOAT, "sum of the values; null of a ratio"),
]
_STATISTICS = ("n", "mean", "sd", "min", *_QUANTILES, "max", "total")

Group = tuple[str, int | None]
"""(dataset, seed)."""


def write_summary(results: Results) -> None:
    """Write `tables/summary.parquet` over what was there."""
    connection = connect(results)
    try:
        connection.execute(f"SET threads = {usable_cpus()}")
        rows = summary_rows(connection)
    finally:
        connection.close()
    write_rows(results.store, SUMMARY_FILE, SUMMARY, rows)


def summary_rows(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The summary of what the connection's views hold, in the order of configurations and metrics.

    For each configuration and metric: all, each dataset, and each seed of a dataset. Metrics
    without any value in a group have no row there.
    """
    names = connection.execute("SELECT DISTINCT configuration FROM cells ORDER BY 1").fetchall()
    rows = []
    for (configuration,) in names:
        counts = _counts(connection, configuration)
        num_rows = counts.get((ALL_DATASETS, None), {}).get("num_rows", 0)
        described: dict[tuple[str, Group], dict[str, Any]] = {}
        for batch in _batches(num_rows):
            described |= _describe(connection, configuration, batch)
        for (name, group), statistics in sorted(described.items(), key=_order):
            dataset, seed = group
            rows.append(
                {
                    "configuration": configuration,
                    "dataset": dataset,
                    "seed": seed,
                    "metric": name,
                    "of": _MEASURES[name].of,
                    **counts.get(group, dict.fromkeys(_COUNTS, 0)),
                    **statistics,
                }
            )
    return rows


def _order(item: tuple[tuple[str, Group], Any]) -> tuple[int, bool, str, bool, int]:
    """By metric; then all datasets first, and all seeds of one before each."""
    (name, (dataset, seed)), _ = item
    place = list(_MEASURES).index(name)
    return place, dataset != ALL_DATASETS, dataset, seed is not None, seed or 0


def _counts(
    connection: duckdb.DuckDBPyConnection, configuration: str
) -> dict[Group, dict[str, int]]:
    counted = ", ".join(expression for expression, _ in _COUNTS.values())
    found = connection.execute(
        f"SELECT coalesce(dataset, '{ALL_DATASETS}'), seed, {counted} FROM generations "
        f"WHERE configuration = ? GROUP BY {_grouping('seed')}",
        [configuration],
    ).fetchall()
    return {
        (dataset, seed): dict(zip(_COUNTS, counts, strict=True)) for dataset, seed, *counts in found
    }


def _batches(num_rows: int) -> Iterator[list[Measure]]:
    """Measures that are read together: of the same things, and few where there are many rows."""
    most = max(1, _VALUES_AT_ONCE // max(1, num_rows))
    for of, group in groupby(sorted(MEASURES, key=lambda m: m.of), key=lambda m: m.of):
        measures = list(group)
        size = most if of == "row" else len(measures)
        for start in range(0, len(measures), size):
            yield measures[start : start + size]


def _describe(
    connection: duckdb.DuckDBPyConnection, configuration: str, measures: list[Measure]
) -> dict[tuple[str, Group], dict[str, Any]]:
    """(metric, group) -> statistics, of measures of the same things."""
    seed = "NULL" if measures[0].of == "target" else "seed"  # targets are scored by no seed
    selected = ", ".join(_selected(i, measure) for i, measure in enumerate(measures))
    statistics = ", ".join(_statistics(i, measure) for i, measure in enumerate(measures))
    found = connection.execute(
        f"""
        SELECT coalesce(dataset, '{ALL_DATASETS}'), {seed}, {statistics}
        FROM (
            SELECT dataset, {seed} AS seed, {selected}
            FROM {SOURCES[measures[0].of]} AND configuration = ?)
        GROUP BY {_grouping(seed)}
        """,
        [configuration],
    ).fetchall()
    described = {}
    for dataset, number, *values in found:
        for i, measure in enumerate(measures):
            size = len(_STATISTICS) - len(_QUANTILES) + 1
            n, average, sd, least, quantiles, most, total = values[i * size : (i + 1) * size]
            if n:
                all_of_it = (n, average, sd, least, *quantiles, most, total)
                group = (dataset, number)
                described[measure.name, group] = dict(zip(_STATISTICS, all_of_it, strict=True))
    return described


def _selected(place: int, measure: Measure) -> str:
    """The value of a row, and of a ratio what its mean is made of; null where it does not count."""
    below = measure.below or "1"
    usable = f"isfinite(({measure.above})::DOUBLE) AND isfinite(({below})::DOUBLE)"
    if measure.is_timed and measure.of == "row":
        usable += " AND NOT coalesce(warmup, false)"
    parts = {"v": measure.value}
    if measure.below is not None:
        parts |= {"above": measure.above, "below": measure.below}
    return ", ".join(
        f"CASE WHEN {usable} THEN {expression} END AS {name}{place}"
        for name, expression in parts.items()
    )


def _statistics(place: int, measure: Measure) -> str:
    v = f"v{place}"
    mean, total = f"avg({v})", f"sum({v})"
    if measure.below is not None:
        mean, total = f"sum(above{place}) / nullif(sum(below{place}), 0)", "NULL"
    quantiles = list(_QUANTILES.values())
    return (
        f"count({v}), {mean}, stddev_samp({v}), min({v}), quantile_cont({v}, {quantiles}), "
        f"max({v}), {total}"
    )


def _grouping(seed: str) -> str:
    each_seed = "" if seed == "NULL" else "(dataset, seed), "
    return f"GROUPING SETS ({each_seed}(dataset), ())"
