"""`Pairs`: a corpus while neighbours are being merged, and where each pair of neighbours stands.

The counts that are kept are upper bounds. A pair's occurrences only vanish, but by merges that make
one of its two symbols, so a count that is looked at again when its turn comes is exact, and nothing
has to be entered where neighbours of a merge are lost.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from optim.adaptivocab.encoded_texts import EncodedTexts, Ints

Positions = npt.NDArray[Any]
_GONE = np.int32(-1)


class Pairs:
    """The tokens of a corpus as linked lists, one for each chunk; merged in place."""

    def __init__(self, texts: EncodedTexts, least: int) -> None:
        size = len(texts)
        self.least = least
        """Pairs that occur less often are forgotten."""
        self._texts_T = texts.text_T
        self._symbol_T = texts.ids_T.copy()
        places_T = np.arange(size, dtype=np.int32)
        joined_T = texts.joins_T()
        self._next_T = np.full(size, _GONE)
        self._next_T[:-1][joined_T] = places_T[1:][joined_T]
        self._previous_T = np.full(size, _GONE)
        self._previous_T[1:][joined_T] = places_T[:-1][joined_T]
        self._places: dict[int, list[Positions]] = {}
        self._bounds: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []
        self._enter(np.flatnonzero(self._next_T != _GONE).astype(np.int32))

    def _enter(self, firsts_P: Positions) -> None:
        """Remember the pairs that begin at these places, which are new."""
        if not len(firsts_P):
            return
        left_P = self._symbol_T[firsts_P].astype(np.int64)
        keys_P = left_P << 32 | self._symbol_T[self._next_T[firsts_P]]
        order_P = np.argsort(keys_P, kind="stable")
        sorted_P = keys_P[order_P]
        starts = np.flatnonzero(np.diff(sorted_P, prepend=-1))
        sizes = np.diff(starts, append=len(sorted_P))
        firsts_P = firsts_P[order_P]
        known = self._places
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            key = int(sorted_P[start])
            if size < self.least and key not in known:
                continue
            known.setdefault(key, []).append(firsts_P[start : start + size])
            self._push(key, self._bounds.get(key, 0) + size)

    def _push(self, key: int, bound: int) -> None:
        self._bounds[key] = bound
        heapq.heappush(self._heap, (-bound, key))

    def pop(self) -> tuple[int, int, Positions] | None:
        """The most frequent pair (the one of lower ids among equals) and where it can be merged.

        It is not come back to, unless new occurrences of it are made. None where none is left.
        """
        while self._heap:
            bound, key = heapq.heappop(self._heap)
            if self._bounds.get(key) != -bound:
                continue
            left, right = key >> 32, key & 0xFFFFFFFF
            live_P = self._live(left, right, self._places[key])
            # What overlaps another occurrence now may be left without it by another merge.
            places_P = self._disjoint(live_P) if left == right else live_P
            if len(places_P) == -bound:
                del self._places[key], self._bounds[key]
                return left, right, places_P
            if len(places_P) < self.least:
                del self._places[key], self._bounds[key]
                continue
            self._places[key] = [live_P]
            self._push(key, len(places_P))
        return None

    def _live(self, left: int, right: int, found: list[Positions]) -> Positions:
        """Where the pair still stands; of two equal symbols, occurrences may overlap."""
        places_P = np.concatenate(found) if len(found) > 1 else found[0]
        places_P = places_P[self._symbol_T[places_P] == left]
        following_P = self._next_T[places_P]
        there_P = (following_P != _GONE) & (self._symbol_T[following_P] == right)
        places_P = places_P[there_P]
        live_P: Positions = np.unique(places_P) if len(found) > 1 else places_P
        return live_P

    def _disjoint(self, places_P: Positions) -> Positions:
        """Of a run of one symbol, every second place, from the left."""
        if not len(places_P):
            return places_P
        starts_P = np.ones(len(places_P), dtype=bool)
        starts_P[1:] = self._next_T[places_P[:-1]] != places_P[1:]
        firsts_P = np.maximum.accumulate(np.where(starts_P, np.arange(len(places_P)), 0))
        kept_P: Positions = places_P[(np.arange(len(places_P)) - firsts_P) % 2 == 0]
        return kept_P

    def merge(self, places_P: Positions, symbol: int, *, is_known: bool = False) -> None:
        """Make one token of each pair at these places, of a symbol that may be there already."""
        seconds_P = self._next_T[places_P]
        after_P = self._next_T[seconds_P]
        self._symbol_T[places_P] = symbol
        self._symbol_T[seconds_P] = _GONE
        self._next_T[places_P] = after_P
        has_after_P = after_P != _GONE
        self._previous_T[after_P[has_after_P]] = places_P[has_after_P]
        if is_known:  # Rarer pairs of it were forgotten, and may be frequent enough by now.
            places_P = np.flatnonzero(self._symbol_T == symbol).astype(np.int32)
            has_after_P = self._next_T[places_P] != _GONE
        before_P = self._previous_T[places_P]
        # Where two of them stand side by side, the left one enters their pair.
        before_P = before_P[before_P != _GONE]
        before_P = before_P[self._symbol_T[before_P] != symbol]
        self._enter(np.concatenate([before_P, places_P[has_after_P]]))

    def num_texts(self, places_P: Positions) -> int:
        """In how many texts these places are."""
        return int(np.count_nonzero(np.diff(self._texts_T[places_P]))) + 1

    def symbols(self) -> Ints:
        """What the corpus is made of now."""
        left_T: Ints = self._symbol_T[self._symbol_T != _GONE]
        return left_T
