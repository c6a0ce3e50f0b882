"""Longer chunks for a pre-tokenizer, in which the base vocabulary's merges do what they did.

A byte-level tokenizer cuts a text by a regular expression and merges within the pieces, so no token
crosses two words. Without the cuts, base merges would reach across some of them (in runs of spaces,
between punctuation and letters) and the base's own tokens would change. So cuts are taken out only
where no token of the base has such a pair of characters within it: there, no base merge can reach
across, and what remains is the base's segmentation, in chunks that new merges can span.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product
from typing import Any

from tokenizers import Regex, pre_tokenizers

from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, pre_tokenizer_steps

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel(use_regex=True)` cuts by (tokenizers, pre_tokenizers/byte_level.rs)."""

CLASSES = {
    "space": "[ ]",
    "line": r"[\r\n]",
    "tab": r"[\t\v\f\x1c-\x1f]",
    "latin": "[A-Za-z]",
    "digit": "[0-9]",
    "sign": r"[\x00-\x7f&&[^\s\x1c-\x1fA-Za-z0-9]]",
    "blank": r"[\s&&[^\x00-\x7f]]",
    "letter": r"[\p{L}&&[^\x00-\x7f]]",
    "mark": r"[\p{M}]",
    "number": r"[\p{N}&&[^\x00-\x7f]]",
    "other": r"[^\x00-\x7f\s\p{L}\p{M}\p{N}]",
}
"""Every character is in exactly one; the expressions are Oniguruma's."""

MOST_MATCHES = 1000
"""In one row. After ten million steps of one match Oniguruma gives up, and the tokenizer panics."""

_BEYOND_ASCII = ("blank", "letter", "mark", "number", "other")
"""What a part of a character's bytes may be of."""

_NUMBERS = ("digit", "number")


def glued(base: BaseVocabulary) -> list[dict[str, Any]] | None:
    """The steps of a pre-tokenizer that cuts only where base merges would reach across.

    None where the base's is of a kind that is not known to be a cut by one regular expression.
    """
    steps = pre_tokenizer_steps(base.document)
    pattern = _pattern(steps)
    if pattern is None:
        return None
    split = {
        "type": "Split",
        "pattern": {"Regex": glued_pattern(pattern, inner_pairs(base))},
        "behavior": "Isolated",
        "invert": False,
    }
    return [split, {**steps[-1], "use_regex": False}]


def _pattern(steps: list[dict[str, Any]]) -> str | None:
    """The regular expression that all cuts are by."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    before = steps[:-1]
    if steps[-1]["use_regex"]:
        return None if before else GPT2_PATTERN
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    split = before[0]
    pattern: str | None = split["pattern"].get("Regex")
    return pattern if split["behavior"] == "Isolated" and not split["invert"] else None


def glued_pattern(pattern: str, inner: set[tuple[str, str]]) -> str:
    """Matches of `pattern` in a row, as one, where the characters around the cut allow it.

    Digits stay apart whatever the vocabulary: numbers are not made of new tokens.
    """
    boundaries = []
    for before, first in CLASSES.items():
        after = [
            second
            for name, second in CLASSES.items()
            if (before, name) not in inner and not (before in _NUMBERS and name in _NUMBERS)
        ]
        if after:
            boundaries.append(f"(?<={first})(?={'|'.join(after)})")
    if not boundaries:
        return pattern
    # Atomic: a match that was found stays as it is, however the row goes on.
    row = f"(?:(?:{'|'.join(boundaries)})(?>{pattern}))"
    return f"(?>{pattern}){row}{{0,{MOST_MATCHES - 1}}}"


def inner_pairs(base: BaseVocabulary) -> set[tuple[str, str]]:
    """The classes of two characters that stand next to each other within some base token."""
    # Bytes that are no whole character become a lone surrogate each.
    texts = [content.decode("utf-8", "surrogateescape") for content in base.contents.values()]
    neighbours = {pair for text in texts for pair in pairwise(text)}
    known = classes_of({character for pair in neighbours for character in pair})
    found: set[tuple[str, str]] = set()
    for left, right in neighbours:
        if not _goes_on(right):
            found.update(product(known[left], known[right]))
    return found


def classes_of(characters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The one of `CLASSES` that each character is in; for a part of one all that it may be of.

    The tokenizer's own expressions are asked: they may know another Unicode than Python does.
    """
    characters = set(characters)
    whole = {character for character in characters if not _is_part(character)}
    found: dict[str, tuple[str, ...]] = {}
    found.update(dict.fromkeys(characters - whole, _BEYOND_ASCII))
    text = "".join(sorted(whole))
    for name, expression in CLASSES.items():
        split = pre_tokenizers.Split(Regex(f"(?:{expression})+"), "removed", invert=True)
        for run, _ in split.pre_tokenize_str(text):
            found.update(dict.fromkeys(run, (name,)))
    return found


def _is_part(character: str) -> bool:
    return "\udc80" <= character <= "\udcff"


def _goes_on(character: str) -> bool:
    """Whether it is a byte of UTF-8 that belongs to the character before it."""
    return "\udc80" <= character <= "\udcbf"
