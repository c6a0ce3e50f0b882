"""What rows show of a difference of two sides that are both within 0 and 1, however rare it is.

A swap test takes one and the same θ out of every pair. Scores that are right or wrong have no such
shift: where one in fifty is lost, 150 pairs may show none, and swaps then rule out all but 0. What
is said of θ other than 0 (equivalence, claims, ends of intervals) has to hold for these tests too,
which take each pair to be within -1 and 1 and nothing else:

- `ShareLimits`, of ones and zeros, one pair a prompt. With the shares q won and q + θ lost, both
  counts are binomial. That θ is too large is said by few lost at w α and many won at (1 - w) α,
  w = (1 + (1 - q)^n) / 2: as nothing is won where q is 0, all of α is the lost ones' there. p is
  the largest over all q.
- `MeanLimits`, of all else: bets on each cluster's contribution to the mean. With s what a cluster
  counts (they sum to 1) and c what it adds, the product of 1 + λ (θ s - c) over clusters has a mean
  of 1 at the most where the effect is θ or more, whatever the distributions (each factor's mean is
  1 + λ (θ s - E c), and a product is no more than the mean to its power). So has a mixture over λ
  that was fixed before, and p is 1 over it: Waudby-Smith and Ramdas, JRSS B 86 (2024).

Where all pairs are equal, p that θ or more is lost is (1 - θ)^n, as it has to be.

An effect on the side of 0 that swaps exclude is theirs: to exclude 0 is valid for that whole side.
The end that is nearer to 0 stays where they have it, but for what the larger count alone leaves
possible, were the share of the smaller one as seen. It is not exact: where 70 % of 12 pairs are
lost and 20 % won, intervals of 95 % miss in 11 % of trials, of 30 pairs in 7 %.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special

from jobs.stats.intervals import Floats
from jobs.stats.permutation.swaps import NUM_SWAPS, SwapTest

_LEAST_LEVEL = 1e-15
_FRACTIONS = 2.0 ** -np.arange(8)
"""Of the largest bet that cannot lose more than there is."""
_SHARES = 1 / np.arange(1, 9) / math.fsum(1 / i for i in range(1, 9))
"""What each bet begins with."""
_PLACES = 129
_TOLERANCE = 1e-7
BEYOND = 1e-6
"""What an interval that leaves out 0 begins at, where it is not known to begin farther off."""


class Limits(ABC):
    """One-sided tests of every θ."""

    is_nothing: bool
    """Whether no cluster differs."""

    @abstractmethod
    def p_below(self, theta: float) -> float:
        """p that the effect is θ or more."""

    @abstractmethod
    def mirrored(self) -> Limits:
        """Of the two sides exchanged."""

    def p_above(self, theta: float) -> float:
        """p that the effect is θ or less."""
        return self.mirrored().p_below(-theta)

    def p_near(self, theta: float) -> float:
        """What p that the effect is θ, below 0, or more is at the least."""
        return 0.0

    def high(self, level: float) -> float:
        """The largest θ, from 0 on, whose p that the effect is so much or more is above the
        level."""
        return _crossing(lambda theta: math.log(max(self.p_below(theta), 1e-300) / level))

    def near(self, level: float) -> float:
        """The same of θ up to 0."""
        return _crossing(lambda theta: math.log(max(self.p_near(theta), 1e-300) / level), -1.0, 0.0)

    def interval(self, level: float) -> tuple[float, float]:
        """Every θ that is not rejected at half the level on either side, with 0."""
        return -self.mirrored().high(level / 2), self.high(level / 2)


@dataclass(frozen=True)
class ShareLimits(Limits):
    """Of pairs of zeros and ones: how many the configuration alone has, the reference alone, and
    how many there are."""

    plus: int
    minus: int
    size: int

    @property
    def is_nothing(self) -> bool:  # type: ignore[override]
        return not self.plus and not self.minus

    def mirrored(self) -> ShareLimits:
        return ShareLimits(self.minus, self.plus, self.size)

    def p_below(self, theta: float) -> float:
        if theta > 1:
            return 0.0
        # The level at which the bound is θ: bounds rise as levels fall.
        found = _crossing(
            lambda log: self._far(math.exp(log)) - theta, math.log(_LEAST_LEVEL), 0.0, 1e-9
        )
        return math.exp(found)

    def high(self, level: float) -> float:
        return max(0.0, self._far(level))

    def p_near(self, theta: float) -> float:
        if not self.minus:
            return 1.0
        share = min(1.0, self.plus / self.size - theta)
        return float(special.bdtrc(self.minus - 1, self.size, share))

    def _far(self, level: float) -> float:
        """The upper bound where it is above 0: the largest share won less one that is lost."""
        least = self._fewest(level)
        room = _upper(self.plus, self.size, level / 2) - _upper(
            self.plus, self.size, level * self._weight(least)
        )
        shares = least + max(0.0, float(room)) * np.linspace(0, 1, _PLACES)
        bounds = _upper(self.plus, self.size, level * self._weight(shares)) - shares
        return float(np.max(bounds))

    def _weight(self, share: float | Floats) -> Floats:
        return np.asarray((1 + (1 - np.minimum(share, 1.0)) ** self.size) / 2)

    def _fewest(self, level: float) -> float:
        """Below this share so many lost would be too many."""
        if self.minus < 2:
            return 0.0  # one is half of what any share expects of one and more

        def excess(share: float) -> float:
            tail = float(special.bdtrc(self.minus - 1, self.size, share))
            some = -math.expm1(self.size * math.log1p(-share)) if share < 1 else 1.0
            return 2 * tail - level * some

        found = optimize.brentq(excess, 1e-12, 1.0, xtol=1e-12) if excess(1e-12) < 0 else 0.0
        return float(found)


@dataclass(frozen=True, eq=False)
class MeanLimits(Limits):
    """Of clusters: what each adds to the effect and what it counts, both as parts of the most that
    one counts; and how many are so."""

    added: Floats
    sizes: Floats
    counts: Floats

    @cached_property
    def is_nothing(self) -> bool:  # type: ignore[override]
        return not self.added.any()

    def mirrored(self) -> MeanLimits:
        return MeanLimits(-self.added, self.sizes, self.counts)

    def p_below(self, theta: float) -> float:
        if theta >= 1:
            return float(theta == 1 and bool((self.added >= self.sizes).all()))
        gains = (theta * self.sizes - self.added) / (1 - theta)
        bets = _FRACTIONS[:1] if self.is_nothing else _FRACTIONS
        with np.errstate(divide="ignore"):
            logs = np.log1p(np.maximum(bets[:, None] * gains, -1.0)) @ self.counts
        if self.is_nothing:
            return min(1.0, math.exp(-float(logs[0])))
        return min(1.0, math.exp(-float(special.logsumexp(logs, b=_SHARES))))


def limits_of(sets: Sequence[Floats], weights: Sequence[float], is_joint: bool = False) -> Limits:
    """Of totals (4, clusters) of each data set, as `jobs.stats.permutation.swaps` has them, of
    numbers that are all within 0 and 1."""
    if len(sets) == 1 and (sets[0][[1, 3]] == 1).all() and np.isin(sets[0][[0, 2]], (0, 1)).all():
        change = sets[0][2] - sets[0][0]
        return ShareLimits(int((change > 0).sum()), int((change < 0).sum()), len(change))
    whole = [weight / each[1].sum() for weight, each in zip(weights, sets, strict=True)]
    added = [part * (each[2] - each[0]) for part, each in zip(whole, sets, strict=True)]
    sizes = [part * each[1] for part, each in zip(whole, sets, strict=True)]
    over = np.sum if is_joint else np.concatenate  # joint clusters are one in all sets
    pairs = np.stack([over(added, axis=0), over(sizes, axis=0)])
    pairs, counts = np.unique(pairs[:, pairs[1] > 0] / pairs[1].max(), axis=1, return_counts=True)
    return MeanLimits(pairs[0], pairs[1], counts.astype(np.float64))


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundedTest(SwapTest):
    """A swap test of no difference, which says of other θ only what limits say as well."""

    swaps: SwapTest
    limits: Limits
    raw: tuple[Floats, ...]
    """The sets before clusters were joined."""

    @property
    def name(self) -> str:
        return self.swaps.name

    def p(self, theta: float = 0.0, num_swaps: int = NUM_SWAPS) -> float:
        own = self.swaps.p(theta, num_swaps)
        if theta == 0:
            return own
        side = min(_beyond(self.limits, theta), _beyond(self.limits.mirrored(), -theta))
        return max(own, min(1.0, 2 * side))

    def p_below(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        return max(self.swaps.p_below(theta, num_swaps), _beyond(self.limits, theta))

    def p_above(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        return max(self.swaps.p_above(theta, num_swaps), _beyond(self.limits.mirrored(), -theta))

    def interval(self, confidence: float, num_swaps: int = NUM_SWAPS) -> tuple[float, float]:
        return self.widened(self.swaps.interval(confidence, num_swaps), confidence)

    def widened(self, bounds: tuple[float, float], confidence: float) -> tuple[float, float]:
        """The interval of swaps with all that limits do not exclude; on the same side of 0."""
        low, high = bounds
        level = 1 - confidence
        least, most = self.limits.interval(level)
        if self.limits.is_nothing:
            return least, most
        if not (math.isfinite(low) and math.isfinite(high)):
            return bounds
        if low > 0:
            least = max(-self.limits.mirrored().near(level / 2), min(low, BEYOND))
        if high < 0:
            most = min(self.limits.near(level / 2), max(high, -BEYOND))
        return min(low, least), max(high, most)

    def interaction_p(self, num_swaps: int = NUM_SWAPS) -> float | None:
        return self.swaps.interaction_p(num_swaps)

    def pooled(self) -> BoundedTest:
        if len(self.sets) == 1:
            return self
        raw = (sum(self.raw[1:], self.raw[0]) if self.is_joint else np.hstack(self.raw),)
        return bounded_test(self.swaps.pooled(), raw)


def bounded_test(swaps: SwapTest, sets: Sequence[Floats]) -> BoundedTest:
    """Of a difference of means of what is within 0 and 1; `sets` are as they were given."""
    return BoundedTest(
        swaps.sets,
        swaps.weights,
        swaps.is_log,
        swaps.is_joint,
        swaps=swaps,
        limits=limits_of(sets, swaps.weights, swaps.is_joint),
        raw=tuple(sets),
    )


def _beyond(limits: Limits, theta: float) -> float:
    """What limits say of p that the effect is θ or more; of 0 nothing, as swaps do."""
    if theta == 0:
        return 0.0
    return limits.p_below(theta) if theta > 0 else limits.p_near(theta)


def _upper(count: int, size: int, level: float | Floats) -> Floats:
    """Clopper and Pearson's one-sided upper bound of a share."""
    if count == size:
        return np.ones_like(np.asarray(level, dtype=np.float64))
    return np.asarray(1 - special.betaincinv(size - count, count + 1, level))


def _crossing(
    excess: Callable[[float], float],
    low: float = 0.0,
    high: float = 1.0,
    tolerance: float = _TOLERANCE,
) -> float:
    """Where what falls becomes 0; an end where it does not in between."""
    if excess(high) >= 0:
        return high
    if excess(low) <= 0:
        return low
    return float(optimize.brentq(excess, low, high, xtol=tolerance))
