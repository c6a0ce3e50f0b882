"""Options of several values, as people write them: repeated, or separated by spaces or commas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import typer
from typer.core import TyperCommand

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class ListApp(typer.Typer):
    """An app whose commands take lists in each of these ways."""

    def command(self, name: str | None = None, **given: Any) -> Callable[[CommandT], CommandT]:
        made: Callable[[CommandT], CommandT] = super().command(name, **_OURS | given)
        return made


class ListCommand(TyperCommand):
    """A command that writes its lists out before they are parsed, an option for each value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, written_out(self.params, args))


_OURS: dict[str, Any] = {"cls": ListCommand}


class _Part(NamedTuple):
    """Words of a command line that belong together: an option and its values, or an argument."""

    words: list[str]
    is_argument: bool = False
    behind: str | None = None
    """The list option whose values it follows, as it was called."""


def written_out(params: list[Any], words: list[str]) -> list[str]:
    """The words of a command line with each value of a list behind an option of its own.

    Words that follow the values of a list are values too, unless the command needs them as
    arguments.
    """
    num_words = words.index("--") if "--" in words else len(words)
    tail = words[num_words:]
    parts = list(_parts(_options(params), words[:num_words]))
    arguments = [p.nargs for p in params if p.param_type_name == "argument"]
    num_spare = sum(part.is_argument for part in parts) + len(tail[1:]) - sum(arguments)
    if min(arguments, default=0) < 0:
        num_spare = 0  # one that takes any number takes them all
    found: list[str] = []
    for part in parts:
        if part.behind is not None and num_spare > 0:
            found += [w for value in _pieces(part.words[0]) for w in (part.behind, value)]
            num_spare -= 1
        else:
            found += part.words
    return [*found, *tail]


def _options(params: list[Any]) -> dict[str, Any]:
    """Every option by each of its names."""
    options = [param for param in params if param.param_type_name == "option"]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def _parts(options: dict[str, Any], words: list[str]) -> Iterator[_Part]:
    rest, behind = list(words), None
    while rest:
        word = rest.pop(0)
        name, is_inline, value = word.partition("=")
        option = options.get(name)
        if option is None:
            is_argument = not word.startswith("-")
            behind = behind if is_argument else None
            yield _Part([word], is_argument, behind)
            continue
        behind = None
        num_values = 0 if is_inline or option.is_flag else option.nargs
        values, rest = rest[:num_values], rest[num_values:]
        if option.multiple and (values or is_inline):
            pieces = _pieces(value if is_inline else values[0])
            behind = name
            yield _Part([each for piece in pieces for each in (name, piece)])
        elif num_values > 1 and values and len(_pieces(values[0])) == num_values:
            rest = [*values[1:], *rest]
            yield _Part([name, *_pieces(values[0])])
        else:
            yield _Part([word, *values])


def _pieces(text: str) -> list[str]:
    """The values in one word; a path, an address or NAME=VALUE may hold a comma itself."""
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if "," not in text or not pieces:
        return [text]
    is_address = "://" in text and not all("://" in piece for piece in pieces)
    return [text] if "=" in text or is_address or _is_there(text) else pieces


def _is_there(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
