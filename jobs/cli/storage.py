"""The commands about files: verify, compact, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from optim.errors import InputError

if TYPE_CHECKING:
    from cluster.results.results import Results

Directory = Annotated[str, typer.Argument(help="The output of a trial: a folder or URL.")]
_LINE_EVERY_S = 10.0


def verify(
    directory: Directory,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Move damaged and foreign parts to _quarantine/; evaluate runs their cells again.",
        ),
    ] = False,
) -> None:
    """Check every part against its receipt, its cell and its prompts, and all cells against the
    plan."""
    from cluster.results.results import Results
    from cluster.results.verification import Verification
    from cluster.storage.driver_lock import driving
    from jobs.provenance.history import code_note

    results = Results(directory)
    results.manifest()
    kinds: dict[str, int] = {}
    num_mended = 0
    # A driver counts the parts that it found when it began: none may go while it runs, and none
    # may begin meanwhile.
    alone = driving(results.store, results.output) if repair else nullcontext()
    with alone, _counted("parts") as on_progress:
        verification = Verification(results, on_progress)
        for fault in verification.faults():
            kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
            typer.echo(f"{fault.name}: {fault.problem}")
            if repair and (done := verification.repair(fault)) is not None:
                num_mended += 1
                typer.echo(f"  {done}")
    for name in verification.rebuilt:
        typer.echo(f"{name}: its receipt was missing and is there again (page checksums are right)")
    num_faults = sum(kinds.values())
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    typer.echo(f"{verification.num_parts} parts, {num_faults} faults{f' ({told})' if told else ''}")
    typer.echo(f"commits: {_commit_protocol(results)}")
    if (note := code_note(results)) is not None:
        typer.echo(note)
    if repair and num_faults:
        typer.echo(
            f"{num_mended} mended. Run `optrial evaluate` with the same spec again: it runs the "
            "cells that are missing now"
        )
    elif kinds.get("damaged") or kinds.get("foreign"):
        typer.echo(f"`optrial verify {directory} --repair` sets these parts aside")
    if num_faults:
        raise typer.Exit(1)


def compact(
    directory: Directory,
    full: Annotated[
        bool, typer.Option("--full", help="Make all files anew, not only what is new.")
    ] = False,
) -> None:
    """Copy many small parts into few large files, which reports and queries read faster."""
    from cluster.compaction.compaction import compact as run
    from cluster.results.results import Results
    from jobs.queries.cells import CELLS

    results = Results(directory)
    with _counted("parts") as on_progress:
        made = run(results, CELLS, full=full, on_progress=on_progress)
    typer.echo(
        f"{made.num_parts} parts in {made.num_files} files, {made.num_bytes / 1e6:.1f} MB; "
        f"{made.num_new} parts were read for it"
    )
    if made.num_skipped:
        typer.echo(f"{made.num_skipped} parts are no cell of this trial, and stay as they are")


def export(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="A new file, or for delta a new folder.")],
    export_format: Annotated[str, typer.Option("--format", help="delta, csv or jsonl.")] = "csv",
    table: Annotated[
        str, typer.Option(help="generations, likelihoods, cells or prompts.")
    ] = "generations",
) -> None:
    """Write one table for other programs: a Delta table, CSV or JSON lines."""
    from cluster.results.results import Results
    from jobs.queries.export import export_table

    results = Results(directory)
    results.manifest()
    num_rows = export_table(results, table, export_format, out)
    typer.echo(f"{num_rows} rows of {table} in {out}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(verify)
    app.command()(compact)
    app.command()(export)


def _commit_protocol(results: Results) -> str:
    try:
        return results.store.commit_protocol
    except InputError as error:
        return f"not known, as nothing can be written here to find out ({error.problem})"


@contextmanager
def _counted(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere; on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn(f"  {unit}"), BarColumn(bar_width=32), MofNCompleteColumn()
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(unit, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    last = monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last >= _LINE_EVERY_S:
            last = monotonic()
            console.print(f"{done}/{total} {unit}", highlight=False)

    yield line
