"""The command `watch`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from jobs.cli.options import console


def watch(
    directory: Annotated[str, typer.Argument(help="The output of a trial: a folder or URL.")],
) -> None:
    """Show how far a trial is that runs elsewhere, until it ends; one line where nobody watches."""
    from cluster.results.results import Results
    from jobs.cli.progress import ProgressDisplay, describe
    from jobs.cli.trial_progress import look
    from jobs.cli.trial_progress import watch as looks

    out = console()
    results = Results(directory)
    seen = look(results)
    if out.is_terminal and not seen.is_over:
        try:
            with ProgressDisplay(out) as display:
                display.stage(seen.state)
                for seen in looks(results):
                    if seen.progress is not None:
                        display.progress(seen.progress)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if seen.progress is None:
        line = f"nothing has run yet, {seen.state}"
    else:
        progress = seen.progress
        share = f"{progress.cells_done}/{progress.cells_total} cells"
        line = f"{share}, {describe(progress)}; {seen.state}"
    out.print(Text(line), soft_wrap=True)
