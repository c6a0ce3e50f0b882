"""The commands that answer: explain, compare, plan, settle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from jobs.cli.compare import compare
from jobs.cli.options import AcceptCodeChange, console
from jobs.cli.replay import register as register_replay
from jobs.formatting import plural
from jobs.report.render.terminal import print_paragraphs
from jobs.report.sentences import Paragraph
from optim.errors import InputError

if TYPE_CHECKING:
    from jobs.trial.allocation import Addition


from cluster.storage.driver_lock import require_free
from cluster.storage.open_store import open_store
from jobs.spec.secret_check import require_no_secrets
from jobs.spec.trial_spec import read_spec


def require_free_output(spec_path: Path, output: str | None) -> None:
    """LockedError where another driver seems to run the trial; InputError for a spec that is none.

    Loading libraries and models takes many times as long as looking.
    """
    spec = read_spec(spec_path)
    if output is not None:
        spec = spec.model_copy(update={"output": output})
    require_no_secrets(spec, spec_path)
    place = str(Path(spec.output).expanduser()) if "://" not in spec.output else spec.output
    require_free(open_store(place), place)


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
    from cluster.results.results import Results
    from jobs.cli.progress import ProgressDisplay
    from jobs.report.render.terminal import report
    from jobs.trial.settle import Budget, settle

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


def explain(
    directory: Annotated[
        str | None, typer.Argument(help="The output of a trial: a folder or URL.")
    ] = None,
    configuration: Annotated[
        str | None, typer.Argument(help="One configuration; by default all that are compared.")
    ] = None,
    metric: Annotated[str, typer.Option(help="A metric of the report.")] = "completion_tokens",
    tokens: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Instead of a trial: completion tokens of one run, before and after."),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="With --tokens: the prompt's tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say in plain words why tokens (or another metric) differ, and what is chance."""
    from jobs.report.explain import explain_results
    from jobs.report.single_run import single_run_lines

    if (directory is None) == (tokens is None):
        raise InputError(
            "needs one of both", field="DIRECTORY, --tokens", mend="Give a trial, or two counts"
        )
    if tokens is not None:
        _require_positive(prompt_tokens, *tokens)
        lines = tuple(single_run_lines(prompt_tokens, *tokens))
        found = [Paragraph("One run of one prompt", lines)]
    else:
        from cluster.results.results import Results

        found = explain_results(Results(directory or ""), configuration, metric)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=1, ensure_ascii=False))
    else:
        print_paragraphs(found, console())


def _require_positive(prompt_tokens: int | None, *tokens: int) -> None:
    if min(tokens) < 1 or (prompt_tokens is not None and prompt_tokens < 1):
        raise InputError("counts of tokens are 1 or more", field="--tokens, --prompt-tokens")


def plan(
    spec: Annotated[Path, typer.Argument(help="The trial's spec, a YAML file.")],
    pilot_prompts: Annotated[
        int, typer.Option(help="Prompts of each dataset in the pilot; 0 only counts.")
    ] = 8,
    pilot_seeds: Annotated[int, typer.Option(help="Seeds of the pilot.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (else RAY_ADDRESS).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what a trial will cost and what it can see, from a short pilot, before it runs."""
    from jobs.cli.forecast_table import print_forecast
    from jobs.forecasting.forecast import forecast

    err = Console(stderr=True)
    found = forecast(
        spec,
        pilot_prompts=pilot_prompts,
        pilot_seeds=pilot_seeds,
        address=address,
        on_stage=lambda text: err.print(Text(f"· {text}", style="dim")),
    )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        print_forecast(found, console())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(explain)
    app.command()(compare)
    app.command()(plan)
    app.command()(settle)
    register_replay(app)
