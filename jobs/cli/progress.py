"""Progress for people: bars on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from cluster.telemetry.progress import Progress

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Shows `Progress` on a console; a context manager, so that bars never outlive the run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Bars | None = None
        self.task: TaskID | None = None
        self.last_line = monotonic()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def stage(self, text: str) -> None:
        """Say what begins now."""
        self.__exit__(None, None, None)
        # Not wrapped: on a terminal its own width does that, and in a log a line stays a line.
        self.console.print(Text(f"· {text}", style="dim"), soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        if self.console.is_terminal:
            self._bar(progress)
        elif monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = monotonic()
            share = f"{progress.cells_done}/{progress.cells_total} cells"
            self.console.print(f"{share}, {describe(progress)}", highlight=False, soft_wrap=True)

    def _bar(self, progress: Progress) -> None:
        if self.bars is None:
            self.bars = Bars(
                TextColumn("  cells"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=True,
            )
            self.bars.start()
            self.task = self.bars.add_task("cells", detail="")
        assert self.task is not None
        self.bars.update(
            self.task,
            total=progress.cells_total,
            completed=progress.cells_done,
            detail=describe(progress),
        )


def describe(progress: Progress) -> str:
    """Rows, speed, time to go, and what went wrong, in one line."""
    parts = [f"{progress.rows} rows", f"{progress.tokens_per_s:.0f} tokens/s"]
    if progress.eta_s is not None:
        parts.append(f"{progress.eta_s:.0f} s to go")
    if progress.errors:
        parts.append(f"{progress.errors} error rows")
    if progress.retries:
        parts.append(f"{progress.retries} retries")
    if progress.quarantined:
        parts.append(f"{progress.quarantined} blocks set aside")
    return ", ".join(parts)
