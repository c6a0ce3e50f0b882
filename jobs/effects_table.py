"""`tables/effects.parquet`: every effect of every comparison, one row each."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results import Results
from cluster.schema import FLOAT, INT, TEXT, Column
from jobs.findings import comparisons, effect_rows
from jobs.query import connect

EFFECTS_FILE = "tables/effects.parquet"

EFFECTS = [
    Column("configuration", TEXT, "the configuration that is compared"),
    Column("vs", TEXT, "its reference"),
    Column("metric", TEXT, "as in the report; times in seconds, memory in bytes"),
    Column("statistic", TEXT, "ratio of totals, geometric mean, or mean difference"),
    Column("reference_mean", FLOAT, "the reference's mean over paired units"),
    Column("mean", FLOAT, "the configuration's"),
    Column("estimate", FLOAT, "relative change as a fraction; of a mean difference, the metric's"),
    Column("low", FLOAT, "lower bound of the 95 % interval; null where there is none"),
    Column("high", FLOAT, "upper bound"),
    Column("num_units", INT, "paired prompts, or shards for memory and throughput"),
    Column("num_clusters", INT, "independent groups of units that the interval rests on"),
    Column("method", TEXT, "of the interval"),
    Column("reason", TEXT, "why there is no estimate or no interval"),
    Column("identical", pa.bool_(), "every pair is exactly equal"),
    Column("num_left_out", INT, "pairs that could not be used"),
    Column("statement", TEXT, "what the numbers say, short of a verdict"),
]


def write_effects(results: Results) -> None:
    """Write `tables/effects.parquet` over what was there."""
    plan = results.plan()
    connection = connect(results)
    try:
        rows = effect_rows(comparisons(connection, plan))
    finally:
        connection.close()
    fields = [pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in EFFECTS]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    results.store.replace(EFFECTS_FILE, sink.getvalue().to_pybytes())
