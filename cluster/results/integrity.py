"""Which cells need not be run again, from listings alone.

A part counts as done where its size is what its receipt says. Where it has no receipt (a crash fell
between the two, or an older version wrote it), its last bytes are read: a Parquet file ends with
its footer's length and a magic word. Bytes that changed and kept their number are found by `verify`
and by every query, which read all of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.plan import Plan, cell_key
from cluster.results.files import Part
from cluster.results.receipts import Receipts
from cluster.storage.open_store import LocalStore, ObjectStore, read_ahead, threads_for

SUCCESS = "_SUCCESS"
QUARANTINED_PARTS = "_quarantine/parts"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with results."""

    name: str
    problem: str
    kind: Literal["damaged", "foreign", "missing", "derived"] = "damaged"
    """`derived` is what can be made again from the parts."""
    part: Part | None = None
    """The part to set aside; None where there is nothing to."""


def set_aside(store: LocalStore | ObjectStore, part: Part, receipts: Receipts) -> str | None:
    """Move a part and its receipts to `_quarantine/`; the part's new name.

    None where it is no longer what the listing saw: another run has been here. Nothing is deleted
    but the mark that the trial is complete, which it is not any more.
    """
    there = store.entry(part.name)
    if there is None or (there.num_bytes, there.version) != (part.num_bytes, part.version):
        return None
    number = uuid.uuid4().hex[:8]
    target = f"{QUARANTINED_PARTS}/{part.name.removesuffix('.parquet')}-{number}.parquet"
    store.delete(SUCCESS)
    if not store.move(part.name, target):
        return None
    for name in receipts.names(part.key):
        # What was listed, so that the receipt of a part that was committed since stays.
        store.move(name, f"{QUARANTINED_PARTS}/{name}")
    return target


def planned(plan: Plan, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """The parts whose key, kind and configuration are a cell's, and the others; in their order.

    Goes over all cells of the plan once, and keeps none of them.
    """
    if not parts:
        return [], []
    listed = {part.name for part in parts}
    found = set[str]()
    for kind, seeds, dataset in plan.spans():
        runs = [
            (f"{kind}/configuration=c-{configuration.name}/part-", configuration.fingerprint, seed)
            for configuration, seed in plan.runs(dataset, seeds)
        ]
        for shard in range(dataset.num_shards):
            start, stop = dataset.rows(shard)
            for place, fingerprint, seed in runs:
                key = cell_key(fingerprint, dataset.fingerprint, kind, seed, start, stop)
                name = f"{place}{key}.parquet"
                if name in listed:
                    found.add(name)
    return [p for p in parts if p.name in found], [p for p in parts if p.name not in found]


_MAGIC = b"PAR1"


def unsound(
    store: LocalStore | ObjectStore, parts: Sequence[Part], receipts: Receipts
) -> list[Fault]:
    """The parts that cannot be what was committed. One read each for those without a receipt."""
    faults, without = [], []
    for part in parts:
        sizes = receipts.sizes(part.key)
        if not sizes:
            without.append(part)
        elif part.num_bytes not in sizes:
            wanted = " or ".join(f"{size:,}" for size in sorted(sizes))
            problem = f"has {part.num_bytes:,} bytes instead of {wanted}"
            faults.append(Fault(part.name, problem, part=part))

    def ends_well(part: Part) -> tuple[Part, bool]:
        try:
            return part, _is_end(store.read_end(part.name, 8), part.num_bytes)
        except FileNotFoundError:
            return part, True  # moved since, by another run

    for part, is_well in read_ahead(ends_well, without, threads_for(store)):
        if not is_well:
            faults.append(Fault(part.name, "does not end as a Parquet file does", part=part))
    return faults


def _is_end(data: bytes, num_bytes: int) -> bool:
    if len(data) < 8 or data[4:] != _MAGIC:
        return False
    return 0 < int.from_bytes(data[:4], "little") <= num_bytes - 12
