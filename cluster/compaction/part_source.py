"""The rows of parts as a stream, each part compared with its receipt on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import Kind
from cluster.results.checksum_cache import refuse
from cluster.results.compacted_files import COVERED_SCHEMA, Covered
from cluster.results.files import Part, facts_of, facts_table
from cluster.results.receipts import Receipts, differs, page_fault
from cluster.results.schema import Column, schema
from cluster.storage.open_store import LocalStore, ObjectStore, read_ahead, threads_for
from optim.errors import InputError

_ORDER: dict[Kind, list[tuple[str, str]]] = {
    "generations": [("prompt_id", "ascending")],
    "likelihoods": [("prompt_id", "ascending"), ("candidate", "ascending")],
}
_FACTS_AT_ONCE, _ROWS_AT_ONCE = 2_000, 65_536


class PartSource:
    """Reads parts and keeps, as small tables, what they were and the facts of their footers."""

    def __init__(
        self,
        store: LocalStore | ObjectStore,
        output: str,
        columns: Sequence[Column],
        on_part: Callable[[], None],
    ) -> None:
        self.store, self.output, self.columns = store, output, columns
        self.on_part = on_part
        self.receipts = Receipts(store)
        self.num_rows = 0
        self._covered: list[Covered] = []
        self._facts: list[dict[str, Any]] = []
        self._covered_tables: list[pa.Table] = []
        self._facts_tables: list[pa.Table] = []

    def batches(self, parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
        """All rows of parts of one kind, those of a part by prompt.

        Raises InputError at a part that is not sound.
        """
        for covered, facts, table in read_ahead(self._read, parts, threads_for(self.store)):
            self._covered.append(covered)
            self._facts.append(facts)
            if len(self._facts) >= _FACTS_AT_ONCE:
                self._pack()
            self.num_rows += len(table)
            self.on_part()
            yield from table.to_batches(max_chunksize=_ROWS_AT_ONCE)

    def covered(self) -> pa.Table:
        """`COVERED_SCHEMA`: what was read so far."""
        self._pack()
        return pa.concat_tables([COVERED_SCHEMA.empty_table(), *self._covered_tables])

    def facts(self) -> pa.Table:
        """The facts of the cells that were read so far."""
        self._pack()
        return pa.concat_tables([facts_table(self.columns, []), *self._facts_tables])

    def _pack(self) -> None:
        if self._facts:
            self._covered_tables.append(covered_table(self._covered))
            self._facts_tables.append(facts_table(self.columns, self._facts))
            self._covered, self._facts = [], []

    def _read(self, part: Part) -> tuple[Covered, dict[str, Any], pa.Table]:
        try:
            data = self.store.read(part.name)
            sha256 = hashlib.sha256(data).hexdigest()
            problem = self._problem(part, data, sha256)
            if problem is None:
                with pq.ParquetFile(pa.BufferReader(data)) as file:
                    facts, table = facts_of(file.metadata), file.read(use_threads=False)
                covered = Covered(part.name, part.key, len(data), part.version, sha256, len(table))
                return covered, facts, _sorted(_conformed(table, schema(part.kind)), part.kind)
        except InputError:
            raise  # what the store says of itself
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = f"cannot be read: {error}"
        refuse(self.store, self.output, [(part.name, problem)])
        raise AssertionError("refuse raises")

    def _problem(self, part: Part, data: bytes, sha256: str) -> str | None:
        seals = self.receipts.seals(part.key)
        if seals:
            return "its bytes differ from its receipt" if differs(sha256, seals) else None
        return page_fault(pa.BufferReader(data))


def covered_table(covered: Sequence[Covered]) -> pa.Table:
    columns = list(zip(*covered, strict=True)) or [()] * len(COVERED_SCHEMA)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, COVERED_SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=COVERED_SCHEMA)


def _sorted(table: pa.Table, kind: Kind) -> pa.Table:
    keys = list(zip(*(table[name].to_pylist() for name, _ in _ORDER[kind]), strict=True))
    if keys == sorted(keys, key=lambda key: tuple((k is not None, k) for k in key)):
        return table
    return table.sort_by(_ORDER[kind])


def _conformed(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The published columns: one that an older part lacks is null."""
    if table.schema.equals(wanted):
        return table.replace_schema_metadata(wanted.metadata)
    there = set(table.column_names)
    arrays = [
        table[f.name].cast(f.type) if f.name in there else pa.nulls(len(table), f.type)
        for f in wanted
    ]
    return pa.table(arrays, schema=wanted)
