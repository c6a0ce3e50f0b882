"""Where a trial's results may go: a new place, its own, or one beside another trial's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.results.results import MANIFEST, Results
from cluster.storage.driver_lock import JOINED_FILE, LOCK_FILE
from cluster.storage.open_store import LocalStore
from jobs.trial.plan_diff import Wanted, compare
from optim.errors import InputError

_STARTING = (LOCK_FILE, JOINED_FILE, "_tmp")
"""What a driver that loads its model has left in a place so far."""


def require_place(results: Results) -> None:
    """InputError where the output is something else than a trial's, or cannot be written to."""
    if results.store.exists(MANIFEST):
        return
    if isinstance(results.store, LocalStore):
        _check_folder(results.store.root)
    elif not _is_free(results):
        raise InputError(
            "there are objects below it, and they are not the results of a trial",
            source=results.output,
            field="output",
            mend="Choose an address with nothing below it",
        )


def _check_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or not _is_bare(folder)):
        raise InputError(
            "exists and is not the results of a trial",
            source=str(folder),
            field="output",
            mend="Choose a new or empty folder",
        )
    nearest = _nearest(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot be written: {nearest} does not admit it",
            source=str(folder),
            field="output",
            mend="Choose a folder that you may write to",
        )


def _is_bare(folder: Path) -> bool:
    return all(path.name.startswith(_STARTING) for path in folder.iterdir())


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


@contextmanager
def left_as_found(results: Results) -> Iterator[None]:
    """Remove the empty folders that a run which was refused has made."""
    if not isinstance(results.store, LocalStore):
        yield
        return
    root = results.store.root.absolute()
    kept = _nearest(root)
    try:
        yield
    finally:
        if not results.store.exists(MANIFEST):
            made = [root, *root.parents]
            made = made[: made.index(kept)] if kept in made else []
            for folder in (root / "_tmp", *made):
                try:
                    folder.rmdir()
                except OSError:  # there is something in it, or it is not there
                    continue


def beside(wanted: Wanted, on_stage: Callable[[str], None] = lambda stage: None) -> Wanted:
    """The same where it has room: in its output, or where another trial or less of this one lies
    there, in `<output>-2`, `-3`, …: the first that is free, or that holds this very trial."""
    given, count = wanted.plan.output.rstrip("/"), 1
    while True:
        place = wanted.plan.output if count == 1 else f"{given}-{count}"
        results = Results(place)
        if _is_free(results) or (
            results.store.exists(MANIFEST) and compare(results, wanted.at(place)).is_same
        ):
            if count > 1:
                on_stage(f"{given} holds another trial, and stays as it is: writing to {place}")
            return wanted.at(place)
        count += 1


def _is_free(results: Results) -> bool:
    if isinstance(results.store, LocalStore):
        root = results.store.root
        return not root.exists() or (root.is_dir() and _is_bare(root))
    return not [name for name in results.store.list("") if not name.startswith(_STARTING)]
