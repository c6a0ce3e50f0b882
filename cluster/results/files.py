"""The files of results: their names, and how rows and the facts of a cell become bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import Cell, Kind
from cluster.results.schema import Column, schema
from cluster.storage.open_store import Entry, LocalStore, ObjectStore
from optim.errors import InputError

FROM_A_COPY = "Take the file from a copy of the results"


def read_prompts(store: LocalStore | ObjectStore, name: str) -> pa.Table:
    """The rows of one file. InputError where it is absent, or not what was written.

    Page checksums say so of values. The footer has none: a column that it names otherwise would be
    read as nulls, and rows that it does not count would be left out.
    """
    cause: Exception
    try:
        source = pa.BufferReader(store.read(name))
        _require_whole(pq.read_metadata(source))
        source.seek(0)
        return pq.read_table(source, schema=schema("prompts"), page_checksum_verification=True)
    except FileNotFoundError as error:
        problem, cause = "the prompts as run are not there", error
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        lines = str(error).splitlines() or [repr(error)]
        problem, cause = f"the prompts are not what was run: {lines[0]}", error
    # Of the output: no cell is to blame, and none could be run.
    raise InputError(problem, source=store.path(name), field="output", mend=FROM_A_COPY) from cause


def _require_whole(found: pq.FileMetaData) -> None:
    unknown = set(found.schema.to_arrow_schema().names) - set(schema("prompts").names)
    if unknown:
        raise ValueError(f"its footer names columns that there are not: {sorted(unknown)}")
    if found.num_rows != sum(found.row_group(i).num_rows for i in range(found.num_row_groups)):
        raise ValueError("its footer does not count its rows")


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


CELL_FACTS = b"optrial.cell"
KINDS: tuple[Kind, ...] = ("generations", "likelihoods")
PROMPTS_FILE = "inputs/prompts.parquet"


class Part(NamedTuple):
    """One committed file."""

    name: str
    kind: Kind
    configuration: str
    key: str
    num_bytes: int = 0
    version: str = ""
    """As the listing gave it that found the part."""


def part_name(cell: Cell) -> str:
    return f"{cell.kind}/configuration=c-{cell.configuration}/part-{cell.key}.parquet"


def part_of(kind: Kind, entry: Entry) -> Part | None:
    """The part that a listed file is; None where it is something else."""
    pieces = entry.name.split("/")
    if len(pieces) != 3 or not pieces[1].startswith("configuration=c-"):
        return None
    if not (pieces[2].startswith("part-") and pieces[2].endswith(".parquet")):
        return None
    return Part(
        name=entry.name,
        kind=kind,
        configuration=pieces[1].removeprefix("configuration=c-"),
        key=pieces[2].removeprefix("part-").removesuffix(".parquet"),
        num_bytes=entry.num_bytes,
        version=entry.version,
    )


def encode_part(kind: Kind, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> bytes:
    """A part's bytes: zstd, page checksums, the cell's facts in the footer."""
    table_schema = schema(kind)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=table_schema)
    metadata = dict(table_schema.metadata or {})
    metadata[CELL_FACTS] = json.dumps(facts, sort_keys=True).encode()
    return encode_table(table.replace_schema_metadata(metadata))


def encode_table(table: pa.Table) -> bytes:
    """A Parquet file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def facts_of(metadata: pq.FileMetaData) -> dict[str, Any]:
    """The facts of a part's cell, from its footer. Raises ValueError where there are none."""
    try:
        facts = json.loads((metadata.metadata or {})[CELL_FACTS])
    except KeyError:
        raise ValueError("its footer has no facts of a cell") from None
    if not isinstance(facts, dict):
        raise ValueError("the facts in its footer are no object")
    return facts


def added_prompts(number: int) -> str:
    return f"inputs/prompts-{number:04}.parquet"


def write_prompts(
    store: LocalStore | ObjectStore, rows: Iterable[Mapping[str, Any]], name: str = PROMPTS_FILE
) -> bytes:
    """Freeze the prompts as run; returns the file's bytes."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema("prompts"))
    data = encode_table(table)
    store.replace(name, data)
    return data
