"""What an artifact was made by: a file beside it, for who makes it only where it is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim.errors import InputError


def recipe_file(out: str) -> Path:
    """Beside an artifact's folder, not in it: what lies in the folder is what was made."""
    folder = Path(out).expanduser().absolute()
    return folder.with_name(f"{folder.name}.recipe.json")


def write_recipe(out: str, recipe: Mapping[str, Any]) -> None:
    """Write down what an artifact was made by."""
    text = json.dumps(recipe, indent=1, sort_keys=True, ensure_ascii=False)
    recipe_file(out).write_text(text + "\n", encoding="utf-8")


def is_made(out: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the artifact of a recipe is there already.

    Raises InputError where there is one that was made otherwise, or it is not known how.
    """
    folder = Path(out).expanduser()
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    file = recipe_file(out)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"is there, and {file.name} beside it cannot be read, which says how it was made",
            source=out,
            field="--reuse",
            mend="Remove the folder, or choose another one",
        ) from error
    wanted = json.loads(json.dumps(recipe))
    if known == wanted:
        return True
    changed = sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))
    listed = "; ".join(f"{key} {known.get(key)!r} -> {wanted.get(key)!r}" for key in changed)
    raise InputError(
        f"is there, and was made otherwise: {listed}",
        source=out,
        field="--reuse",
        mend="Remove the folder to have it made anew, or choose another one",
    )
