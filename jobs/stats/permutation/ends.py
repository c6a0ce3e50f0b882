"""Where the interval of a swap test ends: the last θ at which enough swaps are as extreme as seen.

Of each swap `excess(θ, sums)` says by how much it is more extreme than what was seen. An end is
bracketed; swaps that are as extreme at both ends of the bracket, or at neither, are taken to be so
in between, and of each other one the θ is found at which it stops to be: the end is that one of
these beyond which too few are left. Whether they are is looked at, and where it is not so, the
bracket is halved until it is. An interval is the hull of all θ that are kept, so one step further
out is looked at as well, and many steps where clusters are so few that there may be gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.stats.intervals import Floats

Sums = Sequence[Floats]
"""Of each data set (sums, swaps)."""
Excess = Callable[[float | Floats, Sums], Floats]

# In multiples of where t would have the end.
_FAR = (1.0, 1.4, 2.0, 4.0, 12.0)
_THOROUGH = (*np.arange(0.25, 4.01, 0.25).tolist(), 5.0, 6.0, 8.0, 12.0)
_BACK = (0.7, 0.0)
_ITERATIONS = 60


@dataclass(frozen=True)
class Search:
    """For an end in one direction; places are multiples of `step` from `start`."""

    excess: Excess
    start: float
    step: float
    """Signed: about as far as the end is likely to be."""
    tolerance: float
    is_thorough: bool = False

    def end(self, sums: Sums, rank: int) -> float:
        """`rank` swaps, at the least, have to be as extreme for a θ to be kept; may be infinite."""
        if rank == 0:
            return math.copysign(math.inf, self.step)
        inside, outside = 0.0, math.inf
        at_inside: Floats | None = None
        at_outside = np.zeros(0)
        for multiple in _THOROUGH if self.is_thorough else _FAR:
            found = self._at(multiple, sums)
            if int((found >= 0).sum()) >= rank:
                inside, at_inside, outside = multiple, found, math.inf
            elif math.isinf(outside):
                outside, at_outside = multiple, found
            elif not self.is_thorough:
                break  # twice in a row
        if math.isinf(outside):
            return math.copysign(math.inf, self.step)
        for multiple in _BACK if at_inside is None else ():
            inside, at_inside = multiple, self._at(multiple, sums)
            if int((at_inside >= 0).sum()) >= rank:
                break
            outside, at_outside = multiple, at_inside
        assert at_inside is not None  # _BACK is not empty
        place = self._within((inside, outside), (at_inside, at_outside), rank, sums)
        is_drawn = self.tolerance > 1e-8  # and then known to its own error alone
        if not is_drawn and not self._is_end(place, rank, sums):
            place = self._halved(inside, outside, rank, sums)
        return self.start + self.step * place

    def _num_kept(self, multiple: float, sums: Sums) -> int:
        return int((self._at(multiple, sums) >= 0).sum())

    def _is_end(self, place: float, rank: int, sums: Sums) -> bool:
        room = 4 * self.tolerance
        is_kept = place <= room or self._num_kept(place - room, sums) >= rank
        return is_kept and self._num_kept(place + room, sums) < rank

    def _halved(self, inside: float, outside: float, rank: int, sums: Sums) -> float:
        """By the number of swaps alone: inside it is large enough, outside it is not."""
        for _ in range(_ITERATIONS):
            middle = (inside + outside) / 2
            if outside - inside < self.tolerance:
                break
            if self._num_kept(middle, sums) >= rank:
                inside = middle
            else:
                outside = middle
        return inside

    def _at(self, multiple: float | Floats, sums: Sums) -> Floats:
        return self.excess(self.start + multiple * self.step, sums)

    def _within(
        self,
        bracket: tuple[float, float],
        ends: tuple[Floats, Floats],
        rank: int,
        sums: Sums,
    ) -> float:
        """The largest multiple in the bracket at which `rank` swaps are as extreme."""
        is_in, is_out = ends[0] >= 0, ends[1] >= 0
        wanted = rank - int((is_in & is_out).sum())
        some = np.flatnonzero(is_in & ~is_out)
        if not 0 < wanted <= len(some):
            return bracket[0]
        own = [each[:, some] for each in sums]
        low, high = np.full(len(some), bracket[0]), np.full(len(some), bracket[1])
        at_low, at_high = ends[0][some], ends[1][some]
        was_inside = np.zeros(len(some))
        for _ in range(_ITERATIONS):
            least, most = (float(np.partition(x, -wanted)[-wanted]) for x in (low, high))
            if most - least < self.tolerance:
                break
            # Only swaps whose end may be the one that is looked for are looked at further.
            open_ = (high >= least) & (low <= most)
            wanted -= int((low > most).sum())
            own = [each[:, open_] for each in own]
            low, high, at_low, at_high, was_inside = (
                each[open_] for each in (low, high, at_low, at_high, was_inside)
            )
            # False position, of all at once; an end that stays twice counts half (Illinois).
            guess = high - at_high * (high - low) / (at_high - at_low)
            guess = np.clip(np.where(np.isfinite(guess), guess, (low + high) / 2), low, high)
            found = self._at(guess, own)
            is_inside = found >= 0
            at_high = np.where(is_inside, np.where(was_inside > 0, at_high / 2, at_high), found)
            at_low = np.where(is_inside, found, np.where(was_inside < 0, at_low / 2, at_low))
            low, high = np.where(is_inside, guess, low), np.where(is_inside, high, guess)
            was_inside = np.where(is_inside, 1.0, -1.0)
        return float(np.partition(low, -wanted)[-wanted])
