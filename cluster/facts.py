"""The facts of cells as a table with fixed columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.schema import Column


def facts_schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in columns])


def facts_table(columns: Sequence[Column], facts: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row of each cell's facts; one that a cell lacks is null."""
    values = [[_typed(row.get(c.name), c.type) for row in facts] for c in columns]
    arrays = [pa.array(each, c.type) for each, c in zip(values, columns, strict=True)]
    return pa.table(arrays, schema=facts_schema(columns))


def _typed(value: Any, kind: pa.DataType) -> Any:
    # JSON knows one kind of number, so a whole float may stand where an integer is meant.
    return int(value) if value is not None and pa.types.is_integer(kind) else value
