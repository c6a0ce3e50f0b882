"""The commands that answer: explain, compare, plan, settle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from jobs.compare_command import compare
from jobs.console import console
from jobs.explanation import Paragraph
from jobs.replay_command import register as register_replay
from jobs.report import print_paragraphs
from jobs.settle_command import settle
from optim.errors import InputError


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
    from jobs.explain import explain_results
    from jobs.single_run import single_run_lines

    if (directory is None) == (tokens is None):
        raise InputError(
            "needs one of both", field="DIRECTORY, --tokens", mend="Give a trial, or two counts"
        )
    if tokens is not None:
        _require_positive(prompt_tokens, *tokens)
        lines = tuple(single_run_lines(prompt_tokens, *tokens))
        found = [Paragraph("One run of one prompt", lines)]
    else:
        from cluster.results import Results

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
    from jobs.forecast import forecast
    from jobs.forecast_display import print_forecast

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
