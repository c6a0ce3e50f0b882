"""How far a trial is: numbers for a bar, for a line in a log, and for `progress.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from time import monotonic

from cluster.storage.open_store import LocalStore, ObjectStore
from optim.errors import InputError


@dataclass(frozen=True)
class Progress:
    """A moment of a run. Cells that an earlier run committed count as done."""

    cells_total: int
    cells_done: int
    rows: int
    """Rows committed by this run."""
    errors: int
    """Of those, rows with `error` set."""
    completion_tokens: int
    retries: int
    quarantined: int
    elapsed_s: float
    cells_done_before: int = 0
    num_workers: int = 0
    """That are there and have opened the model."""

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at this run's rate; None before the first cell."""
        fresh = self.cells_done - self.cells_done_before
        if fresh <= 0:
            return None
        return self.elapsed_s * (self.cells_total - self.cells_done) / fresh

    @property
    def tokens_per_s(self) -> float:
        return self.completion_tokens / self.elapsed_s if self.elapsed_s else 0.0


class ProgressFile:
    """`progress.json`, replaced atomically, at most once in `every_s` seconds.

    It is a convenience: where it cannot be written, the run goes on, and `problem` says why.
    """

    def __init__(self, store: LocalStore | ObjectStore, every_s: float = 2.0) -> None:
        self.store, self.every_s = store, every_s
        self.written = -every_s
        self.problem: str | None = None

    def __call__(self, progress: Progress, *, now: bool = False) -> None:
        if not now and monotonic() - self.written < self.every_s:
            return
        self.written = monotonic()
        facts = asdict(progress) | {
            "eta_s": progress.eta_s,
            "tokens_per_s": progress.tokens_per_s,
        }
        try:
            self.store.replace("progress.json", json.dumps(facts, indent=1).encode())
            self.problem = None
        except (OSError, InputError) as error:
            self.problem = str(error)
