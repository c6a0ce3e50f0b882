"""What pairs within 0 and 1 show of a difference other than none, by definition.

Sets are as those of swaps. Of zeros and ones, a pair a prompt, both counts are binomial, and p is
the largest over all shares of the other side's; of all else bets are made on each cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from oracle.swaps import ALPHA, Floats

_SHARES = np.linspace(0, 1, 40_001) ** 2
"""Closer to each other where they are small."""


@dataclass(frozen=True, eq=False)
class Bounds:
    sets: Sequence[Floats]

    @cached_property
    def counts(self) -> tuple[int, int, int] | None:
        """Pairs that are more, less, and all, where every number is 0 or 1."""
        (a, c, b, d), *others = self.sets
        if others or (c != 1).any() or (d != 1).any() or not {*a, *b} <= {0.0, 1.0}:
            return None
        return int((b > a).sum()), int((b < a).sum()), len(a)

    def p(self, theta: float, sign: float) -> float:
        """That the effect is theta or farther to the side of `sign`; at the least, if that is
        nearer to 0 than what swaps exclude."""
        place = sign * theta
        if self.counts is None:
            return self._betted(place, sign) if place > 0 else 0.0
        plus, minus, size = self.counts if sign > 0 else (*self.counts[1::-1], self.counts[2])
        if place < 0:
            share = min(1.0, plus / size - place)
            return float(1 - _at_most(minus - 1, size, np.array([share]))[0])
        shares = _SHARES[_SHARES + place <= 1]
        whole = (1 + (1 - shares) ** size) / 2
        few = _at_most(plus, size, shares + place) / whole
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = 1 - _at_most(minus - 1, size, shares)
            many = np.where(tail > 1e-13, tail, 0) / (1 - whole)  # the rest is rounding
        many[0] = 0.0 if minus else math.inf
        return float(min(1.0, np.minimum(few, many).max()))

    def tost_p(self, margin: float) -> float:
        return max(self.p(margin, 1.0), self.p(-margin, -1.0))

    def end(self, sign: float) -> float:
        """Of the interval, on the other side of 0 than the effect or where 0 is within."""
        return sign * _last(lambda place: self.p(sign * place, sign), 0.0, 1.0)

    def near(self, sign: float) -> float:
        """Of the interval, on the effect's own side of 0."""
        return sign * _last(lambda place: self.p(sign * place, sign), -1.0, -1e-12)

    def _betted(self, place: float, sign: float) -> float:
        """One over the capital of eight fixed bets on each cluster."""
        if place >= 1:
            return 0.0
        counted = [each[1] / each[1].sum() / len(self.sets) for each in self.sets]
        most = max(float(each.max()) for each in counted)
        capital = 0.0
        is_equal = all((each[0] == each[2]).all() for each in self.sets)
        for number in range(1, 2 if is_equal else 9):
            logs = 0.0
            for given, own in zip(self.sets, counted, strict=True):
                change = sign * (given[2] - given[0]) / given[1]
                gain = own * (place - change) / most / (1 - place)
                with np.errstate(divide="ignore"):
                    logs += float(np.log1p(np.maximum(gain / 2 ** (number - 1), -1)).sum())
            part = 1.0 if is_equal else 1 / number / sum(1 / i for i in range(1, 9))
            capital += part * math.exp(logs)
        return min(1.0, 1 / capital) if capital else 1.0


def _at_most(count: int, size: int, shares: Floats) -> Floats:
    """Of so many, that this count or fewer are, at each share."""
    found = np.zeros(len(shares))
    for number in range(count + 1):
        found += math.comb(size, number) * shares**number * (1 - shares) ** (size - number)
    return np.minimum(found, 1.0)


def _last(p: Callable[[float], float], inside: float, outside: float) -> float:
    """The last place whose p is above half of 5 %."""
    if p(outside) > ALPHA / 2:
        return outside
    if p(inside + 1e-12) <= ALPHA / 2:
        return inside
    while outside - inside > 1e-8:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if p(middle) > ALPHA / 2 else (inside, middle)
    return inside
