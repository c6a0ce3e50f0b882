"""What an answer reads: the compacted files and the parts beside them, all of them checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.plan import Kind
from cluster.results.checksum_cache import Checked, refuse
from cluster.results.compacted_files import Compacted
from cluster.results.files import FROM_A_COPY, KINDS, Part
from cluster.results.receipts import Receipts, Seal
from cluster.storage.open_store import Entry
from optim.errors import InputError

if TYPE_CHECKING:
    from cluster.results.results import Results

log = logging.getLogger("optrial.results")
_SAID: set[tuple[str, tuple[str, ...]]] = set()
"""Places, and what of them was said to be left out: once in each process."""


@dataclass(frozen=True)
class Readable:
    """The files whose rows are the trial's."""

    compacted: Compacted | None
    parts: Mapping[Kind, tuple[Part, ...]]
    """Those that are read as they are."""
    stale: frozenset[str]
    """Keys of cells whose compacted rows do not count."""
    prompts: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    """Files that are named as parts and are no cells of the trial: they are left out."""

    def names(self, kind: Kind) -> tuple[list[str], list[str]]:
        """Compacted files, and parts."""
        files = self.compacted.files if self.compacted is not None else ()
        return [f.name for f in files if f.kind == kind], [p.name for p in self.parts[kind]]

    def num_bytes(self, kind: Kind) -> int:
        files = self.compacted.files if self.compacted is not None else ()
        large = sum(f.num_bytes for f in files if f.kind == kind)
        return large + sum(part.num_bytes for part in self.parts[kind])


def readable(results: Results) -> Readable:
    """Find what to read. Raises InputError that names what is damaged or absent, and the mend.

    Costs a listing, the keys of the plan's cells, and hashing what was not hashed before. Parts
    that are no cells of the trial are left out, which is logged.
    """
    checked = Checked(results.store)
    compacted = sound_generation(results, checked)
    # Before the parts, with whom is kept what was checked.
    prompts = _prompts(results, checked)
    parts, others = results.cell_parts()
    foreign = tuple(part.name for part in others)
    _say(results, foreign)
    stale: frozenset[str] = frozenset()
    if compacted is not None:
        split = compacted.split(parts, lambda part: part_sha256(results, checked, part))
        parts, stale = list(split.fresh), split.stale
    check_parts(results, checked, parts)
    by_kind = {kind: tuple(p for p in parts if p.kind == kind) for kind in KINDS}
    return Readable(compacted, by_kind, stale, prompts, foreign)


def _say(results: Results, foreign: tuple[str, ...]) -> None:
    if not foreign or (results.output, foreign) in _SAID:
        return
    _SAID.add((results.output, foreign))
    log.warning(
        "%s: %d parts are no cells of this trial and are left out (%s%s). "
        "`optrial verify %s --repair` sets them aside",
        results.output, len(foreign), foreign[0], ", …" if len(foreign) > 1 else "", results.output,
    )  # fmt: skip


def check_parts(results: Results, checked: Checked, parts: Sequence[Part]) -> None:
    """Raise InputError where one is not what was committed."""

    def seals() -> Mapping[str, Sequence[Seal]]:
        receipts = Receipts(results.store)
        return {part.name: receipts.seals(part.key) for part in parts}

    refuse(results.store, results.output, checked.faults([_entry(p) for p in parts], seals))


def part_sha256(results: Results, checked: Checked, part: Part) -> str:
    check_parts(results, checked, [part])
    return checked.sha256(_entry(part)) or ""


def _entry(part: Part) -> Entry:
    return Entry(part.name, part.num_bytes, part.version)


def sound_generation(results: Results, checked: Checked) -> Compacted | None:
    found = Compacted.current(results.store)
    if found is None:
        return None
    for name, problem in checked.faults(list(found.entries.values()), found.seals):
        raise InputError(
            f"is not what was compacted: {problem}",
            source=results.store.path(name),
            mend=f"Run `optrial compact {results.output} --full`: it is made again from the parts",
        )
    return found


def _prompts(results: Results, checked: Checked) -> tuple[str, ...]:
    names = results.prompt_files()
    entries = []
    for name in names:
        entry = results.store.entry(name)
        if entry is None:
            raise InputError(
                "the prompts as run are not there",
                source=results.store.path(name),
                mend=FROM_A_COPY,
            )
        entries.append(entry)
    for name, problem in checked.faults(entries, dict):
        raise InputError(
            f"the prompts are not what was run: {problem}",
            source=results.store.path(name),
            mend=FROM_A_COPY,
        )
    return tuple(entry.name for entry in entries)
