"""Commit, read and verify the results of a trial.

```
<output>/manifest.json                                   the plan, versions, hardware
         inputs/prompts.parquet                          the prompts as run
         extensions/<number>.json  inputs/prompts-<number>.parquet    what was added later
         generations/configuration=c-<name>/part-<key>.parquet
         likelihoods/configuration=c-<name>/part-<key>.parquet
         tables/                                         derived, rebuildable
         _receipts/<key>.json  _tmp/  _quarantine/  progress.json  _SUCCESS
```

One part is one commit: the facts of its cell are JSON in the Parquet footer, so that a single link
publishes rows and facts together. A receipt (sha256, rows) follows; it makes verification exact,
and is rebuilt where a crash fell between the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import Cell, Kind, Plan
from cluster.schema import schema
from cluster.storage import LocalStore, ObjectStore, open_store
from optim.errors import InputError

CELL_FACTS = b"optrial.cell"
MANIFEST, PROMPTS_FILE, SUCCESS = "manifest.json", "inputs/prompts.parquet", "_SUCCESS"
EXTENSIONS = "extensions"
KINDS: tuple[Kind, ...] = ("generations", "likelihoods")


@dataclass(frozen=True)
class Receipt:
    """What a worker hands back instead of rows."""

    key: str
    rows: int
    num_errors: int
    sha256: str
    completion_tokens: int
    wall_s: float
    is_duplicate: bool = False
    """Another execution had committed the cell first; this one's rows were discarded."""


@dataclass(frozen=True)
class Part:
    """One committed file."""

    name: str
    kind: Kind
    configuration: str
    key: str


@dataclass(frozen=True)
class Fault:
    """One thing that `verify` found wrong."""

    name: str
    problem: str


