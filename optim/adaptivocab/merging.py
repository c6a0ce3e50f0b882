"""Merges by rank, in plain Python: what a tokenizer with them has to give, to check it by."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

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
