"""`Ledger`: which cells are done, what failed, and what is set aside."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.block_index import Layout, cells_in
from cluster.plan import Cell
from cluster.results.results import Results, part_name
from cluster.scheduling.failures import Failure
from cluster.scheduling.limits import Limits
from cluster.scheduling.work_queue import Work
from cluster.telemetry.progress import Progress


@dataclass
class Outcome:
    """Counts of one run. Cells that were committed before it count as done."""

    cells_total: int
    cells_done: int
    rows: int = 0
    """Committed by this run's workers, as far as they could say so."""
    errors: int = 0
    completion_tokens: int = 0
    retries: int = 0
    """Executions of blocks again, after a failure."""
    executions: int = 0
    """Calls of workers to run cells; with no failure, as many as there were blocks."""
    loads: int = 0
    """Workers that were started."""
    duplicates: int = 0
    """Cells that were run although another worker's commit was first."""
    speculations: int = 0
    """Executions of what another worker was slow with."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed calls of workers, by kind (`cluster.scheduling.failures.FailureKind`)."""
    quarantined: list[str] = field(default_factory=list)
    """What was set aside, with the last reason: cells, or all of a configuration."""

    @property
    def memory_text(self) -> str | None:
        """In a sentence, what came of workers that ran out of memory; None where none did."""
        count = self.failures.get("out_of_memory", 0)
        if not count:
            return None
        times = "once" if count == 1 else f"{count} times"
        went_on = "the run went on, and all of it is done"
        if not self.is_complete:
            went_on = f"the run went on without what is set aside ({self.cells_done} of "
            went_on += f"{self.cells_total} cells are done)"
        return f"Workers ran out of memory {times}: {went_on}. The log has all that was said of it."

    @property
    def is_complete(self) -> bool:
        return self.cells_done == self.cells_total


log = logging.getLogger("optrial.scheduler")

QUARANTINE = "_quarantine/cells"


class Ledger:
    """Keeps the outcome of a run. A cell is done when its part is there, whoever made it."""

    def __init__(self, layout: Layout, results: Results, limits: Limits, outcome: Outcome) -> None:
        self.layout, self.results, self.limits = layout, results, limits
        self.outcome = outcome
        self.failed_configurations: dict[str, str] = {}
        """With the reason: nothing of them is run any more."""
        self._successes: Counter[str] = Counter()
        self._set_aside: Counter[str] = Counter()

    def forget_earlier(self) -> None:
        """What an earlier run set aside is tried again, so its records go."""
        for name in self.results.store.list(QUARANTINE):
            self.results.store.delete(name)

    def count(self, work: Work, receipts: Sequence[Mapping[str, Any]]) -> None:
        """Take a worker's receipts for a work's cells."""
        cells = self.layout.block(work.index).cells
        places = {cell.key: i for i, cell in enumerate(cells)}
        for receipt in receipts:
            place = places[receipt["key"]]
            name = cells[place].configuration
            self._successes[name] += 1
            if receipt["is_duplicate"]:
                self.outcome.duplicates += 1
                log.info("duplicate", extra=_about(cells[place]))
            else:
                self.outcome.rows += receipt["rows"]
                self.outcome.errors += receipt["num_errors"]
                self.outcome.completion_tokens += receipt["completion_tokens"]
            self._done(work, 1 << place)

    def recheck(self, work: Work) -> None:
        """Look which of a work's cells are committed: after an unknown outcome, or by others."""
        if not work.missing:
            return
        cells = self.layout.block(work.index).cells
        for place in cells_in(work.missing):
            if self.results.store.exists(part_name(cells[place])):
                self._successes[cells[place].configuration] += 1
                self._done(work, 1 << place)

    def _done(self, work: Work, mask: int) -> None:
        self.outcome.cells_done += (work.missing & mask).bit_count()
        work.missing &= ~mask

    def note(self, failure: Failure) -> None:
        known = self.outcome.failures
        known[failure.kind] = known.get(failure.kind, 0) + 1

    def charge(self, work: Work, failure: Failure) -> list[Work]:
        """After a failed execution: the works that are to be run again.

        What is left of a block is run one configuration at a time then, so that one that fails
        takes no other with it.
        """
        self.recheck(work)
        if not work.missing:
            return []
        work.failures += failure.is_charged
        again = []
        for name, mask in self.layout.by_configuration(work.index).items():
            rest = work.missing & mask
            if not rest or name in self.failed_configurations:
                continue
            if failure.is_charged and work.failures >= self.limits.max_attempts:
                self._set_cells_aside(work.index, rest, name, failure)
            else:
                again.append(Work(work.index, rest, work.failures, round=work.round))
        work.missing = 0
        if not failure.is_charged and again:
            # Nothing speaks against its configurations: they stay together.
            work.missing = sum(each.missing for each in again)
            again = [work]
        self.outcome.retries += len(again)
        return again

    def _set_cells_aside(self, index: int, mask: int, name: str, failure: Failure) -> None:
        block = self.layout.block(index)
        where = f"{block.dataset} shard {block.shard}"
        seeds = "" if block.seed is None else f" seed {block.seed}"
        self.outcome.quarantined.append(f"{name}: {block.kind} of {where}{seeds}: {failure.reason}")
        keys = [block.cells[place].key for place in cells_in(mask)]
        self._write(f"block-{index}-{name}", {"block": index, "keys": keys}, name, failure)
        self._set_aside[name] += 1
        log.error("cells set aside", extra={"block": index, "configuration": name,
                                            "reason": failure.reason})  # fmt: skip
        if self._set_aside[name] >= self.limits.max_attempts and not self._has_success(name):
            self.fail_configuration(name, failure)

    def _has_success(self, name: str) -> bool:
        if self._successes[name]:
            return True
        folders = (f"{kind}/configuration=c-{name}" for kind in ("generations", "likelihoods"))
        return any(self.results.store.list(folder) for folder in folders)

    def fail_configuration(self, name: str, failure: Failure) -> None:
        """Give a whole configuration up: it cannot be loaded, or has never run anything."""
        if name in self.failed_configurations:
            return
        self.failed_configurations[name] = failure.reason
        self.outcome.quarantined.append(f"all of {name}: {failure.reason}")
        log.error("configuration set aside", extra={"configuration": name,
                                                    "reason": failure.reason})  # fmt: skip

    def progress(self, done_before: int, num_workers: int, elapsed_s: float) -> Progress:
        """This moment of the run."""
        outcome = self.outcome
        return Progress(
            cells_total=outcome.cells_total,
            cells_done=outcome.cells_done,
            cells_done_before=done_before,
            rows=outcome.rows,
            errors=outcome.errors,
            completion_tokens=outcome.completion_tokens,
            retries=outcome.retries,
            quarantined=len(outcome.quarantined),
            num_workers=num_workers,
            elapsed_s=elapsed_s,
        )

    def write_failed_configurations(self) -> None:
        """Their records; apart, because a configuration can fail before the output is a trial's."""
        for name, reason in self.failed_configurations.items():
            self._write(f"configuration-{name}", {}, name, Failure("error", reason))

    def _write(self, record: str, facts: dict[str, Any], name: str, failure: Failure) -> None:
        text = json.dumps(
            {**facts, "configuration": name, "kind": failure.kind, "reason": failure.reason}
        )
        self.results.store.replace(f"{QUARANTINE}/{record}.json", text.encode())


def _about(cell: Cell) -> dict[str, Any]:
    return {
        "cell": cell.key,
        "configuration": cell.configuration,
        "dataset": cell.dataset,
        "shard": cell.shard,
        "seed": cell.seed,
    }
