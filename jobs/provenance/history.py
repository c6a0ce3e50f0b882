"""What happened to a trial after it first ran: code that was accepted, and what was added.

`history/<number>.json` in the results, written once each and never changed; the manifest stays as
it was.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cluster.results.results import Results
from cluster.storage.creation import create_alone
from jobs.formatting import plural
from jobs.provenance.code_version import Code, code_differences
from optim.author_settings import said, said_taken
from optim.errors import InputError

HISTORY = "history"


class ArtifactNote(BaseModel):
    """A sentence that an artifact says of itself, and whose it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    optimization: str
    configurations: tuple[str, ...]
    note: str


class Entry(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: Literal["code accepted", "extended"]
    at: str
    host: str
    cells_committed: int
    """That were there when it happened."""
    code: Code | None = None
    """That runs from now on; None where it stayed the same."""
    git: dict[str, Any] | None = None
    added: tuple[str, ...] = ()
    """What was added, in words."""
    configurations: tuple[str, ...] = ()
    """Those that were added."""
    datasets: tuple[dict[str, Any], ...] = ()
    """The specs of datasets that are new, or of which there is more now."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know of all prompts, those that were added among them."""
    artifact_notes: tuple[ArtifactNote, ...] | None = None
    """Of the configurations that were added."""
    look: int | None = None
    """The look that it counts as."""
    effects_sha256: str | None = None
    """Of the table of effects as it was: whether somebody has looked since."""


def entry(results: Results, event: Literal["code accepted", "extended"], **facts: Any) -> Entry:
    """An entry of now."""
    return Entry(
        event=event,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        cells_committed=len(results.committed_keys()),
        **facts,
    )


def record(results: Results, happened: Entry) -> None:
    """Write it after those that there are."""
    number = len(_names(results)) + 1
    data = happened.model_dump_json(indent=1, exclude_none=True).encode()
    while not create_alone(results.store, f"{HISTORY}/{number:04}.json", data):
        number += 1


def entries(results: Results) -> list[Entry]:
    """All that happened, the first first. InputError where a file of it is none."""
    return [_read(results, name) for name in _names(results)]


def _names(results: Results) -> list[str]:
    return [name for name in results.store.list(HISTORY) if name.endswith(".json")]


def _read(results: Results, name: str) -> Entry:
    try:
        return Entry.model_validate_json(results.store.read(name))
    except InputError:
        raise  # what the store says of itself
    except ValueError as error:
        raise InputError(
            f"is no entry of a trial's history: {str(error).splitlines()[0]}",
            source=results.store.path(name),
        ) from error


def codes(results: Results) -> list[tuple[int, Code | None]]:
    """The versions of the code that ran, with how many cells were there when each began.

    The first is the manifest's; None where it was not recorded.
    """
    given = results.manifest().get("code")
    found: list[tuple[int, Code | None]] = [(0, Code.model_validate(given) if given else None)]
    found += [(e.cells_committed, e.code) for e in entries(results) if e.code is not None]
    return found


def dataset_specs(results: Results) -> list[dict[str, Any]]:
    """The specs of the datasets, from which more prompts can be drawn: the latest of each name."""
    given = list(results.manifest().get("datasets", []))
    for happened in entries(results):
        given += happened.datasets
    return list({each["name"]: each for each in given}.values())


def effects_sha256(results: Results) -> str | None:
    """Of the table that every report writes; None where none was written."""
    from jobs.analysis.tables import EFFECTS_FILE  # it reads a report, which reads this

    try:
        return hashlib.sha256(results.store.read(EFFECTS_FILE)).hexdigest()
    except FileNotFoundError:
        return None


def code_data(results: Results) -> list[dict[str, Any]]:
    """Each version of the code that ran, its name, and how many cells it has made."""
    versions = codes(results)
    starts = [count for count, _ in versions] + [len(results.committed_keys())]
    return [
        {"code": None if code is None else code.name, "cells": max(0, end - start)}
        for (_, code), start, end in zip(versions, starts[:-1], starts[1:], strict=True)
    ]


def code_note(results: Results) -> str | None:
    """What a report says where more than one version of the code may have made the rows."""
    versions = codes(results)
    if len(versions) == 1:
        return None
    parts = [
        f"{plural(each['cells'], 'cell')} by {each['code'] or 'code that was not recorded'}"
        for each in code_data(results)
    ]
    changes = [
        line
        for (_, old), (_, new) in pairwise(versions)
        if new is not None and old is not None
        for line in code_differences(old, new)
    ]
    differing = f" What differs: {'; '.join(dict.fromkeys(changes))}." if changes else ""
    return (
        f"{plural(len(versions), 'version')} of the code made these rows, which was accepted: "
        f"{', then '.join(parts)}.{differing}"
    )


def history_notes(results: Results) -> Iterator[str]:
    """What a reader of the report has to know of all that happened."""
    happened = entries(results)
    note = code_note(results)
    if note is not None:
        yield note
    manifest = results.manifest()
    settings = manifest.get("author_settings") or {}
    generation = manifest["plan"]["generation"]
    if manifest.get("from_model"):
        yield _sentence(said_taken(settings, generation))
    if (text := said(settings, generation)) is not None:
        yield _sentence(text)
    # Whoever adds to a trial gives all of its prompts again, so the last notes are of all.
    given = [manifest.get("notes") or (), *(each.notes for each in happened)]
    yield from map(_sentence, next(filter(None, reversed(given)), ()))
    late = [name for each in happened for name in each.configurations]
    if late:
        yield (
            f"Added later: {', '.join(late)}. Their times were taken in another run than those of "
            "what they are compared with, so a machine that was slower or faster by then is part "
            "of the difference."
        )


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."
