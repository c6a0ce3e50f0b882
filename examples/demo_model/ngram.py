"""An n-gram model to compare with: interpolated, modified Kneser-Ney over the demo's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Level:
    """What one order knows; keys are sorted, so looking up is a binary search."""

    keys: Keys
    discounted: Floats
    """For each n-gram: its count less the discount, over its context's count."""
    contexts: Keys
    left: Floats
    """For each context: the probability that discounting leaves to the order below."""


class KneserNey:
    """Probabilities of tokens after up to `order - 1` tokens of the same document.

    An n-gram is packed into 64 bits. Below the highest order an n-gram counts the tokens seen
    before it rather than its occurrences, except at a document's beginning, where nothing but the
    padding can come before. Discounts are Chen and Goodman's three for each order.
    """

    def __init__(self, documents: Sequence[Sequence[int]], order: int, vocabulary: int, end: int):
        self._bits = (vocabulary - 1).bit_length()
        if self._bits * order > 64:
            raise ValueError(f"{order} tokens of {self._bits} bits do not fit in 64 bits")
        self._order = order
        self._vocabulary = vocabulary
        self._end = end
        windows = np.concatenate([self._windows(document) for document in documents])
        self._levels = self._fit(windows)

    def bits(self, document: Sequence[int]) -> Floats:
        """-log2 p of each of the document's tokens and of the end after them."""
        windows = self._windows(document)
        probability = np.full(len(windows), 1.0 / self._vocabulary)
        for size, level in enumerate(self._levels, start=1):
            keys = windows & self._mask(size)
            context, seen = _find(level.contexts, keys >> np.uint64(self._bits))
            gram, known = _find(level.keys, keys)
            own = np.where(known, level.discounted[gram], 0.0)
            probability = np.where(seen, own + level.left[context] * probability, probability)
        cost: Floats = -np.log2(probability)
        return cost

    def _windows(self, document: Sequence[int]) -> Keys:
        """The n-gram that ends at each token, the document being padded with ends in front."""
        padded = np.array([self._end] * (self._order - 1) + [*document, self._end], dtype=np.uint64)
        keys = np.zeros(len(document) + 1, dtype=np.uint64)
        for offset in range(self._order):
            keys = (keys << np.uint64(self._bits)) | padded[offset : offset + len(keys)]
        return keys

    def _mask(self, size: int) -> np.uint64:
        return np.uint64((1 << (self._bits * size)) - 1)

    def _fit(self, windows: Keys) -> list[_Level]:
        keys, counts = np.unique(windows, return_counts=True)
        levels = [self._level(keys, counts.astype(np.float64))]
        for size in range(self._order - 1, 0, -1):
            shorter = keys & self._mask(size)
            keys, counts = np.unique(shorter, return_counts=True)
            amounts = counts.astype(np.float64)
            if size > 1:
                first = keys >> np.uint64(self._bits * (size - 1))
                plain, occurrences = np.unique(windows & self._mask(size), return_counts=True)
                starts = first == self._end
                amounts[starts] = occurrences[np.searchsorted(plain, keys[starts])]
            levels.append(self._level(keys, amounts))
        return levels[::-1]

    def _level(self, keys: Keys, counts: Floats) -> _Level:
        singles, twos, threes, fours = (float(np.sum(counts == n)) or 1.0 for n in (1, 2, 3, 4))
        base = singles / (singles + 2 * twos)
        steps = np.array(
            [
                0.0,
                1 - 2 * base * twos / singles,
                2 - 3 * base * threes / twos,
                3 - 4 * base * fours / threes,
            ]
        ).clip(0.0)
        discount = np.minimum(steps[np.minimum(counts, 3).astype(np.int64)], counts)
        contexts, starts = np.unique(keys >> np.uint64(self._bits), return_index=True)
        totals = np.add.reduceat(counts, starts)
        sizes = np.diff(np.append(starts, len(keys)))
        return _Level(
            keys=keys,
            discounted=(counts - discount) / np.repeat(totals, sizes),
            contexts=contexts,
            left=np.add.reduceat(discount, starts) / totals,
        )


def _find(keys: Keys, wanted: Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each wanted key is or would be, and whether it is there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted
