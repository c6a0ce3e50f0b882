"""Which columns of a dataset hold what, and what one row has in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jobs.spec.templates import fill, is_template, template_columns
from jobs.spec.trial_spec import DatasetSpec
from jobs.spec.yaml_reader import describe, is_utf8, nearest
from optim.errors import InputError


class RowError(ValueError):
    """One row cannot be run; its message says why, and the others go on."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read; None where a dataset has no such thing."""

    prompt: str | None
    """A column or a template; None where `messages` is set."""
    messages: str | None
    target: str | None
    choices: str | None
    cluster: str | None
    id: str | None
    required: frozenset[str]
    """Columns that the spec names (or that hold the prompts): a row without one is an error."""

    def names(self) -> list[str]:
        others = (self.messages, self.target, self.choices, self.cluster, self.id)
        wanted = [*_prompt_columns(self.prompt), *(name for name in others if name is not None)]
        return list(dict.fromkeys(wanted))


def choose(dataset: DatasetSpec, there: Sequence[str]) -> Columns:
    """The columns to read, by the spec and the defaults; InputError where one is not there."""
    prompt, messages = dataset.prompt, dataset.messages
    if prompt is None and messages is None:
        if "prompt" in there or "messages" not in there:
            prompt = "prompt"
        else:
            messages = "messages"
    required: dict[str, str] = {}
    for field in ("target", "choices", "cluster", "id"):
        name = getattr(dataset, field)
        if name is not None:
            required[name] = field
    required.update(dict.fromkeys(_prompt_columns(prompt), "prompt"))
    if messages is not None:
        required[messages] = "messages"
    for name, field in required.items():
        if name not in there:
            raise _missing(dataset, name, field, there)
    return Columns(
        prompt=prompt,
        messages=messages,
        target=dataset.target or ("target" if "target" in there else None),
        choices=dataset.choices,
        cluster=dataset.cluster,
        id=dataset.id or ("id" if "id" in there else None),
        required=frozenset(required),
    )


def _prompt_columns(prompt: str | None) -> list[str]:
    if prompt is None:
        return []
    return template_columns(prompt) if is_template(prompt) else [prompt]


def _missing(dataset: DatasetSpec, name: str, field: str, there: Sequence[str]) -> InputError:
    shown = [column.encode("utf-8", "backslashreplace").decode() for column in there]
    close = nearest(name, shown)
    mend = f"Did you mean `{close}`? " if close else ""
    mend += f"Its columns: {', '.join(shown) or 'none'}"
    if field == "prompt" and dataset.prompt is None:
        mend += ". Name one in `prompt` or `messages`"
    return InputError(f"there is no column `{name}`", source=dataset.path, field=field, mend=mend)


def require_present(columns: Columns, values: Mapping[str, Any]) -> None:
    for name in columns.names():
        if name in columns.required and name not in values:
            raise RowError(f"there is no `{name}`")


def prompt_text(prompt: str, values: Mapping[str, Any]) -> str:
    """The prompt of one row, from its column or by the template."""
    if not is_template(prompt):
        value = values[prompt]
        if not isinstance(value, str):
            raise RowError(f"`{prompt}` is no text but {_shown(value)}")
        return _sound(prompt, value)
    pieces: dict[str, str] = {}
    for name in template_columns(prompt):
        text = optional_text(name, values)
        if text is None:
            raise RowError(f"`{name}` is no text but {_shown(None)}")
        pieces[name] = text
    return _sound("prompt", fill(prompt, pieces))


def optional_text(name: str | None, values: Mapping[str, Any]) -> str | None:
    """A column's text; a number is written out; None where there is no column or value."""
    value = None if name is None else values.get(name)
    if value is None or name is None:
        return None
    if isinstance(value, float) and math.isnan(value):
        # Tables that passed through pandas write missing values so.
        return None
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(f"`{name}` is no text but {_shown(value)}")
    return _sound(name, value)


def choice_texts(name: str | None, values: Mapping[str, Any]) -> list[str] | None:
    value = None if name is None else values.get(name)
    if value is None or name is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RowError(f"`{name}` is no list of texts but {_shown(value)}")
    return [_sound(name, text) for text in value]


OTHER_MEDIA = ("images", "image", "image_url", "audio", "audios", "video", "videos")
"""Keys of a message beside its text, which a template for text passes over."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def chat(name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row's messages, each with a role that is known and a content that is text.

    A content that is a list of text parts is their texts, one below the other, as servers with an
    OpenAI interface take it for models of text.
    """
    value = values[name]
    if not isinstance(value, list) or not value:
        raise RowError(f"`{name}` is no list of messages but {_shown(value)}")
    found = []
    for number, message in enumerate(value, start=1):
        place = f"message {number} of `{name}`"
        if not isinstance(message, Mapping):
            raise RowError(f"{place} is no mapping but {_shown(message)}")
        found.append({**message, **_role_and_content(message, place)})
    return found


def _role_and_content(message: Mapping[str, Any], place: str) -> dict[str, str]:
    if "role" not in message and {"from", "value"} <= set(message):
        raise RowError(
            f"{place} has `from` and `value` instead of `role` and `content`: rename them, and "
            "`human` to `user`, `gpt` to `assistant`"
        )
    for key in OTHER_MEDIA:
        if message.get(key):
            raise RowError(f"{place} has `{key}`, and only text can be run")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise RowError(f"{place}: `role` is no text: {_shown(role)}")
    if role not in ROLES:
        raise RowError(f"{place}: there is no role {role!r}. There are: {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "\n".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise RowError(f"{place}: `content` is no text: {_shown(content)}")
    return {"role": role, "content": _sound(f"{place}: content", content)}


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", None) and isinstance(text, str):
        return text
    shown = f"a part of type {kind!r}" if kind is not None else _shown(part)
    raise RowError(f"{place}: `content` has {shown}, and only text can be run")


def row_id(name: str | None, values: Mapping[str, Any]) -> str | None:
    """The user's id of a row; None where there is none."""
    value = None if name is None else values.get(name)
    if value is None or value == "" or name is None:
        return None
    if isinstance(value, float) and math.isnan(value):
        return None  # as tables that passed through pandas have what is missing
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RowError(f"`{name}` is neither a text nor a whole number but {_shown(value)}")
    return _sound(name, str(value))


def _sound(name: str, text: str) -> str:
    if not is_utf8(text):
        raise RowError(f"`{name}` has a lone surrogate or bytes that are not UTF-8")
    return text


def _shown(value: object) -> str:
    return "null" if value is None else describe(value)
