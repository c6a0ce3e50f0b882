"""`BaseVocabulary`: what must be known of a tokenizer before its vocabulary can be changed."""

from __future__ import annotations

import copy
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from optim.errors import InputError

Ranks = Mapping[tuple[int, int], tuple[int, int]]
"""Left and right -> rank, and what they become."""


def merged(ids: Sequence[int], ranks: Ranks) -> list[int]:
    """Merge neighbours until no merge applies, always the lowest rank first, leftmost first.

    O(n log n) in the number of ids.
    """
    symbols = list(ids)
    following = [*range(1, len(symbols)), -1]
    preceding = [-1, *range(len(symbols) - 1)]
    waiting: list[tuple[int, int, int]] = []

    def enter(place: int) -> None:
        after = following[place]
        found = ranks.get((symbols[place], symbols[after])) if after >= 0 else None
        if found is not None:
            heapq.heappush(waiting, (found[0], place, found[1]))

    for place in range(len(symbols)):
        enter(place)
    while waiting:
        rank, place, whole = heapq.heappop(waiting)
        after = following[place] if symbols[place] >= 0 else -1
        if after < 0 or ranks.get((symbols[place], symbols[after])) != (rank, whole):
            continue
        symbols[place], symbols[after] = whole, -1
        following[place] = following[after]
        if following[place] >= 0:
            preceding[following[place]] = place
        enter(place)
        if preceding[place] >= 0:
            enter(preceding[place])
    return [symbol for symbol in symbols if symbol >= 0]


Kind = Literal["byte-level", "sentencepiece"]
Merge = tuple[int, int, int]
"""Left, right, and what they become."""

FIELD = "model"
_SPACE = "▁"


@dataclass(frozen=True)
class BaseVocabulary:
    """A tokenizer of BPE taken apart: ids, token strings, merges, and what each stands for."""

    kind: Kind
    document: dict[str, Any]
    """The tokenizer.json, parsed; not to be changed."""
    tokens: dict[int, str]
    """Every id's token string, added tokens included."""
    added: frozenset[int]
    """Ids of added tokens, special or not: texts are cut at them before anything else."""
    merges: tuple[Merge, ...]
    """By rank."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> BaseVocabulary:
        """Take a tokenizer apart; InputError where it is not of BPE, or of no known kind of it."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _unsupported(f"a {type(tokenizer).__name__} without a tokenizer.json")
        document = json.loads(backend.to_str())
        model = document["model"]
        if model["type"] != "BPE":
            raise _unsupported(f"a {model['type']} vocabulary, which has no merges")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise _unsupported("a BPE vocabulary with prefixes or suffixes of subwords")
        if model.get("dropout"):
            raise _unsupported("a BPE vocabulary with dropout: one text has many encodings")
        kind = _kind(document)
        ids: dict[str, int] = dict(model["vocab"])
        added = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
        merges = tuple(_merge(pair, ids) for pair in model["merges"])
        tokens = {i: token for token, i in (ids | added).items()}
        return cls(kind, document, tokens, frozenset(added.values()), merges)

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.tokens) + 1

    @cached_property
    def ids(self) -> dict[str, int]:
        """The ids of token strings."""
        return {token: i for i, token in self.tokens.items()}

    @cached_property
    def parts(self) -> dict[int, tuple[int, int]]:
        """What a merged token is made from, by its first merge."""
        found: dict[int, tuple[int, int]] = {}
        for left, right, whole in self.merges:
            found.setdefault(whole, (left, right))
        return found

    @cached_property
    def contents(self) -> dict[int, bytes]:
        """The bytes that each id stands for within a text; empty for added tokens."""
        return {i: self._content(i, token) for i, token in self.tokens.items()}

    def _content(self, number: int, token: str) -> bytes:
        if number in self.added:
            return b""
        if self.kind == "byte-level":
            return bytes(BYTES.get(symbol, 63) for symbol in token)
        if is_byte_token(token):
            return bytes([int(token[3:5], 16)])
        return token.replace(_SPACE, " ").encode()

    def text(self, ids: tuple[int, ...]) -> bytes:
        """The bytes that a sequence of ids stands for."""
        return b"".join(self.contents[i] for i in ids)

    def copy(self) -> dict[str, Any]:
        """The tokenizer.json, to be changed."""
        return copy.deepcopy(self.document)


def byte_symbols() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's encoder)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(others)) for byte in range(256)}


BYTES = {symbol: byte for byte, symbol in byte_symbols().items()}
"""The byte that a character of a byte-level vocabulary stands for."""


def is_byte_token(token: str) -> bool:
    """Whether it is one of a SentencePiece vocabulary's `<0x00>` to `<0xFF>`."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _merge(pair: str | list[str], ids: dict[str, int]) -> Merge:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return ids[left], ids[right], ids[left + right]


def _kind(document: dict[str, Any]) -> Kind:
    steps = pre_tokenizer_steps(document)
    if any(step["type"] == "ByteLevel" for step in steps):
        return "byte-level"
    if document["model"].get("byte_fallback"):
        return "sentencepiece"
    raise _unsupported("a BPE vocabulary without bytes, in which not every text can be written")


def pre_tokenizer_steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, a sequence or not."""
    first = document["pre_tokenizer"]
    if first is None:
        return []
    return list(first["pretokenizers"]) if first["type"] == "Sequence" else [first]


def _unsupported(what: str) -> InputError:
    return InputError(
        f"its tokenizer is {what}; adaptivocab needs BPE over bytes, or with bytes as a fallback",
        field=FIELD,
        mend="Use a model whose tokenizer.json has a model of type BPE",
    )
