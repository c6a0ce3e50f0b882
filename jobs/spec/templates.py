"""Prompt templates: `{column}` stands for a row's value, `{{` and `}}` for braces.

Not `str.format`: that would reach into attributes and indices of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def is_template(text: str) -> bool:
    """Whether the text has braces; else it is the name of a column."""
    return "{" in text or "}" in text


def check_template(text: str) -> str:
    """The text itself, or ValueError where a brace has no partner or no column is named."""
    if not is_template(text):
        return text
    for match in _PIECE.finditer(text):
        if match[0] in "{}":
            raise ValueError(
                f"the brace at character {match.start() + 1} names no column."
                " Write `{column}`, and `{{` or `}}` for a brace itself"
            )
    if not template_columns(text):
        raise ValueError("the template names no column. Write `{column}` where its text goes")
    return text


def template_columns(text: str) -> list[str]:
    """The columns that a template names, in order, each once."""
    return list(dict.fromkeys(m[1] for m in _PIECE.finditer(text) if m[1] is not None))


def fill(text: str, values: Mapping[str, str]) -> str:
    """The template with every `{column}` replaced by its value; values are not read again."""
    return _PIECE.sub(lambda m: m[0][0] if m[1] is None else values[m[1]], text)
