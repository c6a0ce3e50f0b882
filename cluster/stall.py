"""What everybody was doing when nothing got done."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from cluster.slot import Slot
from cluster.storage import LocalStore, ObjectStore

log = logging.getLogger("optrial.scheduler")


def write_stall(store: LocalStore | ObjectStore, slots: Sequence[Slot], stall_s: float) -> None:
    """Write the state of all workers to `_logs/stall-<time>.json`."""
    workers = [
        {
            "worker": slot.number,
            "node": (slot.facts or {}).get("node"),
            "loaded": sorted(slot.loaded),
            "task": slot.task.kind if slot.task else None,
            "configuration": slot.task.configuration if slot.task else None,
            "block": slot.task.work.index if slot.task and slot.task.work else None,
            "elapsed_s": slot.task.elapsed_s if slot.task else None,
            "failures": slot.failures,
        }
        for slot in slots
    ]
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"_logs/stall-{at}.json"
    log.error("nothing was committed", extra={"stall_s": stall_s, "dump": name})
    store.replace(name, json.dumps({"stall_s": stall_s, "workers": workers}, indent=1).encode())
