"""Texts to prepare an optimisation with: any dataset, a text file, the demo's own documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.sources import opened
from jobs.spec import DatasetSpec
from jobs.yaml_files import nearest
from optim.errors import InputError

DEMO = "demo/training"
"""The documentation that the demo model was trained on; trials use none of it."""


def read_corpus(path: str, column: str | None = None) -> Iterator[str]:
    """The texts of a corpus, in order.

    `path` is a .txt file (its paragraphs), `demo/training`, or what a spec's dataset may be; then
    `column` holds the texts, by default `text`, else `prompt` with the `target` after it. Raises
    InputError where it cannot be read or has no such column.
    """
    if path == DEMO:
        from jobs.demo_corpus import training_documents

        return (document.text for document in training_documents() if not document.is_source)
    if path.lower().endswith(".txt"):
        return _paragraphs(path)
    return _rows(path, column)


def _paragraphs(path: str) -> Iterator[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot be read: {reason}", source=path, field="data") from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 (byte {error.start})", source=path, field="data") from error
    yield from (part for part in text.split("\n\n") if part.strip())


def _rows(path: str, column: str | None) -> Iterator[str]:
    with opened(DatasetSpec(path=path)) as source:
        there = source.columns()
        names = _columns(path, column, there)
        for record in source.records(names):
            if record.values is None:
                raise InputError(str(record.error), source=path, field="data")
            texts = [record.values.get(name) for name in names]
            text = "".join(part for part in texts if isinstance(part, str))
            if text:
                yield text


def _columns(path: str, column: str | None, there: list[str]) -> list[str]:
    wanted = column or ("text" if "text" in there else "prompt")
    if wanted not in there:
        close = nearest(wanted, there)
        mend = f"Did you mean `{close}`? " if close else ""
        raise InputError(
            f"there is no column `{wanted}`",
            source=path,
            field="data",
            mend=f"{mend}Name the one that holds the texts with --column: {', '.join(there)}",
        )
    if column is None and wanted == "prompt" and "target" in there:
        return ["prompt", "target"]
    return [wanted]
