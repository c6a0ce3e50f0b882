"""`optrial compare`: the command line of a comparison without a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from jobs.cli.options import AcceptCodeChange, Join, NewRun, console

if TYPE_CHECKING:
    from jobs.trial.compare import Choice


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
    preparation: Annotated[
        Literal["quick", "full"],
        typer.Option(help="How artifacts are made: for a first look, or as `prepare` makes them."),
    ] = "quick",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (else RAY_ADDRESS).")
    ] = None,
    new_run: NewRun = False,
    accept_code_change: AcceptCodeChange = False,
    join: Join = False,
) -> None:
    """Compare a model as it is with one optimised configuration, without writing a spec."""
    from jobs.cli.progress import ProgressDisplay
    from jobs.queries.row_faults import Allowed, too_many_errors
    from jobs.report.render.terminal_comparison import print_comparison
    from jobs.trial.compare import Choice, run

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
        preparation=preparation,
    )
    out = console()
    if dry_run:
        _print_cost(choice, address, out)
        return
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


def _print_cost(choice: Choice, address: str | None, out: Console) -> None:
    from jobs.cli.forecast_table import print_forecast
    from jobs.forecasting.compare_cost import artifact_text, cost

    err = Console(stderr=True)
    found = cost(
        choice,
        address=address,
        on_stage=lambda text: err.print(Text(f"· {text}", style="dim")),
    )
    for artifact in found.artifacts:
        out.print(Text(artifact_text(artifact, choice.preparation)), soft_wrap=True)
    print_forecast(found.trial, out)
    out.print("Nothing was kept.")
