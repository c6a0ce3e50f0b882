"""The command `settle`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from jobs.console import console
from jobs.run_options import AcceptCodeChange
from jobs.wording import plural

if TYPE_CHECKING:
    from jobs.addition import Addition


def settle(
    directory: Annotated[str, typer.Argument(help="The output of a trial: a folder or URL.")],
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Budget: completions, over all configurations.")
    ] = None,
    max_device_minutes: Annotated[
        float | None, typer.Option(min=0, help="Budget: engine time, at what one took so far.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be added.")] = False,
    accept_code_change: AcceptCodeChange = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (else RAY_ADDRESS).")
    ] = None,
) -> None:
    """Run the prompts or seeds that the open primary verdicts need, within a budget."""
    from cluster.results import Results
    from jobs.progress_display import ProgressDisplay
    from jobs.report import report
    from jobs.settle import Budget, settle

    out = console()
    results = Results(directory)
    budget = Budget(max_rows, None if max_device_minutes is None else 60 * max_device_minutes)
    try:
        with ProgressDisplay(out) as display:
            done = settle(
                results,
                budget,
                is_rehearsal=dry_run,
                accept_code_change=accept_code_change,
                address=address,
                on_stage=display.stage,
                on_progress=display.progress,
            )
    except KeyboardInterrupt:
        out.print("\nInterrupted. What is committed is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    if done.added is not None:
        for line in added_lines(done.added):
            out.print(Text(line))
    elif done.outcome is None:
        out.print("Nothing to settle: no primary verdict is open.")
    if done.outcome is not None:
        report(results, out)
        if not done.outcome.is_complete:
            raise typer.Exit(1)


def added_lines(added: Addition) -> list[str]:
    """What is added, for which verdicts, and what that cannot do."""
    more = [plural(len(added.seeds), "more seed")] if added.seeds else []
    more += [f"{plural(count, 'more prompt')} of {name}" for name, count in added.prompts.items()]
    lines = [
        f"Adds {', '.join(more)} for {', '.join(added.configurations)}: "
        f"{plural(added.num_rows, 'completion')}.",
        f"For {plural(len(added.settles), 'open verdict')}: "
        + "; ".join(f"{metric} of {name}" for name, metric in added.settles)
        + ".",
    ]
    if added.is_cut:
        lines.append(
            f"That is less than the {added.wanted_rows:,} completions that they need to be settled "
            "with the power asked for."
        )
    if added.left_open:
        left = "; ".join(f"{metric} of {name}" for name, metric in added.left_open)
        lines.append(f"It does nothing for {left}.")
    return lines
