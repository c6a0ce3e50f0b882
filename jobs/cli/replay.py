"""`optrial replay`: one row made again, and whether it equals what is stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from jobs.cli.options import console
from optim.errors import InputError

if TYPE_CHECKING:
    from jobs.trial.replay import Difference, Replay

_SHOWN = 60
"""Characters of a long text around the place where two begin to differ."""


def replay(
    directory: Annotated[str, typer.Argument(help="The output of a trial: a folder or URL.")],
    configuration: Annotated[str, typer.Argument(help="The row's configuration.")],
    dataset: Annotated[str, typer.Argument(help="Its dataset.")],
    prompt_id: Annotated[str, typer.Argument(help="Its `prompt_id`.")],
    seed: Annotated[
        int | None, typer.Argument(help="Its seed; by default the only one.", min=0)
    ] = None,
    likelihoods: Annotated[
        bool, typer.Option("--likelihoods", help="Score its target and choices again instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Make one row again and compare it with what is stored; 1 where it differs."""
    from cluster.results.results import Results
    from jobs.trial.replay import Row
    from jobs.trial.replay import replay as run

    results = Results(directory)
    if likelihoods and seed is not None:
        raise InputError("likelihoods have no seed", field="SEED", mend="Leave one of both out")
    if not likelihoods and seed is None:
        plan = results.plan()
        generates = {each.name: each.generates for each in plan.datasets}
        if generates.get(dataset, True):
            if len(plan.seeds) > 1:
                shown = ", ".join(map(str, plan.seeds[:10]))
                raise InputError("the trial has several seeds", field="SEED",
                                 mend=f"Give one of {shown}, or --likelihoods")  # fmt: skip
            seed = plan.seeds[0]
    found = run(results, Row(configuration, dataset, prompt_id, seed))
    if as_json:
        typer.echo(json.dumps(_data(found), indent=1, ensure_ascii=False, default=str))
    else:
        _print(found, console())
    if not found.is_equal:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to a program."""
    app.command()(replay)


def _data(found: Replay) -> dict[str, Any]:
    return {
        "equal": found.is_equal,
        "differences": [each._asdict() for each in found.differences],
        "circumstances": [each._asdict() for each in found.circumstances],
        "stored": found.stored,
        "made": found.made,
    }


def _print(found: Replay, out: Console) -> None:
    # As Text, so that brackets in completions are not read as markup.
    for row in found.made:
        out.print(Text(_shown_row(row)))
    if found.is_equal:
        out.print(Text("Equal to what is stored: text, tokens and all else that is deterministic."
                       if found.row.seed is not None else "Equal to what is stored."))  # fmt: skip
    else:
        out.print(Text("It differs from what is stored:"))
        for each in found.differences:
            out.print(Text(f"  {_shown(each)}"))
    if found.circumstances:
        lead = "though not all is as it was" if found.is_equal else "what is not as it was"
        out.print(Text(f"{lead[0].upper()}{lead[1:]}:"))
        for each in found.circumstances:
            out.print(Text(f"  {each.what}: {each.stored} -> {each.now}"))
    elif not found.is_equal:
        out.print(Text("Machine, versions, code and model are those that are recorded."))


def _shown_row(row: dict[str, Any]) -> str:
    if row.get("error"):
        return f"error: {row['error']}"
    if "candidate" in row:
        return f"candidate {row['candidate']}: {row['nats']:.6f} nats, {row['num_tokens']} tokens"
    return (
        f"{row['completion_text']}\n"
        f"[{row['completion_tokens']} tokens, finished by {row['finish_reason']}]"
    )


def _shown(each: Difference) -> str:
    if not (isinstance(each.stored, str) and isinstance(each.now, str)):
        return f"{each.what}: {each.stored} -> {each.now}"
    place = next(
        (i for i, (a, b) in enumerate(zip(each.stored, each.now, strict=False)) if a != b),
        min(len(each.stored), len(each.now)),
    )
    old, new = (text[max(0, place - 10) : place + _SHOWN] for text in (each.stored, each.now))
    return f"{each.what}: from character {place} on: …{old!r} -> …{new!r}"
