"""What an answer reads: the compacted files and the parts beside them, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.checked import Checked, refuse
from cluster.compacted import Compacted
from cluster.parts import KINDS, Part
from cluster.plan import Kind
from cluster.receipts import Receipts, Seal
from cluster.storage import Entry
from optim.errors import InputError

if TYPE_CHECKING:
    from cluster.results import Results


@dataclass(frozen=True)
class Readable:
    """The files whose rows are the trial's."""

    compacted: Compacted | None
    parts: Mapping[Kind, tuple[Part, ...]]
    """Those that are read as they are."""
    stale: frozenset[str]
    """Keys of cells whose compacted rows do not count."""
    prompts: tuple[str, ...]

    def names(self, kind: Kind) -> tuple[list[str], list[str]]:
        """Compacted files, and parts."""
        files = self.compacted.files if self.compacted is not None else ()
        return [f.name for f in files if f.kind == kind], [p.name for p in self.parts[kind]]

    def num_bytes(self, kind: Kind) -> int:
        files = self.compacted.files if self.compacted is not None else ()
        large = sum(f.num_bytes for f in files if f.kind == kind)
        return large + sum(part.num_bytes for part in self.parts[kind])


def readable(results: Results) -> Readable:
    """Find what to read. Raises InputError that names what is damaged, and the mend.

    Costs a listing, and hashing what was not hashed before.
    """
    checked = Checked(results.store)
    compacted = sound_generation(results, checked)
    parts = [part for kind in KINDS for part in results.parts(kind)]
    stale: frozenset[str] = frozenset()
    if compacted is not None:
        split = compacted.split(parts, lambda part: part_sha256(results, checked, part))
        parts, stale = list(split.fresh), split.stale
    check_parts(results, checked, parts)
    by_kind = {kind: tuple(p for p in parts if p.kind == kind) for kind in KINDS}
    return Readable(compacted, by_kind, stale, _prompts(results, checked))


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
    entries = [entry for name in names if (entry := results.store.entry(name)) is not None]
    for name, problem in checked.faults(entries, dict):
        raise InputError(
            f"the prompts are not what was run: {problem}",
            source=results.store.path(name),
            mend="Take the file from a copy of the results",
        )
    return tuple(entry.name for entry in entries)
