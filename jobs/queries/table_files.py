"""How the tables for others are written: with their version, and each column's meaning, in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.schema import Column
from cluster.storage.open_store import LocalStore, ObjectStore

TABLES_VERSION = 1
"""Raised where a column is dropped, or changes its name, type or meaning; not where one is added,
nor for a new metric, which is further rows."""

VERSION = Column("schema_version", pa.int32(), "version of the table's columns")


def table_schema(columns: Sequence[Column]) -> pa.Schema:
    """The published schema, with the columns' meanings and the version as metadata."""
    fields = [pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in columns]
    return pa.schema(fields, metadata={"optrial.schema_version": str(TABLES_VERSION)})


def write_rows(
    store: LocalStore | ObjectStore,
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Put a table, with `VERSION` in each row, over what was there, atomically.

    Raises OSError where that cannot be done.
    """
    versioned = [{VERSION.name: TABLES_VERSION, **row} for row in rows]
    table = pa.Table.from_pylist(versioned, schema=table_schema(columns))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    store.replace(name, sink.getvalue().to_pybytes())
