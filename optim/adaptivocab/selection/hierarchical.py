"""Merges that go on where the base's end, across words: the selection by marginal gain.

A new token is worth what it saves on the corpus as the tokens chosen before have left it. That is
one token for each occurrence of a pair that becomes one, so the best next token is the most
frequent pair of neighbours, and choosing goes on as training of BPE does (Sennrich et al. 2016),
but across words, from the base's tokens up, and with every choice also a merge that a plain
tokenizer can carry out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from optim.adaptivocab.encoded_texts import EncodedTexts
from optim.adaptivocab.selection.pairs import Pairs
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, is_byte_token
from optim.adaptivocab.tokenizer.segmentation import Segmenter

ROUNDS = (0.5, 0.2, 0.0)
"""How much of the surplus is left after each round: uses change as tokens go."""
MOST_TOKENS = 4_000_000
"""Tokens of text that uses are counted on."""


def pruned(found: Selection, texts: EncodedTexts, num_tokens: int, size: int) -> Selection:
    """The `num_tokens` that save most, in their old order; `size` is above every base id."""
    kept = list(range(len(found.expansions)))
    surplus = len(kept) - num_tokens
    # Chunks are not crossed by what was chosen within them, but for chance neighbours.
    ids = texts.ids_T[:MOST_TOKENS].tolist()
    for left in ROUNDS if surplus > 0 else ():
        new = {size + place: found.expansions[place] for place in kept}
        uses = Counter(Segmenter(new, method="dp").cover(ids))
        saved = {p: uses[size + p] * (len(found.expansions[p]) - 1) for p in kept}
        wanted = num_tokens + round(left * surplus)
        best = sorted(kept, key=lambda place: (-saved[place], place))[:wanted]
        kept = sorted(best)
    return Selection([found.names[p] for p in kept], [found.expansions[p] for p in kept], [])


OnStage = Callable[[str], None]
REPORT_EVERY = 1000
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class Selection(NamedTuple):
    """New tokens, the most useful first."""

    names: list[str]
    """Token strings; none of them is a token of the base."""
    expansions: list[tuple[int, ...]]
    """The base ids that each stands for."""
    merges: list[tuple[str, str]]
    """By rank; each makes a new token, or a token that is there already from other parts."""


@dataclass(frozen=True)
class Rules:
    """What may become a token."""

    longest: int | None = None
    """Base tokens of one new token, at most."""
    least_count: int = 2
    """Occurrences in the corpus, at least, at the time of choosing."""
    least_texts: int = 2
    """Texts that it occurs in, at least."""


@dataclass
class _Symbols:
    """Token strings and what they stand for, base tokens and new ones."""

    base: BaseVocabulary
    names: dict[int, str]
    numbers: dict[str, int]
    expansions: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, base: BaseVocabulary, removed: Mapping[int, tuple[int, ...]]) -> _Symbols:
        names = {i: name for i, name in base.tokens.items() if i not in removed}
        return cls(base, names, {name: i for i, name in names.items()})

    def expansion(self, symbol: int) -> tuple[int, ...]:
        return self.expansions.get(symbol, (symbol,))

    def is_number(self, expansion: tuple[int, ...]) -> bool:
        return is_number(self.base.text(expansion))

    def spells_byte(self, name: str, expansion: tuple[int, ...]) -> bool:
        """Whether `<0x0A>` or its like stands in it as text: it would be read as that byte."""
        if self.base.kind == "byte-level":
            return False
        own = sum(is_byte_token(self.base.tokens[i]) for i in expansion)
        return len(_BYTE_TOKEN.findall(name)) != own

    def add(self, name: str, expansion: tuple[int, ...]) -> int:
        symbol = self.base.size + len(self.expansions)
        self.names[symbol], self.numbers[name] = name, symbol
        self.expansions[symbol] = expansion
        return symbol


def is_number(content: bytes) -> bool:
    """Whether there is nothing but digits and white space in it."""
    return b"".join(content.split()).isdigit()


def select(
    texts: EncodedTexts,
    base: BaseVocabulary,
    num_tokens: int,
    rules: Rules,
    *,
    removed: Mapping[int, tuple[int, ...]],
    is_native: bool,
    on_stage: OnStage = lambda stage: None,
) -> Selection:
    """Choose up to `num_tokens` new tokens for texts that are encoded without removed tokens.

    With `is_native`, pairs that spell a token that is there are merged into it, at the cost of no
    row; a patch layer, in which a token stands for one sequence, has no such merges. Fewer tokens
    come back where the corpus has no more pairs that the rules allow.
    """
    symbols = _Symbols.of(base, removed)
    pairs = Pairs(texts, rules.least_count)
    merges: dict[tuple[str, str], None] = {}
    while len(symbols.expansions) < num_tokens and (found := pairs.pop()):
        left, right, places_P = found
        expansion = symbols.expansion(left) + symbols.expansion(right)
        if rules.longest is not None and len(expansion) > rules.longest:
            continue
        if pairs.num_texts(places_P) < rules.least_texts or symbols.is_number(expansion):
            continue
        name = symbols.names[left] + symbols.names[right]
        if symbols.spells_byte(name, expansion):
            continue
        known = symbols.numbers.get(name)
        is_known = known is not None
        if known is None:
            known = symbols.add(name, expansion)
            if len(symbols.expansions) % REPORT_EVERY == 0:
                on_stage(
                    f"selecting: {len(symbols.expansions)} of {num_tokens} tokens, the last one "
                    f"occurs {len(places_P)} times"
                )
        elif not is_native or known in base.added:
            continue
        merges[symbols.names[left], symbols.names[right]] = None
        pairs.merge(places_P, known, is_known=is_known)
    new = list(symbols.expansions)
    return Selection(
        [symbols.names[i] for i in new], [symbols.expansions[i] for i in new], list(merges)
    )


def barriers(base: BaseVocabulary) -> frozenset[int]:
    """Ids that are never part of a new token.

    Added tokens, and of SentencePiece's bytes those that are a part of a character: a decoder that
    puts bytes together knows them only as tokens of their own.
    """
    if base.kind == "byte-level":
        return base.added
    bytes_above = {
        i for i, name in base.tokens.items() if is_byte_token(name) and int(name[3:5], 16) > 0x7F
    }
    return base.added | bytes_above
