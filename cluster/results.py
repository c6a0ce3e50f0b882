"""Commit, read and verify the results of a trial.

```
<output>/manifest.json                                   the plan, versions, hardware
         inputs/prompts.parquet                          the prompts as run
         extensions/<number>.json  inputs/prompts-<number>.parquet    what was added later
         generations/configuration=c-<name>/part-<key>.parquet
         likelihoods/configuration=c-<name>/part-<key>.parquet
         tables/                                         derived, rebuildable
         _receipts/<key>-<bytes>-<sha256>.json  _tmp/  _quarantine/  _verified/
         progress.json  _SUCCESS
```

One part is one commit: the facts of its cell are JSON in the Parquet footer, so that a single link
publishes rows and facts together. A receipt follows (`cluster.receipts`); it makes verification
exact, and is rebuilt where a crash fell between the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.parts import (
    CELL_FACTS,
    KINDS,
    PROMPTS_FILE,
    Part,
    added_prompts,
    encode_part,
    facts_of,
    part_name,
    part_of,
    write_prompts,
)
from cluster.plan import Cell, Kind, Plan
from cluster.quarantine import SUCCESS, Fault, set_aside
from cluster.receipts import Receipt, Receipts, write_receipt
from cluster.schema import schema
from cluster.soundness import unsound
from cluster.storage import LocalStore, ObjectStore, open_store
from cluster.verification import Verification
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
        if prompts:
            write_prompts(self.store, prompts, added_prompts(number))
        text = plan.model_dump_json(indent=1)
        return self.store.create(f"{EXTENSIONS}/{number:04}.json", text.encode())

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
        found = (part_of(kind, entry) for entry in self.store.entries(kind))
        return [part for part in found if part is not None]

    def committed_keys(self) -> set[str]:
        """Keys of all committed cells, sound or not: one listing."""
        return {part.key for kind in KINDS for part in self.parts(kind)}

    def sound_keys(self, *, set_aside_others: bool = False) -> set[str]:
        """Keys of the cells that a resumed run need not do again: two listings.

        A part counts whose size is that of its receipt (`cluster.soundness`). The others are moved
        to `_quarantine/` where that is asked for, so that their cells can be committed again.
        """
        parts = [part for kind in KINDS for part in self.parts(kind)]
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
        """All rows of a kind. Memory grows with rows: for large trials ask `jobs.query`."""
        tables = [self.read_part(part, columns) for part in self.parts(kind)]
        if tables:
            return pa.concat_tables(tables)
        empty = schema(kind).insert(0, pa.field("configuration", pa.string())).empty_table()
        return empty.select(["configuration", *columns]) if columns else empty

    def prompt_files(self) -> list[str]:
        """Where the prompts as run are: those of the trial, then those that were added."""
        added = [added_prompts(number) for number in range(1, len(self._extension_names()) + 1)]
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
            return facts_of(pq.read_metadata(self.store.path(part.name)))
        return facts_of(pq.read_metadata(pa.BufferReader(self.store.read(part.name))))

    # --- verifying -----------------------------------------------------------------------------

    def verify(self) -> Iterator[Fault]:
        """Check every part against its receipt, and all cells against the plan.

        A missing receipt is rebuilt where the part reads clean: page checksums decide.
        """
        return Verification(self).faults()
