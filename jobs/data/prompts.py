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
from jobs.data.columns import (
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
from jobs.data.jsonl import Record
from jobs.data.sources import Source, opened
from jobs.spec.trial_spec import DatasetSpec
from optim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptRow:
    """One row of `inputs/prompts.parquet`; its fields are `cluster.results.schema.PROMPTS`."""

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
        chats = _Chats(tokenizer, continues=dataset.continue_final_message)
        try:
            drafts = list(_drawn(dataset, columns, source, _Ids()))
        except _TakenIdError:
            # A row's own id was made up for a faulty one before it: its own has precedence.
            names = [columns.id] if columns.id is not None else []
            there = (_own_id(columns, record) for record in source.records(names))
            reserved = frozenset(each for each in there if each is not None)
            drafts = list(_drawn(dataset, columns, source, _Ids(reserved)))
        return [replace(chats.render(draft), row=number) for number, draft in enumerate(drafts)]


def _own_id(columns: Columns, record: Record) -> str | None:
    try:
        return None if record.values is None else row_id(columns.id, record.values)
    except RowError:
        return None


def _drawn(dataset: DatasetSpec, columns: Columns, source: Source, ids: _Ids) -> Iterable[_Draft]:
    drafts = _drafts(dataset, columns, source.records(columns.names()), ids)
    if dataset.limit is None:
        return drafts
    return _draw(drafts, dataset.limit, dataset.sample_seed)


def _drafts(
    dataset: DatasetSpec, columns: Columns, records: Iterable[Record], ids: _Ids
) -> Iterator[_Draft]:
    for order, record in enumerate(records):
        user_id: str | None = None
        empty = PromptRow(dataset=dataset.name, row=0, prompt_id="")
        messages = None
        try:
            if record.values is None:
                raise RowError((record.error or "").removeprefix(f"{record.place}: "))
            user_id = row_id(columns.id, record.values)
            require_present(columns, record.values)
            row, messages, content = _content(empty, columns, record.values, dataset)
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
    row: PromptRow, columns: Columns, values: Mapping[str, Any], dataset: DatasetSpec
) -> tuple[PromptRow, list[dict[str, Any]] | None, str]:
    """The row's fields, its chat where it is one, and what its id is a hash of."""
    messages = None
    if columns.prompt is not None:
        content = prompt_text(columns.prompt, values)
        row = replace(row, prompt=content)
        if dataset.chat:
            messages = [{"role": "user", "content": content}]
            row = replace(row, prompt=None, is_chat=True)
    else:
        messages = chat(str(columns.messages), values)
        if messages[-1]["role"] == "assistant" and not dataset.continue_final_message:
            raise RowError(
                "the last message is the assistant's, so there is nothing to answer: leave it out, "
                "or have it continued by `continue_final_message: true`"
            )
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


class _TakenIdError(Exception):
    """A row's own id was given to a faulty row that came before it."""


class _Ids:
    """Hands out ids that are unique within a dataset, the same ones on every reading.

    `reserved` are ids that rows of their own have, and that none is made up of.
    """

    def __init__(self, reserved: frozenset[str] = frozenset()) -> None:
        self._reserved = reserved
        self._made_up: set[str] = set()
        self._places: dict[str, str] = {}
        """Id -> the row that has it."""
        self._counts: dict[str, int] = {}
        """Id -> the last number that was appended to it."""

    def of_user(self, wanted: str, place: str) -> str:
        """The user's id; _DuplicateIdError where another row has it."""
        first = self._places.get(wanted)
        if first is None:
            self._places[wanted] = place
            return wanted
        if wanted in self._made_up:
            raise _TakenIdError
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
        while free in self._places or free in self._reserved:
            count += 1
            free = f"{wanted}-{count}"
        self._counts[wanted] = count
        self._places[free] = place
        self._made_up.add(free)
        return free


def _draw(drafts: Iterable[_Draft], limit: int, seed: int) -> list[_Draft]:
    """The `limit` rows with the smallest hashes, so that every draw is part of a larger one."""

    def rank(draft: _Draft) -> tuple[bytes, int]:
        key = f"{seed}|{draft.row.prompt_id}".encode()
        return hashlib.sha256(key).digest(), draft.order

    return sorted(heapq.nsmallest(limit, drafts, key=rank), key=lambda draft: draft.order)


class _Chats:
    """Renders chats by the tokenizer's template, which is loaded with the first one."""

    def __init__(
        self, tokenizer: Callable[[], PreTrainedTokenizerBase], *, continues: bool = False
    ) -> None:
        self._make = tokenizer
        self._continues = continues
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
            how = {"add_generation_prompt": True}
            if self._continues and draft.messages[-1]["role"] == "assistant":
                how = {"continue_final_message": True}
            prompt = self._tokenizer.apply_chat_template(draft.messages, tokenize=False, **how)
            str(prompt).encode("utf-8")
        except Exception as error:
            # A template is a program of the model's: it may raise anything for what it refuses.
            problem = f"{draft.place}: the chat template cannot render the messages: {error}"
            problem = problem.encode("utf-8", "backslashreplace").decode()
            return PromptRow(draft.row.dataset, 0, draft.row.prompt_id, error=problem)
        return replace(draft.row, prompt=str(prompt))
