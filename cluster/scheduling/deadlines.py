"""`Watch`: who takes too long with what."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cluster.block_index import Layout
from cluster.scheduling.limits import Durations, Family, Limits
from cluster.scheduling.work_queue import Work
from cluster.scheduling.worker_pool import Slot, Task
from cluster.storage.open_store import LocalStore, ObjectStore

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


class Watch:
    """Learns how long blocks take, and compares with it."""

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self.layout, self.limits, self.durations = layout, limits, Durations(limits)

    def note(self, task: Task) -> None:
        """Learn from a call that ended well."""
        self.durations.note(*self._size(task), task.elapsed_s)

    def late(self, slots: Sequence[Slot]) -> Iterator[tuple[Slot, Task, float]]:
        """Slots whose call is past its deadline, with the call and the deadline in seconds."""
        for slot in slots:
            task = slot.task
            deadline_s = None if task is None else self._deadline_s(task)
            if task is not None and deadline_s is not None and task.elapsed_s > deadline_s:
                yield slot, task, deadline_s

    def longest_deadline_s(self, slots: Sequence[Slot]) -> float:
        """Of the calls of these slots, as far as they have one."""
        found = [self._deadline_s(slot.task) for slot in slots if slot.task is not None]
        return max((each for each in found if each is not None), default=0.0)

    def _deadline_s(self, task: Task) -> float | None:
        if task.work is not None:
            return self.durations.deadline_s(*self._size(task))
        # A process for which there is no room yet may wait as long as it takes.
        return None if task.kind == "wait" else self.limits.load_s

    def straggler(self, slots: Sequence[Slot], loaded: set[str]) -> Work | None:
        """What one worker takes unusually long with, and one that has `loaded` could run too."""
        for slot in slots:
            task = slot.task
            if task is None or task.work is None or not task.work.missing:
                continue
            after_s = self.durations.straggles_after_s(*self._size(task))
            if task.work.num_runners > 1 or after_s is None or task.elapsed_s <= after_s:
                continue
            masks = self.layout.by_configuration(task.work.index)
            if all(name in loaded for name, mask in masks.items() if mask & task.work.missing):
                return task.work
        return None

    def _size(self, task: Task) -> tuple[Family, int]:
        """Family of a call's block, and rows over all cells that were asked for.

        In leases one configuration says nothing of how long another one takes.
        """
        assert task.work is not None
        index = task.work.index
        name = ""
        if task.work.round:
            masks = self.layout.by_configuration(index).items()
            name = next(name for name, mask in masks if mask & task.mask)
        num_rows = self.layout.num_rows(index) * task.mask.bit_count()
        return (*self.layout.family(index), name), num_rows
