"""What a query gives, written so that its readers take it: every type of DuckDB, in every format.

Columns are read by place, since two may have one name (everybody who joins a table to itself has
them); names are made unique, as DuckDB does it: `e2e_s`, `e2e_s_1`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.csv as csv
from duckdb.sqltypes import DuckDBPyType
from rich.table import Table
from rich.text import Text

Format = Literal["table", "csv", "jsonl"]
FORMATS = ("table", "csv", "jsonl")

_NUMBERS = frozenset(
    {
        "tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger",
        "ubigint", "uhugeint", "float", "double", "decimal",
    }
)  # fmt: skip
# What Arrow writes to CSV as every reader takes it; all else is given as DuckDB's own text.
_PLAIN = _NUMBERS | {"boolean", "varchar"}
_NESTED = frozenset({"list", "array", "struct", "map", "union", "json"})


class Answer:
    """The rows of one SELECT; nothing is read before it is asked for."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, query: str) -> None:
        found = connection.sql(query)
        self._connection = connection
        self._query = query.strip().rstrip(";")
        self._types = list(found.types)
        self.names = unique(found.columns)

    def arrow(self) -> pa.Table:
        """As Arrow has it, with unique names."""
        return self._connection.sql(self._query).to_arrow_table().rename_columns(self.names)

    def csv(self) -> bytes:
        """RFC 4180 with a header; lists and structs as JSON, what else CSV has no word for as
        text."""
        found = self._texts([_as_csv(kind) for kind in self._types])
        columns = pa.table(
            [
                pa.array([text and _json(text)[0] for text in column.to_pylist()], pa.string())
                if kind.id in _NESTED
                else column
                for column, kind in zip(found.columns, self._types, strict=True)
            ],
            names=self.names,
        )
        sink = pa.BufferOutputStream()
        csv.write_csv(columns, sink)
        return bytes(sink.getvalue().to_pybytes())

    def lines(self) -> tuple[list[str], int]:
        """One JSON object per row, and how many numbers were infinite or none: these are null."""
        columns = self._texts(["to_json({})::VARCHAR"] * len(self._types))
        keys = [json.dumps(name, ensure_ascii=False) for name in self.names]
        lines, num_lost = [], 0
        for row in zip(*(column.to_pylist() for column in columns.columns), strict=True):
            cells = []
            for key, text in zip(keys, row, strict=True):
                cell, lost = _json(text)
                num_lost += lost
                cells.append(f"{key}: {cell}")
            lines.append("{" + ", ".join(cells) + "}")
        return lines, num_lost

    def table(self) -> Table:
        """For people."""
        table = Table()
        for name, kind in zip(self.names, self._types, strict=True):
            table.add_column(Text(name), justify="right" if kind.id in _NUMBERS else "left")
        columns = self._texts([_as_csv(kind) for kind in self._types])
        for row in zip(*(column.to_pylist() for column in columns.columns), strict=True):
            # As Text, so that brackets in completions are not read as markup.
            table.add_row(*(Text("" if value is None else str(value)) for value in row))
        return table

    def _texts(self, expressions: Sequence[str]) -> pa.Table:
        """Each column by its place, through an expression of it."""
        places = [f"c{i}" for i in range(len(expressions))]
        chosen = ", ".join(
            f"{expression.format(place)} AS {place}"
            for expression, place in zip(expressions, places, strict=True)
        )
        # On lines of its own, since the query may end with a comment.
        sql = f"SELECT {chosen} FROM (\n{self._query}\n) AS answer({', '.join(places)})"
        return self._connection.sql(sql).to_arrow_table()


def unique(names: Sequence[str]) -> list[str]:
    """The same names, those that were there before with the first number that is free."""
    given, found = set(names), []
    for name in names:
        own, number = name, 0
        while own in found or (number and own in given):
            number += 1
            own = f"{name}_{number}"
        found.append(own)
    return found


def _as_csv(kind: DuckDBPyType) -> str:
    if kind.id in _PLAIN:
        return "{}"
    return "to_json({})::VARCHAR" if kind.id in _NESTED else "{}::VARCHAR"


def _json(text: str | None) -> tuple[str, int]:
    if text is None:
        return "null", 0
    if "Infinity" not in text and "NaN" not in text:
        return text, 0
    lost: list[str] = []
    value = json.loads(text, parse_constant=lost.append)  # append gives None
    return json.dumps(value, ensure_ascii=False), len(lost)
