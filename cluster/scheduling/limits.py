"""How long and how often things are tried."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cluster.plan import Plan

Family = tuple[str, ...]
"""Blocks that take about the same time per row: kind, dataset, in leases the configuration."""


@dataclass(frozen=True)
class Limits:
    """Of the scheduler. The defaults suit blocks of seconds to hours."""

    max_attempts: int = 3
    """Charged executions of a cell before it is set aside."""
    max_loads: int = 3
    """Failed loads of a configuration before all of it is set aside."""
    max_worker_failures: int = 5
    """Failures in a row, without anything done between, before a worker is given up."""
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    """A worker is replaced at once, then after 1, 2, 4 ... seconds."""
    min_deadline_s: float = 60.0
    deadline_factor: float = 5.0
    """A block may take this many times the 95th percentile of its family."""
    deadline_s: float | None = None
    """Instead of both, where it is known better."""
    straggle_s: float = 30.0
    straggle_factor: float = 2.0
    """A block that takes longer than both is given to an idle worker as well."""
    stall_s: float = 1800.0
    """Nothing committed for so long: the state is written down."""
    give_up_s: float = 7200.0
    """Nothing committed for so long, and for no deadline that is longer: busy workers are
    replaced."""
    load_s: float = 3600.0
    """Most seconds for opening the model, and for loading a configuration, once a worker's process
    is there."""

    @classmethod
    def of(cls, plan: Plan) -> Limits:
        return cls(deadline_s=plan.workers.deadline_s)

    def backoff(self, failures: int) -> float:
        """Seconds before a worker is made again after so many failures in a row."""
        if failures <= 1:
            return 0.0
        return min(self.max_backoff_s, self.backoff_s * 2.0 ** (failures - 2))


class Durations:
    """How long blocks took, by family, and so how long one may take."""

    MIN_NUM = 3
    """Durations that a percentile is taken of, at least."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._per_row_s: dict[Family, deque[float]] = {}

    def note(self, family: Family, num_rows: int, seconds: float) -> None:
        """`num_rows` over all cells that were run."""
        known = self._per_row_s.setdefault(family, deque(maxlen=500))
        known.append(seconds / max(1, num_rows))

    def usual_s(self, family: Family, num_rows: int) -> float | None:
        """The 95th percentile; None before enough is known."""
        known = self._per_row_s.get(family, ())
        if len(known) < self.MIN_NUM:
            return None
        ordered = sorted(known)
        return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] * num_rows

    def deadline_s(self, family: Family, num_rows: int) -> float | None:
        """Most seconds that a block may take; None before that is known."""
        if self.limits.deadline_s is not None:
            return self.limits.deadline_s
        usual = self.usual_s(family, num_rows)
        if usual is None:
            return None
        return max(self.limits.min_deadline_s, self.limits.deadline_factor * usual)

    def straggles_after_s(self, family: Family, num_rows: int) -> float | None:
        usual = self.usual_s(family, num_rows)
        if usual is None:
            return None
        return max(self.limits.straggle_s, self.limits.straggle_factor * usual)
