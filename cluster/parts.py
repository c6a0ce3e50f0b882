"""The files of results: their names, and how rows and the facts of a cell become bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import Cell, Kind
from cluster.schema import schema
from cluster.storage import Entry, LocalStore, ObjectStore

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
