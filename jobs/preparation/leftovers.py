"""What an unfinished preparation left beside its folder: said, never removed unasked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.formatting import bytes_text


@dataclass(frozen=True)
class Leftover:
    """A hidden folder beside the wanted one."""

    path: Path
    num_bytes: int
    is_resumable: bool
    """Whether the same command goes on from it."""


def leftovers(out: str) -> list[Leftover]:
    """Of earlier preparations of this folder, on this machine; also what one that runs now has.

    `.NAME.tuning` holds checkpoints, other `.NAME.*` what a killed process had begun to write.
    """
    folder = Path(out).expanduser().absolute()
    found = []
    for path in sorted(folder.parent.glob(f".{_escaped(folder.name)}.*")):
        if path.is_dir() and not path.is_symlink():
            is_resumable = path.name == f".{folder.name}.tuning"
            found.append(Leftover(path, _size(path), is_resumable))
    return found


def leftover_text(left: Leftover) -> str:
    """What it is, how large, and what can be done with it."""
    size = bytes_text(left.num_bytes)
    if left.is_resumable:
        return f"{left.path} ({size}) is kept: the same command goes on from it, or remove it."
    return (
        f"{left.path} ({size}) is of a preparation that was killed, unless one is running: "
        "remove it."
    )


def _escaped(name: str) -> str:
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except OSError:  # It was removed meanwhile.
            continue
    return total
