"""The prompts of a dataset as they will be run: rendered, with stable ids, drawn by hash.

A fault of one row makes that row an error row, which is run as nothing and reported; a fault of the
whole dataset is an InputError.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.plan import digest
from jobs.columns import (
    Columns,
    RowError,
    chat,
    choice_texts,
    choose,
    optional_text,
    prompt_text,
    require_present,
    row_id,
)
from jobs.jsonl import Record
from jobs.sources import opened
from jobs.spec import DatasetSpec
from optim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptRow:
    """One row of `inputs/prompts.parquet`; `cluster.schema.PROMPTS` says what the fields mean."""

    dataset: str
    row: int
    prompt_id: str
    prompt: str | None = None
    is_chat: bool = False
    target: str | None = None
    choices: list[str] | None = None
    cluster: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Draft(NamedTuple):
    """A row in the order of its file, before its chat is rendered."""

    order: int
    row: PromptRow
    messages: list[dict[str, Any]] | None
    place: str


def load(dataset: DatasetSpec, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> list[PromptRow]:
    """All rows of a dataset that the trial runs, in the order of the file.

    `tokenizer` is called only for chats. Raises InputError where the dataset cannot be read, is
    empty, lacks a column, or needs a chat template that the tokenizer does not have.
    """
    with opened(dataset) as source:
        columns = choose(dataset, source.columns())
        drafts: Iterable[_Draft] = _drafts(dataset, columns, source.records(columns.names()))
        if dataset.limit is not None:
            drafts = _draw(drafts, dataset.limit, dataset.sample_seed)
        chats = _Chats(tokenizer)
        return [replace(chats.render(draft), row=number) for number, draft in enumerate(drafts)]


def _drafts(dataset: DatasetSpec, columns: Columns, records: Iterable[Record]) -> Iterator[_Draft]:
    ids = _Ids()
    for order, record in enumerate(records):
        user_id: str | None = None
        empty = PromptRow(dataset=dataset.name, row=0, prompt_id="")
        messages = None
        try:
            if record.values is None:
                raise RowError((record.error or "").removeprefix(f"{record.place}: "))
            user_id = row_id(columns.id, record.values)
            require_present(columns, record.values)
            row, messages, content = _content(empty, columns, record.values)
            if user_id is None:
                prompt_id = ids.of_content(content, row.is_chat, record.place)
            else:
                prompt_id = ids.of_user(user_id, record.place)
            row = replace(row, prompt_id=prompt_id)
        except _DuplicateIdError as error:
            row, messages = replace(empty, prompt_id=error.made_up, error=_at(record, error)), None
        except RowError as error:
            prompt_id = ids.of_fault(user_id or f"{record.unit}-{record.number}", record.place)
            row, messages = replace(empty, prompt_id=prompt_id, error=_at(record, error)), None
        yield _Draft(order, row, messages, record.place)


def _at(record: Record, error: Exception) -> str:
    return f"{record.place}: {error}"


def _content(
    row: PromptRow, columns: Columns, values: Mapping[str, Any]
) -> tuple[PromptRow, list[dict[str, Any]] | None, str]:
    """The row's fields, its chat where it is one, and what its id is a hash of."""
    messages = None
    if columns.prompt is not None:
        content = prompt_text(columns.prompt, values)
        row = replace(row, prompt=content)
    else:
        messages = chat(str(columns.messages), values)
        # The messages, not their rendering: ids and draws are the same for every model.
        content = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
        row = replace(row, is_chat=True)
    row = replace(
        row,
        target=optional_text(columns.target, values),
        choices=choice_texts(columns.choices, values),
        cluster=optional_text(columns.cluster, values),
    )
    return row, messages, content


class _DuplicateIdError(Exception):
    def __init__(self, problem: str, made_up: str) -> None:
        super().__init__(problem)
        self.made_up = made_up


class _Ids:
    """Hands out ids that are unique within a dataset, the same ones on every reading."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        """Id -> the row that has it."""
        self._counts: dict[str, int] = {}
        """Id -> the last number that was appended to it."""

    def of_user(self, wanted: str, place: str) -> str:
        """The user's id; _DuplicateIdError where another row has it."""
        first = self._places.get(wanted)
        if first is None:
            return self._take(wanted, place)
        problem = f"the id {json.dumps(wanted)} is taken by {first}"
        raise _DuplicateIdError(problem, self._take(wanted, place))

    def of_content(self, content: str, is_chat: bool, place: str) -> str:
        """An id from the prompt itself; equal prompts are numbered from the second on."""
        normal = unicodedata.normalize("NFC", content)
        text = normal + digest({"is_chat": is_chat})
        # A chat may hold lone surrogates beside its roles and contents, which nobody reads.
        hashed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._take(hashed, place)

    def of_fault(self, wanted: str, place: str) -> str:
        """An id for a row that cannot be run."""
        return self._take(wanted, place)

    def _take(self, wanted: str, place: str) -> str:
        free, count = wanted, self._counts.get(wanted, 1)
        while free in self._places:
            count += 1
            free = f"{wanted}-{count}"
        self._counts[wanted] = count
        self._places[free] = place
        return free


def _draw(drafts: Iterable[_Draft], limit: int, seed: int) -> list[_Draft]:
    """The `limit` rows with the smallest hashes, so that every draw is part of a larger one."""

    def rank(draft: _Draft) -> tuple[bytes, int]:
        key = f"{seed}|{draft.row.prompt_id}".encode()
        return hashlib.sha256(key).digest(), draft.order

    return sorted(heapq.nsmallest(limit, drafts, key=rank), key=lambda draft: draft.order)


class _Chats:
    """Renders chats by the tokenizer's template, which is loaded with the first one."""

    def __init__(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
        self._make = tokenizer
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def render(self, draft: _Draft) -> PromptRow:
        if draft.messages is None:
            return draft.row
        if self._tokenizer is None:
            self._tokenizer = self._make()
            if not getattr(self._tokenizer, "chat_template", None):
                raise InputError(
                    "the dataset holds chats, but the model's tokenizer has no chat template",
                    field="messages",
                    mend="Take a model that is made for chats, or give plain prompts in `prompt`",
                )
        try:
            prompt = self._tokenizer.apply_chat_template(
                draft.messages, tokenize=False, add_generation_prompt=True
            )
            str(prompt).encode("utf-8")
        except Exception as error:
            # A template is a program of the model's: it may raise anything for what it refuses.
            problem = f"{draft.place}: the chat template cannot render the messages: {error}"
            problem = problem.encode("utf-8", "backslashreplace").decode()
            return PromptRow(draft.row.dataset, 0, draft.row.prompt_id, error=problem)
        return replace(draft.row, prompt=str(prompt))
