"""Commit, read and verify the results of a trial.

```
<output>/manifest.json                                   the plan, versions, hardware
         inputs/prompts.parquet                          the prompts as run
         extensions/<number>.json  inputs/prompts-<number>-<sha256>.parquet  what was added later
         generations/configuration=c-<name>/part-<key>.parquet
         likelihoods/configuration=c-<name>/part-<key>.parquet
         tables/                                         derived, rebuildable
         _receipts/<key>-<bytes>-<sha256>.json  _tmp/  _quarantine/  _verified/
         progress.json  _SUCCESS
```

One part is one commit: the facts of its cell are JSON in the Parquet footer, so that a single link
publishes rows and facts together. A receipt follows (`cluster.results.receipts`); it makes
verification exact, and is rebuilt where a crash fell between the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cluster.plan import Cell, Kind, Plan
from cluster.results.files import (
    CELL_FACTS,
    FROM_A_COPY,
    KINDS,
    PROMPTS_FILE,
    Part,
    added_prompts,
    encode_part,
    encode_table,
    facts_of,
    part_name,
    part_of,
    read_prompts,
    write_prompts,
)
from cluster.results.integrity import SUCCESS, Fault, planned, set_aside, unsound
from cluster.results.receipts import Receipt, Receipts, write_receipt
from cluster.results.schema import schema
from cluster.storage.creation import create_alone
from cluster.storage.open_store import LocalStore, ObjectStore, open_store
from optim.errors import InputError

__all__ = [
    "CELL_FACTS", "EXTENSIONS", "KINDS", "MANIFEST", "PROMPTS_FILE", "SUCCESS", "Fault", "Part",
    "Receipt", "Results", "encode_part", "part_name", "write_prompts",
]  # fmt: skip

MANIFEST, EXTENSIONS = "manifest.json", "extensions"
_SWEEP_AFTER_S = 3600.0


class Results:
    """The results folder of one trial."""

    def __init__(self, output: str) -> None:
        self.store: LocalStore | ObjectStore = open_store(output)
        self.output = output

    # --- writing -------------------------------------------------------------------------------

    def commit(
        self, cell: Cell, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
    ) -> Receipt:
        """Publish a cell's rows and facts under its key; the first writer wins.

        Raises StorageFull where there is no room; nothing of the part is left then.
        """
        data = encode_part(cell.kind, rows, facts)
        sha256 = hashlib.sha256(data).hexdigest()
        name = part_name(cell)
        created = self.store.create(name, data)
        if created:
            # The part counts without its receipt too, which a killed writer may leave behind.
            write_receipt(self.store, cell.key, sha256, len(data), len(rows))
            if not self.store.create_is_exclusive:
                created = self.store.read(name) == data  # else somebody has written over it
        return Receipt(
            key=cell.key,
            rows=len(rows),
            num_errors=sum(row.get("error") is not None for row in rows),
            sha256=sha256,
            completion_tokens=sum(row.get("completion_tokens") or 0 for row in rows),
            wall_s=float(facts.get("wall_s") or 0.0),
            is_duplicate=not created,
        )

    def extend(self, plan: Plan, prompts: Sequence[Mapping[str, Any]]) -> bool:
        """Add to the trial: its plan is this one from now on; False where another was first.

        Rows of `prompts` come after those that there are.
        """
        number = len(self._extension_names()) + 1
        file = None
        if prompts:
            table = pa.Table.from_pylist([dict(row) for row in prompts], schema=schema("prompts"))
            data = encode_table(table)
            # Named by its bytes: of two who add at once, neither writes over the other's prompts.
            digest = hashlib.sha256(data).hexdigest()[:16]
            file = f"{added_prompts(number).removesuffix('.parquet')}-{digest}.parquet"
            self.store.replace(file, data)
        text = f'{{"plan": {plan.model_dump_json(indent=1)},\n"prompts": {json.dumps(file)}}}'
        name = f"{EXTENSIONS}/{number:04}.json"
        is_first = create_alone(self.store, name, text.encode())
        if not is_first and file is not None and file != self._extension(name)[1]:
            self.store.delete(file)
        return is_first

    def sweep(self, older_than_s: float = _SWEEP_AFTER_S) -> int:
        """Delete what killed writers left in `_tmp/`; returns how many files. For a run's start.

        Others may be writing, so that only what is old goes.
        """
        return self.store.sweep(older_than_s)

    # --- reading -------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """The manifest, or an InputError that says that this is no results folder."""
        try:
            loaded = json.loads(self.store.read(MANIFEST))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                "there is no manifest.json, so this is not a results folder",
                source=self.output,
                mend="Give the `output` of a trial",
            ) from error
        except InputError:
            raise  # what the store says of itself
        except ValueError as error:
            raise InputError(
                f"not valid JSON: {error}", source=self.store.path(MANIFEST), mend=FROM_A_COPY
            ) from error
        if not isinstance(loaded, dict) or "plan" not in loaded:
            raise InputError(
                "there is no plan in it", source=self.store.path(MANIFEST), mend=FROM_A_COPY
            )
        return loaded

    def plan(self) -> Plan:
        """The plan with all that was added to it later."""
        first = self._first_plan()
        extended = self.extensions()
        return extended[-1] if extended else first

    def extensions(self) -> list[Plan]:
        """The plans that each extension left, the first one first."""
        return [self._extension(name)[0] for name in self._extension_names()]

    def _first_plan(self) -> Plan:
        return _plan_of(self.manifest()["plan"], self.store.path(MANIFEST))

    def _extension(self, name: str) -> tuple[Plan, str | None]:
        """An extension's plan, and the file of the prompts that came with it, if any did."""
        source = self.store.path(name)
        try:
            loaded = json.loads(self.store.read(name))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"not valid JSON: {error}", source=source, mend=FROM_A_COPY) from error
        if isinstance(loaded, dict) and "plan" in loaded:
            return _plan_of(loaded["plan"], source), loaded.get("prompts")
        # Older results: the plan alone, and prompts in the file of the extension's number.
        number = int(name.rpartition("/")[2].removesuffix(".json"))
        return _plan_of(loaded, source), added_prompts(number)

    def _extension_names(self) -> list[str]:
        return sorted(name for name in self.store.list(EXTENSIONS) if name.endswith(".json"))

    def parts(self, kind: Kind) -> list[Part]:
        """Every file of a kind that is named as a part, by name; `cell_parts` are the trial's."""
        found = (part_of(kind, entry) for entry in self.store.entries(kind))
        return [part for part in found if part is not None]

    def cell_parts(self) -> tuple[list[Part], list[Part]]:
        """The parts of both kinds that are cells of the trial, and those that are none.

        All are the trial's as long as there is no manifest.
        """
        parts = [part for kind in KINDS for part in self.parts(kind)]
        if not self.store.exists(MANIFEST):
            return parts, []
        return planned(self.plan(), parts)

    def committed_keys(self) -> set[str]:
        """Keys of all committed cells, sound or not: one listing."""
        return {part.key for part in self.cell_parts()[0]}

    def sound_keys(self, *, set_aside_others: bool = False) -> set[str]:
        """Keys of the cells that a resumed run need not do again: two listings.

        A part counts whose size is that of its receipt (`cluster.results.integrity`). The others
        are moved to `_quarantine/` where that is asked for, so that their cells can be committed
        again.
        """
        parts, _ = self.cell_parts()
        receipts = Receipts(self.store)
        faults = unsound(self.store, parts, receipts)
        if set_aside_others:
            for fault in faults:
                if fault.part is not None:
                    set_aside(self.store, fault.part, receipts)
        return {part.key for part in parts} - {fault.part.key for fault in faults if fault.part}

    def read_part(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """One part's rows, with `configuration` as its first column."""
        source = pa.BufferReader(self.store.read(part.name))
        table = pq.read_table(source, columns=columns, schema=schema(part.kind))
        name = pa.array([part.configuration] * len(table), pa.string())
        return table.add_column(0, "configuration", name)

    def read(self, kind: Kind, columns: list[str] | None = None) -> pa.Table:
        """All rows of a kind. Memory grows with rows: for large trials ask `jobs.queries.sql`."""
        parts, _ = self.cell_parts()
        tables = [self.read_part(part, columns) for part in parts if part.kind == kind]
        if tables:
            return pa.concat_tables(tables)
        empty = schema(kind).insert(0, pa.field("configuration", pa.string())).empty_table()
        return empty.select(["configuration", *columns]) if columns else empty

    def prompt_files(self) -> list[str]:
        """Where the prompts as run must be: those of the trial, then those that were added."""
        files, before = [PROMPTS_FILE], _num_prompts(self._first_plan())
        for name in self._extension_names():
            plan, file = self._extension(name)
            if file is not None and _num_prompts(plan) > before:
                files.append(file)
            before = _num_prompts(plan)
        return files

    def prompts(self) -> pa.Table:
        """All prompts as run. InputError where a file of them is absent or damaged."""
        return pa.concat_tables(self.prompts_in(name) for name in self.prompt_files())

    def prompts_in(self, name: str) -> pa.Table:
        """Those of one file. Raises as `prompts` does."""
        return read_prompts(self.store, name)

    def cells(self, kind: Kind = "generations") -> list[dict[str, Any]]:
        """The facts of every committed cell, read from the footers."""
        return [self.cell_facts(part) for part in self.cell_parts()[0] if part.kind == kind]

    def cell_facts(self, part: Part) -> dict[str, Any]:
        if isinstance(self.store, LocalStore):
            return facts_of(pq.read_metadata(self.store.path(part.name)))
        return facts_of(pq.read_metadata(pa.BufferReader(self.store.read(part.name))))


def _num_prompts(plan: Plan) -> int:
    return sum(dataset.num_prompts for dataset in plan.datasets)


def _plan_of(value: object, source: str) -> Plan:
    """The plan that a file holds; InputError that names it where it is none."""
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["plan", *map(str, first["loc"])])
        raise InputError(
            f"not a plan of this version of Optrial: {first['msg']}",
            source=source,
            field=where,
            mend="Use the version that made the results, or take the file from a copy of them",
        ) from error
