"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from optim.errors import InputError


def require_new(out_dir: Path) -> None:
    """InputError where a folder cannot be put in place in one step, or holds something."""
    if out_dir.is_symlink() or out_dir.is_mount():
        raise InputError(
            "is a link or a mount point, which cannot be put in place in one step",
            source=out_dir,
            field="--out",
            mend="Give a new folder inside it",
        )
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(
            "is there already, and not empty",
            source=out_dir,
            field="--out",
            mend="Choose another folder, or remove this one",
        )


@contextmanager
def beside(out_dir: Path) -> Iterator[Path]:
    """A folder next to the wanted one, which is removed whatever happens."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", source=out_dir, field="--out",
            mend="Choose a place that you may write to",
        ) from error  # fmt: skip
    try:
        yield made
    except InterruptedError:  # An OSError by descent; of whoever wants the work to end.
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be written: {error}", source=out_dir, field="--out",
            mend="See that there is room, or choose another place",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(made, ignore_errors=True)


def publish(folder: Path, out_dir: Path) -> None:
    """Put a finished folder in the wanted place."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the workers' user may be another one
    if out_dir.exists():
        out_dir.rmdir()
    os.replace(folder, out_dir)
