"""`tables/summary.parquet`: what every configuration did, per dataset and seed, and in total.

The table is derived: it can be deleted and written again at any time. Its columns are `SUMMARY`,
each with its meaning, which also stands in the file's schema and in `docs/summary.md`.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results import Results
from cluster.schema import FLOAT, INT, TEXT, Column
from jobs.query import connect

SUMMARY_FILE = "tables/summary.parquet"
ALL_DATASETS = "*"

_MEASURES = {
    "prompt_tokens": "prompt length in the configuration's vocabulary",
    "completion_tokens": "generated tokens, the end token included, configuration's vocabulary",
    "base_completion_tokens": "the completion's text in the baseline's tokens",
    "completion_bytes": "UTF-8 bytes of the completion",
    "ttft_s": "seconds from the prefill's start to the first token, cold engines left out",
    "tpot_s": "seconds per token after the first, cold engines left out",
    "e2e_s": "seconds from the prefill's start to the last token, cold engines left out",
    "queue_s": "seconds of waiting for a slot, cold engines left out",
}
_TIMES = {"ttft_s", "tpot_s", "e2e_s", "queue_s"}
_STATISTICS = {
    "n": ("count({})", "number of rows that have it"),
    "mean": ("avg({})", "mean"),
    "sd": ("stddev_samp({})", "sample standard deviation"),
    "p50": ("quantile_cont({}, 0.50)", "median"),
    "p90": ("quantile_cont({}, 0.90)", "90th percentile"),
    "p95": ("quantile_cont({}, 0.95)", "95th percentile"),
    "p99": ("quantile_cont({}, 0.99)", "99th percentile"),
}
_RATES = {
    "completion_tokens_per_s": ("completion_tokens", "generated tokens, own vocabulary"),
    "base_tokens_per_s": ("base_completion_tokens", "the same text in the baseline's tokens"),
    "completion_bytes_per_s": ("completion_bytes", "UTF-8 bytes of the completions"),
}
_PEAKS = {
    "kv_used_peak_bytes": "KV bytes of live tokens",
    "kv_committed_peak_bytes": "physical KV bytes",
    "kv_reserved_peak_bytes": "KV address space in bytes",
}
_WEIGHTS = {
    "weight_bytes_shared": "weights that other configurations of the worker use too",
    "weight_bytes_private": "weights that are this configuration's alone",
}

_GROUP = [
    Column("configuration", TEXT, "name of the configuration in the spec"),
    Column("dataset", TEXT, f"name of the dataset in the spec; {ALL_DATASETS} is all of them"),
    Column("seed", INT, "sampling seed; null is all of them"),
]
_COUNTS = [
    Column("n", INT, "rows, errors included"),
    Column("num_errors", INT, "rows that failed; they have no metrics"),
    Column("num_warmup", INT, "rows of an engine that was not warm; they have no times below"),
    Column("num_stop", INT, "completions that ended by an end token or stop string"),
    Column("num_length", INT, "completions that ended by the length budget"),
]
_MEASURED = [
    Column(f"{measure}_{statistic}", INT if statistic == "n" else FLOAT, f"{what} of: {meaning}")
    for measure, meaning in _MEASURES.items()
    for statistic, (_, what) in _STATISTICS.items()
]
_CELLS = [
    Column("num_cells", INT, "committed cells"),
    Column("wall_s", FLOAT, "sum of the cells' engine time in seconds"),
    *[
        Column(name, FLOAT, f"sum over cells / wall_s of: {meaning}")
        for name, (_, meaning) in _RATES.items()
    ],
    *[Column(f"{name}_max", INT, f"largest peak of any cell: {m}") for name, m in _PEAKS.items()],
    *[Column(f"{name}_mean", FLOAT, f"mean of cells' peaks: {m}") for name, m in _PEAKS.items()],
    *[Column(name, INT, f"bytes of {meaning}") for name, meaning in _WEIGHTS.items()],
]
SUMMARY = [*_GROUP, *_COUNTS, *_MEASURED, *_CELLS]


def write_summary(results: Results) -> None:
    """Write `tables/summary.parquet` over what was there."""
    connection = connect(results)
    try:
        table = summary_table(connection)
    finally:
        connection.close()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    results.store.replace(SUMMARY_FILE, sink.getvalue().to_pybytes())


def summary_table(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """The summary of what the connection's views hold.

    One row per (configuration, dataset, seed), one per (configuration, dataset) with a null seed,
    and one per configuration with dataset `*`. Quantiles interpolate between order statistics.
    """
    measured = ", ".join(
        f'{expression.format(_usable(measure))} AS "{measure}_{name}"'
        for measure in _MEASURES
        for name, (expression, _) in _STATISTICS.items()
    )
    names = ", ".join(f'"{c.name}"' for c in (*_COUNTS, *_MEASURED, *_CELLS))
    found = connection.sql(
        f"""
        WITH rows AS (
            SELECT configuration, coalesce(dataset, '{ALL_DATASETS}') AS dataset, seed,
                count(*) AS n,
                count(*) FILTER (error IS NOT NULL) AS num_errors,
                count(*) FILTER (warmup) AS num_warmup,
                count(*) FILTER (finish_reason = 'stop') AS num_stop,
                count(*) FILTER (finish_reason = 'length') AS num_length,
                {measured}
            FROM generations GROUP BY {_GROUPING}),
        cell_rows AS ({_cells_query()})
        SELECT rows.configuration, rows.dataset, rows.seed, {names}
        FROM rows LEFT JOIN cell_rows ON rows.configuration = cell_rows.configuration
            AND rows.dataset = cell_rows.dataset AND rows.seed IS NOT DISTINCT FROM cell_rows.seed
        ORDER BY rows.configuration, rows.dataset, rows.seed NULLS FIRST
        """
    ).to_arrow_table()
    fields = [pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in SUMMARY]
    return found.cast(pa.schema([pa.field(f.name, f.type) for f in fields])).cast(pa.schema(fields))


_GROUPING = (
    "GROUPING SETS ((configuration, dataset, seed), (configuration, dataset), (configuration))"
)


def _usable(measure: str) -> str:
    """The column, null where it must not count."""
    cold = " AND NOT coalesce(warmup, false)" if measure in _TIMES else ""
    return f"CASE WHEN error IS NULL{cold} THEN {measure} END"


def _cells_query() -> str:
    rates = ", ".join(
        f"sum({amount}) / nullif(sum(wall_s), 0) AS {name}" for name, (amount, _) in _RATES.items()
    )
    peaks = ", ".join(f"max({p}) AS {p}_max, avg({p}) AS {p}_mean" for p in _PEAKS)
    weights = ", ".join(f"max({w}) AS {w}" for w in _WEIGHTS)
    return f"""
        SELECT configuration, coalesce(dataset, '{ALL_DATASETS}') AS dataset, seed,
            count(*) AS num_cells, sum(wall_s) AS wall_s, {rates}, {peaks}, {weights}
        FROM cells WHERE kind = 'generations' GROUP BY {_GROUPING}"""


def columns_markdown() -> str:
    """`docs/summary.md`: every column of the summary, with its type and meaning."""
    lines = [
        "# The summary of a trial",
        "",
        "`tables/summary.parquet` has one row per configuration, dataset and seed; one per",
        "configuration and dataset with a null `seed`; and one per configuration with dataset",
        f"`{ALL_DATASETS}`.",
        "Quantiles interpolate between neighbouring rows. Times leave out rows of a cold engine.",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        *[f"| `{c.name}` | {c.type} | {c.meaning} |" for c in SUMMARY],
        "",
    ]
    return "\n".join(lines)
