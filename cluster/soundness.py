"""Which cells need not be run again, from listings alone.

A part counts as done where its size is what its receipt says. Where it has no receipt (a crash fell
between the two, or an older version wrote it), its last bytes are read: a Parquet file ends with
its footer's length and a magic word. Bytes that changed and kept their number are found by `verify`
and by every query, which read all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.ahead import read_ahead, threads_for
from cluster.parts import Part
from cluster.quarantine import Fault
from cluster.receipts import Receipts
from cluster.storage import LocalStore, ObjectStore

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
