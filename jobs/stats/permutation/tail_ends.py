"""Where the interval of a quantile's swap test ends.

The further θ lies from the estimate, the fewer swaps are as extreme as what was seen: a swap's
quantiles move by no more than θ does (with an error that is made again for every swap nearly so).
So a swap that is as extreme at both ends of a bracket, or at neither, is so in between as well, and
only the others are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.stats.intervals import Floats
from jobs.stats.levels import Counts

_STEPS, _TOLERANCE = 30, 0.01
_FARTHEST = 50.0
_FIRST, _FURTHER = 0.85, 1.5


def largest(values: Floats, rank: int) -> float:
    """The value of that rank, counted from the largest, which is 1."""
    return float(np.partition(values, -rank)[-rank])


@dataclass(frozen=True)
class Search:
    """For the end in one direction, as a distance from the estimate in logs."""

    excess: Callable[[float, Counts], Floats]
    """Of a distance and swaps, by how much each of these is as extreme as what was seen."""
    swaps: Counts
    rank: int
    """So many swaps, at the least, have to be as extreme for a θ to be kept."""

    def end(self, guess: float) -> float:
        """The largest distance that is kept, to 1 % of `guess`; may be infinite."""
        if not math.isfinite(guess):
            return math.inf
        inside, at_inside = 0.0, np.full(self.swaps.shape[1], guess)  # all are as extreme
        outside, at_outside, least = math.inf, at_inside, _FIRST * guess
        while math.isinf(outside):
            found = self.excess(least, self.swaps)
            if largest(found, self.rank) < 0:
                outside, at_outside = least, found
            elif least > min(60 * guess, _FARTHEST):
                return math.inf
            else:
                inside, at_inside, least = least, found, least * _FURTHER
        if inside == 0.0:
            found = self.excess(outside / 2, self.swaps)
            if largest(found, self.rank) < 0:
                outside, at_outside = outside / 2, found
            else:
                inside, at_inside = outside / 2, found
        return self._within((inside, outside), (at_inside, at_outside), _TOLERANCE * guess)

    def _within(
        self, bracket: tuple[float, float], excess: tuple[Floats, Floats], tolerance: float
    ) -> float:
        inside, outside = bracket
        is_open = (excess[0] >= 0) & (excess[1] < 0)
        wanted = self.rank - int(((excess[0] >= 0) & (excess[1] >= 0)).sum())
        swaps, excess = self.swaps[:, is_open], (excess[0][is_open], excess[1][is_open])
        at_inside, at_outside = (largest(each, wanted) for each in excess)
        is_stuck, was_inside = False, None
        for _ in range(_STEPS):
            if outside - inside <= tolerance:
                break
            # False position; halves where that stays on one side, as ties are over a wide range.
            share = 0.5 if is_stuck else at_inside / (at_inside - at_outside)
            guess = inside + (outside - inside) * share
            guess = min(max(guess, inside + 0.49 * tolerance), outside - 0.49 * tolerance)
            found = largest(self.excess(guess, swaps), wanted)
            is_inside = found >= 0
            if is_inside:
                inside, at_inside = guess, found
            else:
                outside, at_outside = guess, found
            is_stuck, was_inside = is_inside is was_inside, is_inside
        return inside
