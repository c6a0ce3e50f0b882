"""Which tokens make room for new ones, and what they are split into."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, is_byte_token

Counts = npt.NDArray[Any]


class Removal(NamedTuple):
    """Tokens to go, in the order of going, and what stands for them then."""

    ids: list[int]
    expansions: dict[int, tuple[int, ...]]
    """Removed id -> the kept ids that it is split into; of removed ones alone."""
    num_unreachable: int
    """Of them, tokens that no text is ever encoded to."""
    num_under_trained: int


def choose(
    base: BaseVocabulary,
    counts_V: Counts,
    num_tokens: int,
    *,
    under_trained: Collection[int] = (),
) -> Removal:
    """Up to `num_tokens` tokens whose loss costs least.

    `counts_V` says how often each id occurs, in the domain and in what is to be protected. Only
    tokens that no merge of a kept token uses are removed, so a tokenizer without them still makes
    every other token. Tokens that nothing is encoded to come first, then those the model never
    learnt and that do not occur, then the rarest; among equals the base's last.
    """
    tree = _Tree(base, counts_V)
    unreachable = sorted(_unreachable(base), reverse=True)[:num_tokens]
    removed = list(unreachable)
    never_seen = frozenset(under_trained)
    waiting = [(tree.cost(i, never_seen), i) for i in tree.leaves()]
    heapq.heapify(waiting)
    num_under_trained = 0
    while waiting and len(removed) < num_tokens:
        cost, number = heapq.heappop(waiting)
        if cost != tree.cost(number, never_seen):  # Its own parts have come back to it meanwhile.
            heapq.heappush(waiting, (tree.cost(number, never_seen), number))
            continue
        removed.append(number)
        num_under_trained += number in never_seen
        for freed in tree.remove(number):
            heapq.heappush(waiting, (tree.cost(freed, never_seen), freed))
    return Removal(removed, _expansions(base, removed), len(unreachable), num_under_trained)


class _Tree:
    """Which tokens are parts of which, while tokens go."""

    def __init__(self, base: BaseVocabulary, counts_V: Counts) -> None:
        self._base = base
        self._counts = np.zeros(base.size, dtype=np.int64)
        self._counts[: len(counts_V)] = counts_V
        self._used_by: Counter[int] = Counter()
        self._uses: dict[int, list[int]] = {}
        for left, right, whole in base.merges:
            self._uses.setdefault(whole, []).extend((left, right))
            self._used_by.update((left, right))

    def leaves(self) -> list[int]:
        """Tokens that are made by merges and that no merge uses."""
        return [i for i in self._uses if not self._used_by[i] and i not in self._base.added]

    def cost(self, number: int, first: Collection[int]) -> tuple[int, bool, int]:
        """Tokens that a text has more for its loss, whether the model knows it, its age."""
        parts = len(self._base.parts[number]) - 1
        return int(self._counts[number]) * parts, number not in first, -number

    def remove(self, number: int) -> list[int]:
        """Take a leaf away; returns the tokens that are leaves now."""
        for part in self._base.parts[number]:
            self._counts[part] += self._counts[number]
        freed = []
        for part in self._uses.pop(number):
            self._used_by[part] -= 1
            if not self._used_by[part] and part in self._uses and part not in self._base.added:
                freed.append(part)
        return freed


def _unreachable(base: BaseVocabulary) -> list[int]:
    """Tokens of the model that no merge makes and that are no alphabet: nothing encodes to them."""
    model = base.document["model"]
    if model.get("ignore_merges"):  # A word that is a token is encoded to it, merges or not.
        return []
    used = {part for left, right, _ in base.merges for part in (left, right)}
    return [
        number
        for number, token in base.tokens.items()
        if number not in base.added
        and number not in base.parts
        and number not in used
        and len(token) > 1
        and not is_byte_token(token)
        and token != model.get("unk_token")
    ]


def _expansions(base: BaseVocabulary, removed: list[int]) -> dict[int, tuple[int, ...]]:
    gone = frozenset(removed)
    made: dict[int, tuple[int, ...]] = {}

    def split(number: int) -> tuple[int, ...]:
        if number not in gone:
            return (number,)
        if number not in made:
            left, right = base.parts[number]
            made[number] = split(left) + split(right)
        return made[number]

    for number in removed:
        if number in base.parts:
            split(number)
    return made


def num_removable(base: BaseVocabulary) -> int:
    """The most tokens that can be removed."""
    alphabet = len(base.tokens) - len(base.added) - len(base.parts) - len(_unreachable(base))
    return len(base.tokens) - len(base.added) - alphabet


def under_trained(base: BaseVocabulary, rows_VD: Any) -> frozenset[int]:
    """Tokens whose input embedding is no farther from the never-trained ones than these are.

    Never trained are the bytes that UTF-8 does not have (0xC0, 0xC1, 0xF5 and above): Land and
    Bartolo 2024, "Fishing for Magikarp". Empty where the vocabulary has too few of them.
    """
    impossible = {0xC0, 0xC1, *range(0xF5, 0x100)}
    reference = [
        i for i, content in base.contents.items() if len(content) == 1 and content[0] in impossible
    ]
    if len(reference) < 4:
        return frozenset()
    rows_VD = rows_VD[: base.size].float()
    center_D = rows_VD[reference].mean(dim=0)
    distances_V = (rows_VD - center_D).norm(dim=1)
    limit = distances_V[reference].median() * 1.5
    near = (distances_V <= limit).nonzero().flatten().tolist()
    # A model that was trained without weight decay may hold every row that near.
    if len(near) > len(rows_VD) // 4:
        return frozenset()
    return frozenset(near) - base.added
