"""`compact`: many small parts into few large files, in one pass and little memory.

A new generation is written beside the one in force, from bytes that were compared with their
receipts as they were read, and `tables/CURRENT` is replaced when all of it is there. A run that is
killed before that changes nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.compaction.parquet_writer import Written, write_large, write_whole
from cluster.compaction.part_source import PartSource, covered_table
from cluster.plan import Kind
from cluster.results.checksum_cache import Checked
from cluster.results.compacted_files import (
    CURRENT,
    FOLDER,
    LAYOUT_VERSION,
    Compacted,
    CompactedFile,
    Covered,
    Split,
)
from cluster.results.files import KINDS, Part
from cluster.results.schema import Column, schema
from cluster.results.snapshot import part_sha256, sound_generation
from optim.errors import InputError

if TYPE_CHECKING:
    from cluster.results.results import Results

Group = tuple[Kind, str]
"""Kind and configuration."""
_MOST_FILES = 8
"""Of one configuration, before its files are made one again."""


@dataclass(frozen=True)
class Compaction:
    """What a compaction came to."""

    num_parts: int
    """Parts that the generation stands for."""
    num_new: int
    """Parts that were read for it."""
    num_files: int
    num_bytes: int
    num_skipped: int
    """Parts that are no cell of the trial, and stay as they are."""


def compact(
    results: Results,
    cell_columns: Sequence[Column],
    *,
    full: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compaction:
    """Bring the compacted files up to date; with `full`, make all of them anew.

    `cell_columns` are the facts of cells that are kept. Raises InputError where a part is damaged.
    """
    return _Run(results, cell_columns, full, on_progress).run()


class _Run:
    def __init__(
        self,
        results: Results,
        columns: Sequence[Column],
        full: bool,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.results, self.store, self.columns = results, results.store, columns
        self.checked = Checked(results.store)
        self.on_progress, self.num_read, self.num_to_read = on_progress, 0, 0
        self.places = {
            cell.key: (cell.dataset, -1 if cell.seed is None else cell.seed, cell.start)
            for block in results.plan().blocks()
            for cell in block.cells
        }
        self.parts, foreign = results.cell_parts()
        self.num_skipped = len(foreign)
        self.old = self._old(full)
        self.split = self._split()

    def _old(self, full: bool) -> Compacted | None:
        """What can be built upon."""
        old = None if full else sound_generation(self.results, self.checked)
        if old is None or old.cell_columns != [column.name for column in self.columns]:
            return None
        return old

    def _split(self) -> Split:
        if self.old is None:
            return Split(tuple(self.parts), frozenset())
        return self.old.split(
            self.parts, lambda part: part_sha256(self.results, self.checked, part)
        )

    def run(self) -> Compaction:
        kept = self._kept()
        groups = {group: parts for group, parts in self._to_read(kept).items() if parts}
        if self.old is not None and not groups and len(kept) == len(self.old.files):
            return self._report(self.old, 0)
        number = self._next_number()
        folder = f"{FOLDER}/{number:06}-{uuid.uuid4().hex[:8]}"
        self.num_to_read = sum(map(len, groups.values()))
        try:
            about = self._write(folder, number, kept, groups)
            self._check_unchanged()
            self.store.replace(f"{folder}/generation.json", _dumps(about))
            self.store.replace(CURRENT, _dumps({"folder": folder}))
        except BaseException:
            self.store.delete_folder(folder)
            raise
        made = Compacted.current(self.store)
        if made is None:
            raise InputError(
                "another compaction removed files of this one",
                source=self.results.output,
                mend="Let one at a time run",
            )
        written = {made.entries[file.name]: file.sha256 for file in made.all_files}
        self.checked.take_over(made.covered, written)
        self._remove_older(made)
        return self._report(made, self.num_to_read)

    def _kept(self) -> list[CompactedFile]:
        """Files that stay: of configurations where no row lost its part, and which are few."""
        if self.old is None:
            return []
        lost = {
            _group_of(name) for name, c in self.old.covered.items() if c.key in self.split.stale
        }
        fresh = {(part.kind, part.configuration) for part in self.split.fresh}
        kept = []
        for group, files in _by_group(self.old.files).items():
            if group not in lost and (group not in fresh or len(files) < _MOST_FILES):
                kept += files
        return kept

    def _to_read(self, kept: Sequence[CompactedFile]) -> dict[Group, list[Part]]:
        keeps = {(file.kind, file.configuration) for file in kept}
        fresh = {part.name for part in self.split.fresh}
        found: dict[Group, list[Part]] = {}
        for part in self.parts:
            group = (part.kind, part.configuration)
            if group not in keeps or part.name in fresh:
                found.setdefault(group, []).append(part)
        return found

    def _write(
        self,
        folder: str,
        number: int,
        kept: Sequence[CompactedFile],
        groups: dict[Group, list[Part]],
    ) -> dict[str, object]:
        source = PartSource(self.store, self.results.output, self.columns, self._read_one)
        files = list(kept)
        for (kind, configuration), parts in sorted(groups.items()):
            place = f"{folder}/{kind}/configuration=c-{configuration}"
            # By dataset, seed and shard; within a shard, the source sorts by prompt.
            rows = source.batches(sorted(parts, key=lambda part: self.places[part.key]))
            for written in write_large(self.store, place, schema(kind), rows):
                files.append(_file(written, kind, configuration))
        covered, cells = source.covered(), source.facts()
        if self.old is not None:
            old_covered, old_cells = self._carried(self.old, kept)
            covered = pa.concat_tables([old_covered, covered])
            cells = pa.concat_tables([old_cells, cells])
        index = write_whole(self.store, f"{folder}/covered.parquet", covered)
        facts = write_whole(self.store, f"{folder}/cells.parquet", cells)
        return {
            "layout_version": LAYOUT_VERSION,
            "number": number,
            "folder": folder,
            "files": [asdict(file) for file in files],
            "covered": asdict(_file(index, KINDS[0], "")),
            "cells": asdict(_file(facts, KINDS[0], "")),
            "cell_columns": [column.name for column in self.columns],
        }

    def _carried(self, old: Compacted, kept: Sequence[CompactedFile]) -> tuple[pa.Table, pa.Table]:
        """What the old generation knew of the parts in the files that stay."""
        keeps = {(file.kind, file.configuration) for file in kept}
        versions = {part.name: part.version for part in self.parts}
        covered = [
            Covered(*row)._replace(version=versions.get(row.name, row.version))
            for row in old.covered.values()
            if _group_of(row.name) in keeps
        ]
        cells = pq.read_table(pa.BufferReader(self.store.read(old.cells.name)))
        keys = pa.array([each.key for each in covered], pa.string())
        return covered_table(covered), cells.filter(pc.is_in(cells["key"], keys))

    def _read_one(self) -> None:
        self.num_read += 1
        self.on_progress(self.num_read, self.num_to_read)

    def _next_number(self) -> int:
        return 1 + max((_number(entry.name) for entry in self.store.entries(FOLDER)), default=0)

    def _check_unchanged(self) -> None:
        now, old = Compacted.current(self.store), self.old
        if old is not None and (now is None or now.folder != old.folder):
            raise InputError(
                "another compaction ended while this one ran",
                source=self.results.output,
                mend="Nothing needs to be done: its result is in force",
            )

    def _remove_older(self, made: Compacted) -> None:
        used = {file.name for file in made.all_files} | {f"{made.folder}/generation.json"}
        by_folder: dict[str, list[str]] = {}
        for entry in self.store.entries(FOLDER):
            folder = "/".join(entry.name.split("/")[:3])
            if _number(folder) < made.number:  # another one may be another run's, being written
                by_folder.setdefault(folder, []).append(entry.name)
        for folder, names in by_folder.items():
            if used.isdisjoint(names):
                self.store.delete_folder(folder)
                continue
            for name in set(names) - used:
                self.store.delete(name)

    def _report(self, made: Compacted, num_new: int) -> Compaction:
        num_bytes = sum(file.num_bytes for file in made.all_files)
        return Compaction(len(made.covered), num_new, len(made.files), num_bytes, self.num_skipped)


def _number(name: str) -> int:
    """Of the generation that a file or folder belongs to."""
    digits = name.removeprefix(f"{FOLDER}/").split("-")[0]
    return int(digits) if digits.isdigit() else 0


def _by_group(files: Sequence[CompactedFile]) -> dict[Group, list[CompactedFile]]:
    found: dict[Group, list[CompactedFile]] = {}
    for file in files:
        found.setdefault((file.kind, file.configuration), []).append(file)
    return found


def _group_of(part_name: str) -> Group:
    kind, folder, _ = part_name.split("/")
    return (KINDS[KINDS.index(kind)], folder.removeprefix("configuration=c-"))


def _file(written: Written, kind: Kind, configuration: str) -> CompactedFile:
    return CompactedFile(
        written.name, kind, configuration, written.rows, written.num_bytes, written.sha256
    )


def _dumps(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
