"""`optrial export`: one table of a trial for other programs, in a stream.

Nothing appears under the name that was asked for before all of it is written.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from cluster.results.files import facts_schema
from cluster.results.results import Results
from cluster.results.schema import schema
from cluster.storage.store import NO_ROOM
from jobs.queries.cells import CELLS
from jobs.queries.sql import connect
from optim.errors import InputError

TABLES = ("generations", "likelihoods", "cells", "prompts")
_BATCH_ROWS = 30_720


def export_table(results: Results, table: str, export_format: str, out: Path) -> int:
    """Write `table` to `out` as `delta`, `csv` or `jsonl`; returns the number of rows.

    Holds a batch of rows in memory. Raises InputError where a part is damaged, where `out` is
    there already, or where it cannot be written.
    """
    if table not in TABLES:
        raise InputError(
            f"there is no table {table!r}", field="--table", mend=f"Use {', '.join(TABLES)}"
        )
    if export_format not in _WRITERS:
        raise InputError(
            f"there is no format {export_format!r}",
            field="--format",
            mend=f"Use {', '.join(_WRITERS)}",
        )
    _require_new(out)
    write = _WRITERS[export_format]
    connection = connect(results)
    try:
        # One thread, so that rows keep the order of their files.
        found = connection.sql(f"SELECT * FROM {table}").to_arrow_reader(_BATCH_ROWS)
        published = _published(table)
        counted = _Counted(found, published)
        reader = pa.RecordBatchReader.from_batches(published, counted)
        with _whole(out) as temporary:
            write(reader, temporary)
        return counted.num_rows
    finally:
        connection.close()


def _published(table: str) -> pa.Schema:
    """Names and types of the columns, without the metadata of result files."""
    found = facts_schema(CELLS) if table == "cells" else schema(table)
    fields = [pa.field(field.name, field.type) for field in found]
    if table in ("generations", "likelihoods"):
        fields.insert(0, pa.field("configuration", pa.string()))
    return pa.schema(fields)


class _Counted:
    """Batches in the published types, and how many rows went by."""

    def __init__(self, batches: Iterator[pa.RecordBatch], published: pa.Schema) -> None:
        self.batches, self.published = batches, published
        self.num_rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.batches:
            self.num_rows += len(batch)
            columns = [
                column.cast(field.type)
                for column, field in zip(batch.columns, self.published, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=self.published)


def _write_csv(reader: pa.RecordBatchReader, out: Path) -> None:
    """Text in quotes, so that an empty one is not null, which is nothing; lists as JSON."""
    fields = [
        pa.field(field.name, pa.string() if pa.types.is_list(field.type) else field.type)
        for field in reader.schema
    ]
    flat = pa.schema(fields)
    with arrow_csv.CSVWriter(out, flat) as writer:
        for batch in reader:
            columns = [
                pa.array([None if v is None else _json(v) for v in column.to_pylist()], pa.string())
                if pa.types.is_list(column.type)
                else column
                for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=flat))


def _write_jsonl(reader: pa.RecordBatchReader, out: Path) -> None:
    """One object a line; times in ISO 8601, numbers that are not finite as text."""
    with out.open("x", encoding="utf-8", newline="\n") as file:
        for batch in reader:
            for row in batch.to_pylist():
                file.write(_json(row) + "\n")


def _write_delta(reader: pa.RecordBatchReader, out: Path) -> None:
    try:
        import deltalake
    except ImportError as error:
        raise InputError(
            "the package deltalake is not installed",
            field="--format",
            mend="Install it: pip install 'optrial[delta]'",
        ) from error
    deltalake.write_deltalake(str(out), reader)


_WRITERS: dict[str, Callable[[pa.RecordBatchReader, Path], None]] = {
    "csv": _write_csv,
    "delta": _write_delta,
    "jsonl": _write_jsonl,
}


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _require_new(out: Path) -> None:
    if "://" in str(out) or str(out).startswith(("s3:/", "gs:/")):
        raise InputError("exports go to local files", source=str(out), field="--out")
    if out.exists():
        raise InputError(
            "is there already",
            source=str(out),
            field="--out",
            mend="Give another name, or delete it first",
        )
    if not out.parent.is_dir():
        raise InputError(
            "there is no such folder", source=str(out.parent), field="--out", mend="Make it first"
        )


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A place beside `out` that becomes it when all is written, and is gone otherwise."""
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex}"
    try:
        yield temporary
        os.rename(temporary, out)
    except OSError as error:
        full = error.errno in NO_ROOM
        taken = error.errno in (errno.EEXIST, errno.ENOTEMPTY)
        problem = (
            "there is no room left" if full else f"cannot be written: {error.strerror or error}"
        )
        raise InputError(
            "is there already" if taken else problem,
            source=str(out),
            field="--out",
            mend="Make room, or choose another disk" if full else "Choose another place",
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
