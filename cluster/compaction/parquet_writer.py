"""Parquet files that are written in order, row group by row group, and hashed on their way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage.open_store import LocalStore, ObjectStore

ROWS_PER_GROUP, _BYTES_PER_GROUP = 122_880, 256 << 20
_BATCHES_AT_ONCE = 128
ROWS_PER_FILE = 16 * ROWS_PER_GROUP


class Written(NamedTuple):
    name: str
    rows: int
    num_bytes: int
    sha256: str


def write_large(
    store: LocalStore | ObjectStore,
    folder: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[Written]:
    """Files `<folder>/<n>.parquet` of about `ROWS_PER_FILE` rows; none where there is no batch.

    Holds one row group in memory.
    """
    groups, number = _groups(batches), 0
    group = next(groups, None)
    while group is not None:
        with _File(store, f"{folder}/{number:03}.parquet", schema) as file:
            while group is not None and file.rows < ROWS_PER_FILE:
                file.write(group)
                group = next(groups, None)
        yield file.written
        number += 1


def write_whole(store: LocalStore | ObjectStore, name: str, table: pa.Table) -> Written:
    """One table as one file."""
    with _File(store, name, table.schema) as file:
        file.write(table)
    return file.written


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    small: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        small.append(batch)
        rows, num_bytes = rows + len(batch), num_bytes + batch.nbytes
        is_full = rows >= ROWS_PER_GROUP or num_bytes >= _BYTES_PER_GROUP
        if is_full or len(small) >= _BATCHES_AT_ONCE:
            held, small = [*held, *_packed(small)], []
        if is_full:
            yield pa.Table.from_batches(held)
            held, rows, num_bytes = [], 0, 0
    if held or small:
        yield pa.Table.from_batches([*held, *_packed(small)])


def _packed(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """As few larger ones: a batch of few rows takes much more than its rows."""
    return pa.Table.from_batches(batches).combine_chunks().to_batches() if batches else []


class _File:
    def __init__(self, store: LocalStore | ObjectStore, name: str, schema: pa.Schema) -> None:
        self.store, self.name, self.schema = store, name, schema
        self.rows = 0
        self.written: Written
        self._stack = ExitStack()

    def __enter__(self) -> _File:
        with ExitStack() as opened:
            stream = opened.enter_context(self.store.writing(self.name))
            self._hashing = _Hashing(stream)
            self._writer = opened.enter_context(
                pq.ParquetWriter(
                    self._hashing, self.schema, compression="zstd", write_page_checksum=True
                )
            )
            self._stack = opened.pop_all()
        return self

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=len(table) or 1)
        self.rows += len(table)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        found = self._hashing
        self.written = Written(self.name, self.rows, found.num_bytes, found.sha256.hexdigest())


class _Hashing:
    """A stream for pyarrow that hands on what is written, and hashes it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        self.stream.write(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
