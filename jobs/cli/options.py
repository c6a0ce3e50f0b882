"""Options that the commands which run a trial share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

WIDE = 100


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


NewRun = Annotated[
    bool,
    typer.Option(
        "--new-run", help="Where the output holds another trial, write to OUTPUT-2, -3, …"
    ),
]
AcceptCodeChange = Annotated[
    bool,
    typer.Option(
        "--accept-code-change", help="Go on with a trial of other code; its report says so."
    ),
]
Join = Annotated[
    bool, typer.Option("--join", help="Run along with another driver of the same trial.")
]