class Results:
    """The results folder of one trial."""

    def __init__(self, output: str) -> None:
        self.store: LocalStore | ObjectStore = open_store(output)
        self.output = output

    # --- writing -------------------------------------------------------------------------------

    def commit(
        self, cell: Cell, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> Receipt:
        """Publish a cell's rows and facts under its key; the first writer wins."""
        data = encode_part(cell.kind, rows, facts)
        created = self.store.create(part_name(cell), data)
        receipt = Receipt(
            key=cell.key,
            rows=len(rows),
            num_errors=sum(row.get("error") is not None for row in rows),
            sha256=hashlib.sha256(data).hexdigest(),
            completion_tokens=sum(row.get("completion_tokens") or 0 for row in rows),
            wall_s=float(facts.get("wall_s") or 0.0),
            is_duplicate=not created,
        )
        if created:
            self._write_receipt(cell.key, receipt.sha256, receipt.rows)
        return receipt

    def _write_receipt(self, key: str, sha256: str, rows: int) -> None:
        # Replaced, not created: an older part of this key may have been set aside.
        text = json.dumps({"key": key, "rows": rows, "sha256": sha256})
        self.store.replace(f"_receipts/{key}.json", text.encode())

    def extend(self, plan: Plan, prompts: Sequence[Mapping[str, Any]]) -> bool:
        """Add to the trial: its plan is this one from now on; False where another was first.

        Rows of `prompts` come after those that there are.
        """
        number = len(self._extension_names()) + 1
        if prompts:
            write_prompts(self.store, prompts, _added_prompts(number))
        text = plan.model_dump_json(indent=1)
        return self.store.create(f"{EXTENSIONS}/{number:04}.json", text.encode())

    # --- reading -------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest, or an InputError that says that this is no results folder."""
        try:
            loaded = json.loads(self.store.read(MANIFEST))
        except FileNotFoundError as error:
            raise InputError(
                "there is no manifest.json, so this is not a results folder",
                source=self.output,
                mend="Give the `output` of a trial",
            ) from error
        except ValueError as error:
            raise InputError(
                f"not valid JSON: {error}", source=self.store.path(MANIFEST)
            ) from error
        if not isinstance(loaded, dict) or "plan" not in loaded:
            raise InputError("there is no plan in it", source=self.store.path(MANIFEST))
        return loaded

    def plan(self) -> Plan:
        """The plan with all that was added to it later."""
        first = self.manifest()["plan"]
        extended = self.extensions()
        return extended[-1] if extended else Plan.model_validate(first)

    def extensions(self) -> list[Plan]:
        """The plans that each extension left, the first one first."""
        return [Plan.model_validate_json(self.store.read(name)) for name in self._extension_names()]

    def _extension_names(self) -> list[str]:
        return sorted(name for name in self.store.list(EXTENSIONS) if name.endswith(".json"))

    def parts(self, kind: Kind) -> list[Part]:
        """Every committed part of a kind, by name."""
        found = []
        for name in self.store.list(kind):
            part = _parse_part_name(kind, name)
            if part is not None:
                found.append(part)
        return found

    def committed_keys(self) -> set[str]:
        """Keys of all committed cells: what a resumed run need not do again."""
        return {part.key for kind in KINDS for part in self.parts(kind)}

    def read_part(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """One part's rows, with `configuration` as its first column."""
        source = pa.BufferReader(self.store.read(part.name))
        table = pq.read_table(source, columns=columns, schema=schema(part.kind))
        name = pa.array([part.configuration] * len(table), pa.string())
        return table.add_column(0, "configuration", name)

    def read(self, kind: Kind, columns: list[str] | None = None) -> pa.Table:
        """All rows of a kind. Memory grows with rows: for large trials ask `jobs.query`."""
        tables = [self.read_part(part, columns) for part in self.parts(kind)]
        if tables:
            return pa.concat_tables(tables)
        empty = schema(kind).insert(0, pa.field("configuration", pa.string())).empty_table()
        return empty.select(["configuration", *columns]) if columns else empty

    def prompt_files(self) -> list[str]:
        """Where the prompts as run are: those of the trial, then those that were added."""
        added = [_added_prompts(number) for number in range(1, len(self._extension_names()) + 1)]
        return [name for name in (PROMPTS_FILE, *added) if self.store.exists(name)]

    def prompts(self) -> pa.Table:
        files = self.prompt_files() or [PROMPTS_FILE]
        sources = (pa.BufferReader(self.store.read(name)) for name in files)
        return pa.concat_tables(pq.read_table(each, schema=schema("prompts")) for each in sources)

    def cells(self, kind: Kind = "generations") -> list[dict[str, Any]]:
        """The facts of every committed cell, read from the footers."""
        return [self.cell_facts(part) for part in self.parts(kind)]

    def cell_facts(self, part: Part) -> dict[str, Any]:
        if isinstance(self.store, LocalStore):
            metadata = pq.read_metadata(self.store.path(part.name))
        else:
            metadata = pq.read_metadata(pa.BufferReader(self.store.read(part.name)))
        facts: dict[str, Any] = json.loads((metadata.metadata or {})[CELL_FACTS])
        return facts

    # --- verifying -----------------------------------------------------------------------------

    def verify(self) -> Iterator[Fault]:
        """Check every part against its receipt, and all cells against the plan.

        A missing receipt is rebuilt where the part reads clean: page checksums decide.
        """
        plan = self.plan()
        wanted = {cell.key: cell for block in plan.blocks() for cell in block.cells}
        seen: set[str] = set()
        for kind in KINDS:
            for part in self.parts(kind):
                problem = self._fault(part, wanted.get(part.key))
                if problem:
                    yield Fault(part.name, problem)
                else:
                    seen.add(part.key)
        for key, cell in wanted.items():
            if key not in seen:
                where = f"{cell.dataset} shard {cell.shard} seed {cell.seed}"
                yield Fault(part_name(cell), f"missing or unsound: {cell.configuration}, {where}")

    def _fault(self, part: Part, cell: Cell | None) -> str | None:
        if cell is None:
            return "not a cell of this trial"
        data = self.store.read(part.name)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            receipt = json.loads(self.store.read(f"_receipts/{part.key}.json"))
        except (FileNotFoundError, ValueError):
            receipt = None
        if receipt is not None and receipt.get("sha256") != sha256:
            return "its bytes differ from its receipt"
        try:
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException) as error:
            return f"cannot be read: {error}"
        if receipt is not None and receipt.get("rows") != len(table):
            return "its row count differs from its receipt"
        expected = cell.stop - cell.start
        if cell.kind == "generations" and len(table) != expected:
            return f"has {len(table)} rows instead of {expected}"
        if receipt is None:
            self._write_receipt(part.key, sha256, len(table))
        return None


def part_name(cell: Cell) -> str:
    return f"{cell.kind}/configuration=c-{cell.configuration}/part-{cell.key}.parquet"


def _parse_part_name(kind: Kind, name: str) -> Part | None:
    pieces = name.split("/")
    if len(pieces) != 3 or not pieces[1].startswith("configuration=c-"):
        return None
    if not (pieces[2].startswith("part-") and pieces[2].endswith(".parquet")):
        return None
    return Part(
        name=name,
        kind=kind,
        configuration=pieces[1].removeprefix("configuration=c-"),
        key=pieces[2].removeprefix("part-").removesuffix(".parquet"),
    )


def encode_part(kind: Kind, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> bytes:
    """A part's bytes: zstd, page checksums, the cell's facts in the footer."""
    table_schema = schema(kind)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=table_schema)
    metadata = dict(table_schema.metadata or {})
    metadata[CELL_FACTS] = json.dumps(facts, sort_keys=True).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _added_prompts(number: int) -> str:
    return f"inputs/prompts-{number:04}.parquet"


def write_prompts(
    store: LocalStore | ObjectStore, rows: Iterable[Mapping[str, Any]], name: str = PROMPTS_FILE
) -> bytes:
    """Freeze the prompts as run; returns the file's bytes."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema("prompts"))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    store.replace(name, data)
    return data
