"""Texts to prepare an optimisation with: any dataset, a text file, the demo's own documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fsspec

from jobs.data.jsonl import Record
from jobs.data.sources import opened
from jobs.spec.trial_spec import DatasetSpec
from jobs.spec.yaml_reader import is_utf8, nearest
from optim.errors import InputError
from optim.proxies import proxy_options, proxy_words

DEMO = "demo/training"
"""The documentation that the demo model was trained on; trials use none of it."""


class Reading(NamedTuple):
    """How corpora are read."""

    column: str | None = None
    """The column of the texts."""
    subset: str | None = None
    """Of hub datasets."""
    split: str | None = None
    """Of hub datasets."""


PLAIN = Reading()


def read_corpora(paths: Sequence[str], reading: Reading = PLAIN) -> Iterator[str]:
    """The texts of several corpora in turn, one of each, until all have ended.

    So every one of them is part of what is read, however little that is.
    """
    waiting = [read_corpus(path, reading) for path in paths]
    while waiting:
        for texts in list(waiting):
            text = next(texts, None)
            if text is None:
                waiting.remove(texts)
            else:
                yield text


def read_corpus(path: str, reading: Reading = PLAIN) -> Iterator[str]:
    """The texts of a corpus, in order.

    `path` is a .txt file (its paragraphs), `demo/training`, or what a spec's dataset may be; then
    `column` holds the texts, by default `text`, else `prompt` with the `target` after it. Raises
    InputError where it cannot be read, has no such column, or holds what is no Unicode text.
    """
    is_plain = path == DEMO or path.lower().endswith(".txt")
    for name, value in reading._asdict().items() if is_plain else ():
        if value is not None:
            raise InputError(
                f"has no {name}", source=path, field=f"--{name}", mend=f"Leave --{name} out"
            )
    if path == DEMO:
        yield from _demo()
    elif is_plain:
        yield from _paragraphs(path)
    else:
        yield from _rows(path, reading)


def _demo() -> Iterator[str]:
    from jobs.data.demo_corpus import training_documents

    return (document.text for document in training_documents() if not document.is_source)


def _paragraphs(path: str) -> Iterator[str]:
    try:
        with fsspec.open(path, "r", encoding="utf-8-sig", **proxy_options(path)) as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 (byte {error.start})", source=path, field="--data"
        ) from error
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        mend = proxy_words(path, error).strip() or None
        raise InputError(
            f"cannot be read: {reason}", source=path, field="--data", mend=mend
        ) from error
    yield from (part for part in text.split("\n\n") if part.strip())


def _rows(path: str, reading: Reading) -> Iterator[str]:
    dataset = DatasetSpec(path=path, subset=reading.subset, split=reading.split)
    try:
        with opened(dataset) as source:
            names = _columns(path, reading.column, source.columns())
            for record in source.records(names):
                text = "".join(_texts(path, record, names))
                if text:
                    yield text
    except InputError as error:
        raise InputError(
            error.problem, source=error.source or path, field="--data", mend=_mend(path, error)
        ) from error


def _mend(path: str, error: InputError) -> str | None:
    if error.mend is None or "--column" in error.mend:
        return error.mend
    if path.startswith("demo/"):
        return f"For the demo model it is {DEMO}"
    return f"{error.mend}; or a .txt file, or {DEMO}"


def _texts(path: str, record: Record, names: list[str]) -> Iterator[str]:
    if record.values is None:
        raise InputError(str(record.error), source=path)
    for name in names:
        text = record.values.get(name)
        if isinstance(text, str):
            if not is_utf8(text):
                raise InputError(
                    f"{record.place}: `{name}` has a lone surrogate or bytes that are not UTF-8",
                    source=path,
                )
            yield text


def _columns(path: str, column: str | None, there: list[str]) -> list[str]:
    wanted = column or ("text" if "text" in there else "prompt")
    if wanted not in there:
        close = nearest(wanted, there)
        mend = f"Did you mean `{close}`? " if close else ""
        raise InputError(
            f"there is no column `{wanted}`",
            source=path,
            mend=f"{mend}Name the one that holds the texts with --column: {', '.join(there)}",
        )
    if column is None and wanted == "prompt" and "target" in there:
        return ["prompt", "target"]
    return [wanted]
