"""The commands that answer: explain, compare, plan, settle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jobs.console import console
from jobs.explanation import Paragraph
from jobs.replay_command import register as register_replay
from jobs.run_options import AcceptCodeChange, Join, NewRun
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


def print_paragraphs(paragraphs: list[Paragraph], out: Console) -> None:
    """Headings, and their lines as a list."""
    for paragraph in paragraphs:
        out.print()
        out.print(Text(paragraph.heading, style="bold"))
        for line in paragraph.lines:
            # Indented as a whole, so that what wraps stands below its line.
            out.print(Padding(Text(line), (0, 0, 0, 2)))


def compare(
    model: Annotated[str, typer.Option(help="A folder with safetensors, a hub id, or demo.")],
    patch_tokenizer: Annotated[
        str | None,
        typer.Option(help="AdaptiVocab: a prepared folder, or the authors' patch_tokenizer.pkl."),
    ] = None,
    larosa_sparsity: Annotated[
        float | None, typer.Option(help="LaRoSA: share of activations that are dropped.")
    ] = None,
    larosa: Annotated[
        str | None, typer.Option(help="A prepared LaRoSA folder; by default one is prepared.")
    ] = None,
    vattention: Annotated[
        bool, typer.Option("--vattention/--no-vattention", help="KV cache committed on demand.")
    ] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A .jsonl, .csv or .parquet file, or a dataset's id; or several."),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text to prepare artifacts from; by default the prompts."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts of each dataset.")] = None,
    seeds: Annotated[int, typer.Option(help="Sampling seeds.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Budget in baseline tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    batch_size: Annotated[int, typer.Option(help="Sequences at once.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Annotated[int, typer.Option(help="Workers at once.")] = 1,
    cpus: Annotated[int, typer.Option(help="CPUs of a worker.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of a worker.")] = 0,
    output: Annotated[str, typer.Option(help="Folder of the results.")] = "runs/compare",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (else RAY_ADDRESS).")
    ] = None,
    new_run: NewRun = False,
    accept_code_change: AcceptCodeChange = False,
    join: Join = False,
) -> None:
    """Compare a model as it is with one optimised configuration, without writing a spec."""
    from jobs.compare import Choice, run
    from jobs.compared import print_comparison
    from jobs.progress_display import ProgressDisplay
    from jobs.row_faults import Allowed, too_many_errors

    choice = Choice(
        model=model,
        patch_tokenizer=patch_tokenizer,
        larosa_sparsity=larosa_sparsity,
        larosa=larosa,
        vattention=vattention,
        prompts=tuple(prompts or ()),
        corpus=tuple(corpus or ()),
        limit=limit,
        seeds=seeds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        workers=workers,
        cpus=cpus,
        gpus=gpus,
        output=output,
    )
    out = console()
    try:
        with ProgressDisplay(out) as display:
            results, outcome = run(
                choice,
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
    print_comparison(results, out)
    if outcome.memory_text is not None:
        out.print(Text(outcome.memory_text, style="yellow"), soft_wrap=True)
    too_many = too_many_errors(results, Allowed())
    if too_many is not None:
        out.print(Text(too_many, style="red"))
    if too_many is not None or not outcome.is_complete:
        raise typer.Exit(1)


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
