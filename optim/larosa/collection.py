"""A folder of artifacts: one for each model that a trial makes, found by what it was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from optim.errors import InputError
from optim.larosa.artifact import FIELD, MANIFEST, read_manifest


def members(folder: Path) -> list[Path]:
    """The artifacts in a folder, by name; the folder itself where it is one, or is nothing."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) or [folder]


def content(folder: Path) -> str:
    """What names an artifact, or all those in a folder; InputError where there is none."""
    found = [read_manifest(path)[1] for path in members(folder)]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()


def made_from(folder: Path, identity: str) -> Path:
    """The artifact in a folder that was made from a model.

    A folder that is an artifact itself is given as it is. InputError where there is no such one.
    """
    found = members(folder)
    if len(found) == 1:
        return found[0]
    inputs = {path: read_manifest(path)[0].input for path in found}
    for path, made_of in inputs.items():
        if made_of == identity:
            return path
    listed = ", ".join(f"{path.name} from {made_of[:12]}…" for path, made_of in inputs.items())
    raise InputError(
        f"none of its artifacts was made from this model, {identity[:12]}… ({listed})",
        source=folder,
        field=FIELD,
        mend=f"Add one: optrial prepare larosa --model MODEL --data DATA --out {folder}/NAME",
    )
