"""Where the commands print."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 100


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE)
