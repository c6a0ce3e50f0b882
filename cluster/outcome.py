"""`Outcome`: what a run came to."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """Failed calls of workers, by kind (`cluster.failures.FailureKind`)."""
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
