"""Read YAML that people write into frozen pydantic models, with errors that say how to mend it.

YAML here is data only: no tags that build objects, no duplicate keys, no self-reference. Beyond
YAML 1.1, `1e-4` is a number, and a date stays text.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optim.errors import InputError

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH, MAX_VALUES = 32, 100_000
"""Bounds on a document, so that aliases that multiply cannot exhaust memory."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; InputError where it is unreadable or no mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("there is no such file", source=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason}", source=path) from error
    try:
        loader = _Loader(text)
        try:
            data = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"not valid YAML: {_yaml_problem(error)}", source=path) from error
    if data is None:
        raise InputError("the file is empty", source=path)
    if not isinstance(data, dict):
        raise InputError(f"expected a mapping of keys, got {describe(data)}", source=path)
    _require_plain(data, path)
    return data


def validated(model: type[Model], data: object, source: object | None = None) -> Model:
    """`data` as `model`; one InputError lists everything that is wrong, one line each."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A list whose entries all failed is also reported as too short.
        told = [e for e in errors if not (e["type"] == "too_short" and e["input"])]
        faults = [(_path(e["loc"]), *_fault(e, model)) for e in told or errors]
        # The input is quoted in the message already; pydantic's own text would repeat all of it.
        raise _input_error(faults, source) from None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a slip of, if any is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def describe(value: object) -> str:
    """A value as a message shows it: what it is, and its beginning."""
    if value is None:
        return "nothing (null)"
    for kind, name in _KINDS:
        if isinstance(value, kind):
            shown = json.dumps(value, default=str, ensure_ascii=True)
            return f"{name} {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return type(value).__name__


_KINDS: list[tuple[type | tuple[type, ...], str]] = [
    (bool, "the truth value"),
    ((int, float), "the number"),
    (str, "the text"),
    (Mapping, "the mapping"),
    (list, "the list"),
]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and knows JSON's floats."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            identity = (key.tag, key.value)
            if identity in seen:
                problem = f"the key '{key.value}' stands twice, first in line {seen[identity]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[identity] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"line {mark.line + 1}: {text}" if mark is not None else str(text).replace("\n", " ")


def _require_plain(data: object, source: object) -> None:
    """Refuse what JSON in UTF-8 cannot hold: digests and the manifest are made from it."""
    for count, (path, value, depth) in enumerate(_values(data, (), 0)):
        problem = None
        if depth > MAX_DEPTH or count > MAX_VALUES:
            problem = "too deep or too large; is there an alias that contains itself?"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = f"expected a finite number, got {value}"
        elif isinstance(value, str) and not is_utf8(value):
            problem = "the text has a lone surrogate, which UTF-8 cannot hold"
        elif not isinstance(value, str | int | float | bool | list | dict | None):
            problem = f"expected plain data, got a {type(value).__name__}"
        if problem:
            raise InputError(problem, source=source, field=_path(path[:MAX_DEPTH]))


def is_utf8(text: str) -> bool:
    """Whether the text can be encoded as UTF-8, that is, has no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _values(
    value: object, path: tuple[int | str, ...], depth: int
) -> Iterator[tuple[tuple[int | str, ...], object, int]]:
    yield path, value, depth
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, key, depth
            yield from _values(item, (*path, str(key)), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(item, (*path, index), depth + 1)


def _path(location: Sequence[int | str]) -> str:
    """`("datasets", 0, "path")` as `datasets[0].path`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _input_error(faults: list[tuple[str, str, str | None]], source: object | None) -> InputError:
    if len(faults) == 1:
        field, problem, mend = faults[0]
        return InputError(problem, source=source, field=field or None, mend=mend)
    lines = [f"{len(faults)} problems"]
    for field, problem, mend in faults:
        text = f"{field}: {problem}" if field else problem
        lines.append(f"  {text}. {mend}" if mend else f"  {text}")
    return InputError("\n".join(lines), source=source)


_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


def _fault(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str | None]:
    """What is wrong, and how to mend it."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        close = nearest(str(error["loc"][-1]), known)
        mend = f"Did you mean `{close}`?" if close else f"Known keys: {', '.join(known)}"
        return "unknown key", mend
    if kind == "missing":
        return "is missing", None
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "invalid_key":
        return f"expected a key that is text, got {describe(error['loc'][-1])}", "Quote the key"
    hint = None
    if kind == "string_type" and isinstance(value, bool):
        hint = "YAML reads on, off, yes and no as true and false: quote the word"
    if kind == "string_too_long":
        return f"expected {_expected(kind, context, error['msg'])}, got {len(str(value))}", None
    return f"expected {_expected(kind, context, error['msg'])}, got {describe(value)}", hint


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "literal_error":
        return f"one of {context['expected']}"
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"{words} {context[key]}"
    if kind == "string_pattern_mismatch":
        return "letters, digits and `.`, `_`, `-` only"
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters"
    if kind in {"too_short", "string_too_short"}:
        return "at least one entry" if kind == "too_short" else "text that is not empty"
    words = _EXPECTED.get(kind.split("_")[0], "")
    return words or message.removeprefix("Input should be ")


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that the mapping at `location` may have."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models(field.annotation), model)
    return list(model.model_fields)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
