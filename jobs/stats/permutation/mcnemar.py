"""Right or wrong, one pair a prompt: the swap test without drawing, which at 0 is McNemar's.

Of n₊ pairs that the configuration alone has right, n₋ that the reference alone has, and n₀ that
differ in nothing, a swap turns i, k and j, each binomial with one half. With an effect θ taken out
a swap is as extreme on one side where i (1 - θ) - k (1 + θ) ≤ j θ: a sum over i and k of a tail of
j. At θ = 0 only the pairs that differ count, and twice the smaller side is McNemar's exact test
(Psychometrika 12, 1947), the binomial test of n₊ of n₊ + n₋ at one half; mid-p is not used. It
leaves out 0 exactly where McNemar's p is at most 1 - confidence, at any confidence.

Zeros and ones have no θ that could be taken out of every pair, so that for θ other than 0 this test
alone is wrong where effects are rare: of 150 pairs of which one in fifty is lost it would rule out
a loss of 2 % in 15 % of trials at 5 %. There the binomial limits of
`jobs.stats.permutation.bounded` have to agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from jobs.stats.intervals import Floats
from jobs.stats.permutation.bounded import BoundedTest, bounded_test
from jobs.stats.permutation.effect import NONE, Effect
from jobs.stats.permutation.effects import score_effect
from jobs.stats.permutation.swaps import NUM_SWAPS, SwapTest

MCNEMAR = "McNemar's exact test"
MOST_DISCORDANT = 20_000
"""Pairs that differ, up to which sums over all ways to swap them are made."""
_TIES = 1e-9
"""Sums that differ by less differ by rounding only: they are ties, and ties count."""
_WIDE = 6.5
"""Standard deviations of a binomial that are summed over; what is beyond counts as extreme."""
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class McNemarSwaps(SwapTest):
    """The swap test at every θ, without drawing; `num_swaps` is of no matter to it."""

    @property
    def name(self) -> str:
        return MCNEMAR

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """Pairs that the configuration alone has right, that differ in nothing, and the rest."""
        (totals,) = self.sets
        change = totals[2] - totals[0]
        plus, minus = int((change > 0).sum()), int((change < 0).sum())
        return plus, len(change) - plus - minus, minus

    def p(self, theta: float = 0.0, num_swaps: int = NUM_SWAPS) -> float:
        """Two-sided p that the effect is θ."""
        return min(1.0, 2 * min(self.p_above(theta), self.p_below(theta)))

    def p_above(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or less."""
        return _tail(self.counts, theta)

    def p_below(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or more."""
        return _tail(self.counts[::-1], -theta)

    def interval(self, confidence: float, num_swaps: int = NUM_SWAPS) -> tuple[float, float]:
        """Every θ whose two-sided p is above 1 - confidence; ends are infinite of too few pairs."""
        level = 1 - confidence
        return -_far_end(self.counts[::-1], level), _far_end(self.counts, level)


def exact_difference(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], confidence: float = 0.95
) -> Effect:
    """mean(b - a) of zeros and ones, each pair on its own, by McNemar's exact test.

    As `jobs.stats.permutation.effects.score_effect` where that makes no test, and where more than
    `MOST_DISCORDANT` pairs differ.
    """
    found = score_effect(a, b, confidence=confidence)
    if found.identical or found.test is None or int((a != b).sum()) > MOST_DISCORDANT:
        return found
    test = mcnemar_test(a, b)
    low, high = test.interval(confidence)
    found = replace(found, p=test.p(), test=test)
    if not (math.isfinite(low) and math.isfinite(high)):
        return replace(found, low=None, high=None, method=NONE)
    return replace(found, low=low, high=high, method=MCNEMAR, reason=None)


def mcnemar_test(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> BoundedTest:
    """Of zeros and ones, the reference's and the configuration's."""
    ones = np.ones_like(a)
    sets = (np.stack([a, ones, b, ones]),)
    return bounded_test(McNemarSwaps(sets, (1.0,), is_log=False), sets)


def _tail(counts: tuple[int, int, int], theta: float) -> float:
    """The share of swaps whose swapped pairs add up to θ or less, each as much."""
    plus, zero, minus = counts
    if theta == 0:
        return float(stats.binom.cdf(minus, plus + minus, 0.5))
    i, weight_i = _central(plus)
    k, weight_k = _central(minus)
    least = i[:, None] * (1 - theta) - k * (1 + theta) - _TIES
    # j θ ≥ least: j is at least, or for a negative θ at most, so much.
    if theta > 0:
        needed = np.clip(np.ceil(least / theta), 0, zero + 1)
        share = _at_most(zero)[(zero - needed + 1).astype(np.int64)]
    else:
        allowed = np.clip(np.floor(least / theta), -1, zero)
        share = _at_most(zero)[(allowed + 1).astype(np.int64)]
    beyond = 1 - float(weight_i.sum() * weight_k.sum())
    return min(1.0, float(weight_i @ share @ weight_k) + max(0.0, beyond))


@lru_cache(maxsize=4)
def _central(size: int) -> tuple[Floats, Floats]:
    """Numbers swapped of so many pairs, and how likely each is."""
    reach = math.ceil(_WIDE * math.sqrt(size) / 2) + 1
    numbers = np.arange(max(0, size // 2 - reach), min(size, size // 2 + reach) + 1)
    return numbers.astype(np.float64), np.asarray(stats.binom.pmf(numbers, size, 0.5))


@lru_cache(maxsize=2)
def _at_most(size: int) -> Floats:
    """Entry m + 1 is how likely it is that m or fewer are swapped; m is from -1 on."""
    numbers = np.arange(-1, size + 1)
    # By symmetry, that m or more are is entry size - m + 1.
    found = np.zeros(len(numbers))
    found[1:] = special.bdtr(numbers[1:].astype(np.float64), size, 0.5)
    return found


def _far_end(counts: tuple[int, int, int], level: float) -> float:
    """The largest θ that is not rejected: p falls as θ grows beyond the mean."""
    plus, zero, minus = counts
    size = plus + zero + minus

    def is_kept(theta: float) -> bool:
        return 2 * _tail((minus, zero, plus), -theta) > level + 1e-12

    if 2.0 ** (1 - size) > level + 1e-12:
        return math.inf
    inside, outside = (plus - minus) / size, 1 + 2 * _TOLERANCE
    # At 0 the test is McNemar's, so 0 is looked at itself: rounding must not decide its side.
    if inside <= 0 < outside:
        inside, outside = (0.0, outside) if is_kept(0.0) else (inside, 0.0)
    while outside - inside > _TOLERANCE:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_kept(middle) else (inside, middle)
    return min(1.0, inside)
