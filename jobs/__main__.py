"""`optrial …`, or `python -m jobs …`: what people submit and read.

Exit codes: 0 done; 1 done in part (blocks set aside, faults found, too many error rows); 2 bad
input, with one clear error; 3 another driver is running the trial (`--join` runs along with it);
130 interrupted, and resumable.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cluster.ray_session import left_at_once_when_terminated
from cluster.storage.driver_lock import LockedError
from cluster.telemetry.redaction import strike_out_credentials
from jobs.cli.cluster import register as register_submission
from jobs.cli.list_options import ListApp
from jobs.cli.options import AcceptCodeChange, Join, NewRun, console
from jobs.cli.run import register
from jobs.cli.storage import register as register_storage
from jobs.cli.watch import watch
from optim.errors import InputError

app = ListApp(
    name="optrial",
    help="Controlled trials of LLM inference optimisations, as a batch job on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Directory = Annotated[str, typer.Argument(help="The output of a trial: a folder or URL.")]
Claims = Annotated[
    str | None,
    typer.Option(help="Check the claims in a YAML file, or `authors`: those of the methods."),
]
Gate = Annotated[bool, typer.Option(help="Exit with 1 where a claim is refuted.")]
prepare_app = ListApp(help="Make the artifact that an optimisation needs.", no_args_is_help=True)
app.add_typer(prepare_app, name="prepare")
register(app)
app.command()(watch)
register_submission(app)
register_storage(app)


@app.command()
def evaluate(
    spec: Annotated[Path, typer.Argument(help="The trial's spec, a YAML file.")],
    output: Annotated[
        str | None, typer.Option(help="Where results go, instead of the spec's `output`.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster (else RAY_ADDRESS, else Ray is started here)."),
    ] = None,
    max_row_errors: Annotated[
        str | None,
        typer.Option(
            help="Exit with 1 where more rows of the trial have an error: a number, or a share "
            "(0.05, 5%) of each configuration's; else the spec's `max_row_errors`."
        ),
    ] = None,
    claims: Claims = None,
    gate: Gate = True,
    new_run: NewRun = False,
    accept_code_change: AcceptCodeChange = False,
    join: Join = False,
) -> None:
    """Run a trial, what is missing of it or what is new in its spec, and print its report."""
    from jobs.cli.run import require_free_output

    if not (join or new_run):
        require_free_output(spec, output)
    from jobs.analysis.claims import read_claims
    from jobs.cli.progress import ProgressDisplay
    from jobs.queries.row_faults import Allowed, too_many_errors
    from jobs.report.render.terminal import print_report
    from jobs.report.report_data import report_data
    from jobs.spec.trial_spec import read_spec, spec_scores
    from jobs.trial.evaluate import evaluate as run

    out = console()
    asked = read_spec(spec)
    promised = None
    if claims is not None:
        promised = read_claims(claims, spec_scores(asked))
    allowed = Allowed.of(max_row_errors, asked.max_row_errors)
    try:
        with ProgressDisplay(out) as display:
            results, outcome = run(
                spec,
                output=output,
                address=address,
                join=join,
                new_run=new_run,
                accept_code_change=accept_code_change,
                on_stage=display.stage,
                on_progress=display.progress,
            )
    except KeyboardInterrupt:
        out.print("\nInterrupted. What is committed is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    if outcome.cells_done and not outcome.rows:
        out.print(f"Nothing to do: all {outcome.cells_total} cells are committed.")
    data = report_data(results, promised)
    print_report(data, out)
    if outcome.memory_text is not None:
        out.print(Text(outcome.memory_text, style="yellow"), soft_wrap=True)
    for reason in outcome.quarantined:
        out.print(f"[red]set aside[/red] {reason}", highlight=False)
    too_many = too_many_errors(results, allowed)
    if too_many is not None:
        out.print(Text(too_many, style="red"))
    if too_many is not None or not outcome.is_complete:
        raise typer.Exit(1)
    _close_with_claims(data, gate=gate)


@app.command()
def report(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="The same numbers as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one page that works offline, instead of printing.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown, instead of printing.")
    ] = None,
    claims: Claims = None,
    gate: Gate = True,
) -> None:
    """Print what a trial found: verdicts, differences, and each configuration's figures."""
    from cluster.results.results import Results
    from jobs.analysis.claims import read_claims
    from jobs.analysis.tables import update_tables
    from jobs.report.render.report_file import require_place
    from jobs.report.render.terminal import print_report
    from jobs.report.report_data import report_data
    from jobs.spec.score_names import plan_scores

    for file in filter(None, (html, markdown)):
        require_place(file)
    results = Results(directory)
    promised = None if claims is None else read_claims(claims, plan_scores(results.plan()))
    data = report_data(results, promised)
    if (problem := update_tables(results, data)) is not None:
        Console(stderr=True, soft_wrap=True).print(problem, style="yellow", markup=False)
    if html is not None:
        from jobs.report.render.html import write_page

        write_page(results, html, data)
    if markdown is not None:
        from jobs.report.render.markdown import write_markdown

        write_markdown(data, markdown)
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    elif html is None and markdown is None:
        print_report(data, console())
    _close_with_claims(data, gate=gate, quiet=as_json)


def _close_with_claims(data: dict[str, Any], *, gate: bool, quiet: bool = False) -> None:
    """Print the claims' answers; exit code 1 where one is refuted, for a gate in CI."""
    from jobs.report.render.terminal_tables import any_refuted, print_claims

    if "claims" not in data:
        return
    if not quiet:
        print_claims(data["claims"], console())
    if gate and any_refuted(data["claims"]):
        raise typer.Exit(1)


@app.command()
def score(
    directory: Directory,
    scorer: Annotated[list[str] | None, typer.Option(help="A scorer, or several.")] = None,
) -> None:
    """Score the outputs again, when read: exact, contains, numeric, a function of yours."""
    from cluster.results.results import Results
    from jobs.scoring.scores import score_table

    console().print(score_table(Results(directory), scorer))


@app.command()
def query(
    directory: Directory,
    sql: Annotated[str, typer.Argument(help="SQL over generations, cells, prompts, likelihoods.")],
    output_format: Annotated[str, typer.Option("--format", help="table, csv or jsonl.")] = "table",
) -> None:
    """Ask the results in SQL (DuckDB, read-only)."""
    from cluster.results.results import Results
    from jobs.queries.sql import print_sql

    results = Results(directory)
    results.manifest()
    print_sql(results, sql, output_format, console())


@app.command()
def schema() -> None:
    """Print the spec's JSON schema, so that an editor completes it."""
    from jobs.spec.trial_spec import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def main() -> None:
    """The console script."""
    try:
        _add_preparations()
        with left_at_once_when_terminated():
            app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/bold red] {_plain(error)}")
        sys.exit(2)
    except LockedError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/bold red] {_plain(error)}")
        sys.exit(3)


def _add_preparations() -> None:
    """A command for each optimisation that needs an artifact, where one is asked for."""
    if sys.argv[1:2] != ["prepare"]:
        return  # they import torch, which takes its time
    from jobs.cli.prepare import command
    from optim.registry import preparations

    for name, kind in preparations().items():
        prepare_app.command(name)(command(name, kind))


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(strike_out_credentials(str(error)))


if __name__ == "__main__":
    main()
