"""`optrial watch`: how far a trial is that runs elsewhere, from its `progress.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.results.results import MANIFEST, Results
from cluster.storage.driver_lock import read_holder
from cluster.storage.holder import STALE_S, Holder
from cluster.telemetry.progress import Progress
from optim.errors import InputError

EVERY_S = 2.0


@dataclass(frozen=True)
class Sight:
    """What is seen of a run at a moment."""

    progress: Progress | None
    """None before anything has run."""
    holder: Holder | None
    """The driver; None where none runs."""

    @property
    def is_running(self) -> bool:
        holder = self.holder
        return holder is not None and not holder.is_gone and holder.silent_s < STALE_S

    @property
    def is_done(self) -> bool:
        progress = self.progress
        return progress is not None and progress.cells_done >= progress.cells_total

    @property
    def is_over(self) -> bool:
        """Nothing more will be seen: it is done, or nobody runs it."""
        return self.is_done or not self.is_running

    @property
    def state(self) -> str:
        if self.is_running:
            assert self.holder is not None
            return f"running: {self.holder.text}"
        if self.is_done:
            return "done"
        return "no driver runs it; `optrial evaluate` with its spec goes on"


def look(results: Results) -> Sight:
    """What is to be seen now. InputError where there is no trial, and nobody is beginning one."""
    holder = read_holder(results.store)
    if holder is None and not results.store.exists(MANIFEST):
        results.manifest()  # which says so
    return Sight(_progress(results), holder)


def _progress(results: Results) -> Progress | None:
    try:
        found = json.loads(results.store.read("progress.json"))
    except FileNotFoundError:
        return None
    except InputError:
        raise  # what the store says of itself
    except ValueError as error:
        raise _unreadable(results, f"not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise _unreadable(results, "not an object")
    known = {field.name for field in fields(Progress)}
    kept: dict[str, Any] = {key: value for key, value in found.items() if key in known}
    try:
        return TypeAdapter(Progress).validate_python(kept)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _unreadable(results, f"{where}: {first['msg']}") from error


def _unreadable(results: Results, problem: str) -> InputError:
    return InputError(
        f"not the progress of a run: {problem}",
        source=results.store.path("progress.json"),
        mend="Delete it: a run writes it anew, and nothing else reads it",
    )


def watch(results: Results, wait: Callable[[float], None] = time.sleep) -> Iterator[Sight]:
    """Looks until there is nothing more to see, the last one included."""
    while True:
        seen = look(results)
        yield seen
        if seen.is_over:
            return
        wait(EVERY_S)
