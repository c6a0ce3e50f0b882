"""Files that people name: written whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from optim.errors import InputError


def require_place(target: Path) -> None:
    """InputError where a file cannot be put; to be called before what takes long."""
    if target.is_dir():
        raise InputError("is a folder", source=str(target), mend="Name a file in it")
    if not target.parent.is_dir():
        raise InputError("there is no such folder", source=str(target.parent), mend="Make it first")


def write_whole(text: str, target: Path) -> None:
    """Replace a file by another with the usual permissions; never seen half-written."""
    require_place(target)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".optrial-") as folder:
            temporary = Path(folder, "report")
            temporary.write_text(text, encoding="utf-8", errors="replace")
            os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", source=str(target)) from error
