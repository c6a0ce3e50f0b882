"""What is wrong with a part, and putting it aside so that its cell is run again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Literal

from cluster.parts import Part
from cluster.receipts import Receipts
from cluster.storage import LocalStore, ObjectStore

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
