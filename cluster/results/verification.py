"""`Verification`: every part against its receipt, its cell and its prompts; memory stays small.

A part must hold the rows of its cell and no others. Cells do not overlap, so that rows are distinct
over the whole trial where each part is right, and no set of all rows is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.plan import Cell, Kind, Plan
from cluster.results.compacted_files import CURRENT, Compacted
from cluster.results.files import KINDS, Part, facts_of
from cluster.results.integrity import Fault, set_aside
from cluster.results.receipts import Receipts, differs, page_fault, sha256_of, write_receipt
from cluster.results.results import Results
from cluster.storage.open_store import read_ahead, threads_for
from optim.errors import InputError

OnProgress = Callable[[int, int], None]
"""Parts that were read, of all."""


class _Wanted(NamedTuple):
    """A cell of the plan; much smaller than `Cell`, as there may be very many."""

    kind: Kind
    configuration: str
    dataset: str
    shard: int
    seed: int | None
    start: int
    stop: int


class Verification:
    """One pass over a trial's results."""

    def __init__(
        self, results: Results, on_progress: OnProgress = lambda done, total: None
    ) -> None:
        self.results, self.store = results, results.store
        self.on_progress = on_progress
        self.num_parts = 0
        self.num_bytes = 0
        self.rebuilt: list[str] = []
        """Parts whose receipt was missing and is there again, as their page checksums are right."""
        self._receipts = Receipts(self.store)
        self._prompts: dict[str, pa.Array] = {}
        self._candidates: dict[str, pa.Array] = {}

    def faults(self) -> Iterator[Fault]:
        """What is wrong. Every part is read; parts stay as they are."""
        wanted = _wanted(self.results.plan())
        yield from self._prompt_faults()
        parts = [part for kind in KINDS for part in self.results.parts(kind)]
        seen: set[str] = set()

        def check(part: Part) -> tuple[Part, Fault | None]:
            return part, self._fault(part, wanted.get(part.key))

        for part, fault in read_ahead(check, parts, threads_for(self.store)):
            self.num_parts, self.num_bytes = self.num_parts + 1, self.num_bytes + part.num_bytes
            self.on_progress(self.num_parts, len(parts))
            if fault is not None:
                yield fault
            if fault is None or fault.kind == "damaged":
                seen.add(part.key)
        for key, cell in wanted.items():
            if key not in seen:
                name = f"{cell.kind}/configuration=c-{cell.configuration}/part-{key}.parquet"
                where = f"{cell.dataset} shard {cell.shard} seed {cell.seed}"
                yield Fault(name, f"missing: {cell.configuration}, {where}", "missing")
        yield from self._derived_faults()

    def repair(self, fault: Fault) -> str | None:
        """Set a damaged or foreign part aside, or drop what can be made again; what was done."""
        if fault.kind == "derived":
            self.store.delete(CURRENT)
            return "is no longer used; `optrial compact` makes it again"
        if fault.part is None:
            return None
        target = set_aside(self.store, fault.part, self._receipts)
        return None if target is None else f"moved to {target}"

    def _fault(self, part: Part, cell: _Wanted | None) -> Fault | None:
        if cell is None or (cell.kind, cell.configuration) != (part.kind, part.configuration):
            return Fault(part.name, "not a cell of this trial", "foreign", part)
        try:
            problem = self._problem(part, cell)
        except FileNotFoundError:
            return None  # set aside since, by another run
        return None if problem is None else Fault(part.name, problem, part=part)

    def _problem(self, part: Part, cell: _Wanted) -> str | None:
        data = self.store.read(part.name)
        sha256 = hashlib.sha256(data).hexdigest()
        seals = self._receipts.seals(part.key)
        if seals and differs(sha256, seals):
            return "its bytes differ from its receipt"
        if not seals and (problem := page_fault(pa.BufferReader(data))) is not None:
            return problem
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                facts = facts_of(file.metadata)
                names = set(file.schema_arrow.names) & set(_IDENTITY[cell.kind])
                table = file.read(columns=sorted(names), use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            return f"cannot be read: {error}"
        if facts.get("rows", len(table)) != len(table):
            return f"has {len(table)} rows, and its footer says {facts['rows']}"
        problem = self._row_problem(table, part, cell)
        if problem is None and not seals:
            with suppress(OSError, InputError):  # where nothing can be written, nothing is rebuilt
                write_receipt(self.store, part.key, sha256, len(data), len(table))
                self.rebuilt.append(part.name)
        return problem

    def _row_problem(self, table: pa.Table, part: Part, cell: _Wanted) -> str | None:
        """Whether the rows are those of the cell, each once."""
        expected = cell.stop - cell.start
        if cell.kind == "generations" and len(table) != expected:
            return f"has {len(table)} rows instead of {expected}"
        one = {"cell": part.key, "dataset": cell.dataset, "seed": cell.seed}
        for column, value in one.items():
            if column in table.column_names and not _is_all(table[column], value):
                return f"has rows whose {column} is not {value}"
        ids = table["prompt_id"].to_pylist() if "prompt_id" in table.column_names else []
        keys: list[Any] = ids
        if "candidate" in table.column_names:
            keys = list(zip(ids, table["candidate"].to_pylist(), strict=True))
        if len(set(keys)) != len(keys):
            return "has rows of the same prompt twice"
        prompts = self._prompts.get(cell.dataset)
        if prompts is None or len(prompts) < cell.stop:
            return None
        asked = prompts[cell.start : cell.stop].to_pylist()
        if cell.kind == "generations" and sorted(ids) != sorted(asked):
            return "has other prompts than its cell"
        if not set(ids) <= set(asked):
            return "has other prompts than its cell"
        if cell.kind == "likelihoods" and "candidate" in table.column_names:
            candidates = self._candidates[cell.dataset][cell.start : cell.stop].to_pylist()
            scored = {(i, c) for i, cs in zip(asked, candidates, strict=True) for c in cs}
            if set(keys) != scored:
                return (
                    f"has {len(keys)} rows, which are not one for each of the {len(scored)} "
                    "targets and choices of its prompts"
                )
        return None

    def _prompt_faults(self) -> Iterator[Fault]:
        for name in self.results.prompt_files():
            try:
                problem = page_fault(pa.BufferReader(self.store.read(name)))
            except FileNotFoundError:
                yield Fault(
                    name, "missing: the prompts as run. Take the file from a copy", "missing"
                )
                continue
            if problem is not None:
                yield Fault(name, f"the prompts as run: {problem}. Take the file from a copy")
                continue
            self._take_prompts(self.results.prompts_in(name))

    def _take_prompts(self, table: pa.Table) -> None:
        """Keep the ids, and which candidates have a likelihood: -1 is the target."""
        for dataset in pc.unique(table["dataset"]).to_pylist():
            of_it = table.filter(pc.equal(table["dataset"], dataset)).sort_by("row")
            self._prompts[dataset] = of_it["prompt_id"].combine_chunks()
            columns = of_it.select(["target", "choices", "error"])
            self._candidates[dataset] = pa.concat_arrays(
                [
                    pa.array(
                        [_candidates(**row) for row in batch.to_pylist()], pa.list_(pa.int32())
                    )
                    for batch in columns.to_batches(max_chunksize=10_000)
                ]
            )

    def _derived_faults(self) -> Iterator[Fault]:
        compacted = Compacted.current(self.store)
        if compacted is None:
            if self.store.exists(CURRENT):
                yield Fault(CURRENT, "the compacted files are not all there", "derived")
            return
        for file in compacted.all_files:
            if sha256_of(self.store, file.name) != file.sha256:
                yield Fault(file.name, "its bytes differ from what was compacted", "derived")


_IDENTITY: dict[Kind, tuple[str, ...]] = {
    "generations": ("cell", "dataset", "seed", "prompt_id"),
    "likelihoods": ("cell", "dataset", "prompt_id", "candidate"),
}


def _candidates(target: str | None, choices: list[str] | None, error: str | None) -> list[int]:
    """Of a prompt: what the worker asks the model for likelihoods of."""
    if error is not None:
        return []
    return [index for index, text in ((-1, target), *enumerate(choices or [])) if text]


def _wanted(plan: Plan) -> dict[str, _Wanted]:
    return {cell.key: _of(cell) for block in plan.blocks() for cell in block.cells}


def _of(cell: Cell) -> _Wanted:
    return _Wanted(
        cell.kind, cell.configuration, cell.dataset, cell.shard, cell.seed, cell.start, cell.stop
    )


def _is_all(column: pa.ChunkedArray, value: object) -> bool:
    found = pc.unique(column).to_pylist()
    return not found or found == [value]


def faults_of(results: Results) -> Iterator[Fault]:
    """Check every part against its receipt, and all cells against the plan.

    A missing receipt is rebuilt where the part reads clean: page checksums decide.
    """
    return Verification(results).faults()
