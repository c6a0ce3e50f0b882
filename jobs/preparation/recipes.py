"""What an artifact was made by: a file beside it, for who makes it only where it is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optim.errors import InputError
from optim.registry import preparations


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
    if not _is_there(out):
        return False
    changed = _changes(out, recipe)
    if not changed:
        return True
    raise InputError(
        f"is there, and was made otherwise: {'; '.join(changed)}",
        source=out,
        field="--reuse",
        mend="Remove the folder to have it made anew, or choose another one",
    )


def is_same(out: str, recipe: Mapping[str, Any]) -> bool:
    """Whether there is an artifact of exactly this recipe; one made otherwise is no error."""
    return _is_there(out) and recipe_file(out).is_file() and not _changes(out, recipe)


def _is_there(out: str) -> bool:
    folder = Path(out).expanduser()
    return folder.is_dir() and any(folder.iterdir())


def _changes(out: str, recipe: Mapping[str, Any]) -> list[str]:
    """What differs from the recipe that is written beside the artifact.

    A setting that the written recipe does not have is newer than it, and was at its default.
    """
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
    known["settings"] = _defaults(recipe["preparation"]) | known.get("settings", {})
    keys = sorted({*known, *wanted})
    return [
        f"{key} {known.get(key)!r} -> {wanted.get(key)!r}"
        for key in keys
        if known.get(key) != wanted.get(key)
    ]


def _defaults(name: str) -> dict[str, Any]:
    kind: Any = preparations()[name]
    try:
        found: dict[str, Any] = kind.model_validate({}).model_dump(mode="json")
    except ValidationError:
        return {}  # It has settings without defaults, and then all of them are in the recipe.
    return found
