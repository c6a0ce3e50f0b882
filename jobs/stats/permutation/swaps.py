"""The test that verdicts go by: swap the two sides of whole clusters, and compute again.

Were there no effect, each cluster (a prompt, a shard, a round) could as well have had its sides
named the other way round, so every choice S of clusters to swap is as likely as the one that was
seen (Fisher, The Design of Experiments, 1935, section 21; Pesarin and Salmaso, Permutation Tests
for Complex Data, 2010, chapter 2). An effect θ other than none is tested after it is taken out of
the reference (totals times e^θ, or plus θ a unit), and the interval is every θ that is not
rejected, with the same swaps at every θ: a verdict and its interval cannot contradict each other.

One data set, both sides divided by the same: the statistic is the log ratio of totals. A swap of S
is as extreme as what was seen exactly where θ lies between the ratio r(S) of the swapped clusters
and r(U) of the rest, so that p(θ) is the share of swaps with min ≤ θ ≤ max, and the bounds are two
quantiles.

Several data sets, or a rate whose two sides are divided by other totals: the weighted mean of the
sets' statistics over its linearised, stratified standard error (Cochran, Sampling Techniques, 1977,
chapter 6), both computed again for every swap. A plain swap would take real differences between
sets into its distribution of nothing, and find no effect however large (Janssen, Statistics &
Probability Letters 36, 1997, on why studentising mends it). How: `jobs.stats.permutation.swapped`.

Signs of jackknife pseudo-values, which look like the same test, are not: they are centred at the
estimate, so that beside one dominant cluster all others share an offset and point the same way
(false alarms of 32 % at a level of 4 %: `benchmarks/statistics/statistics.py`).

n clusters have 2^(n-1) ways to swap that differ, so no p is below 2^(1-n): a verdict at level a
among m tests needs 1 + log2(m / a) clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from jobs.stats.intervals import Floats
from jobs.stats.permutation.ends import Search
from jobs.stats.permutation.signs import sign_p
from jobs.stats.permutation.swapped import (
    ROUNDING,
    SetTotals,
    Theta,
    moments,
    set_totals,
    swapped_sums,
)

NUM_SWAPS = 4_999
"""Swaps that are drawn where there are more than can be enumerated."""
MOST_SWAPS = 2_000_000
"""Swaps that are drawn at the most, whatever the level: they take 200 MB, and a p of 5e-6 is then
known to a third of itself. What would need more is left open."""
MOST_ENUMERATED = 14
"""Clusters up to which every swap is tried: 2^13."""
_LEAST_SPREAD = 1e-24
"""A variance that is rounding, of logs or of what is of their size."""
_MOST_THOROUGH = 11
"""Clusters up to which an interval's ends are looked for at many places: few clusters of several
sets can leave gaps in what is kept."""
_MOST_CLUSTERS = 1024
"""More clusters than these are joined to so many before they are swapped: see `_joined`."""


def fewest_clusters(level: float, num_tests: int = 1) -> int:
    """Clusters below which no difference, however large, is found at this level (Holm)."""
    return 1 + math.ceil(math.log2(num_tests / level) - 1e-9)


@dataclass(frozen=True, eq=False)
class SwapTest:
    """A paired comparison that can be tested at any θ, on the log or the plain scale.

    Draws are made where they are asked for, and alike each time: what is kept is totals.
    """

    sets: tuple[Floats, ...]
    """Of each data set: (4, clusters), the reference's amounts and what they are divided by, then
    the other side's."""
    weights: tuple[float, ...]
    """One per set; they sum to 1."""
    is_log: bool
    """θ is the log of a ratio of ratios; else a difference of means."""
    is_joint: bool = False
    """Cluster i of every set is the same one, and is swapped in all of them at once."""

    @property
    def num_clusters(self) -> int:
        sizes = [each.shape[1] for each in self.sets]
        return sizes[0] if self.is_joint else sum(sizes)

    @property
    def name(self) -> str:
        """As reports name it."""
        return "cluster swaps" if self.is_plain else "studentised cluster swaps"

    @property
    def smallest_p(self) -> float:
        """What p can be at the least, with so many clusters."""
        return 2.0 ** (1 - self.num_clusters)

    @cached_property
    def given(self) -> tuple[SetTotals, ...]:
        return tuple(set_totals(each, self.is_log) for each in self.sets)

    @property
    def is_plain(self) -> bool:
        return len(self.sets) == 1 and self.given[0].kind != "rate"

    def estimates(self) -> list[float]:
        """Each set's own effect, on this test's scale."""
        return [_effect(each.sum(axis=1), self.is_log) for each in self.sets]

    def estimate(self) -> float:
        return math.fsum(w * e for w, e in zip(self.weights, self.estimates(), strict=True))

    def p(self, theta: float = 0.0, num_swaps: int = NUM_SWAPS) -> float:
        """Two-sided p that the effect is θ; exact of no difference between counts."""
        if theta == 0 and self.is_plain and not self.is_log:
            exact = sign_p(self.sets[0][2] - self.sets[0][0])
            if exact is not None:
                return exact
        if self.is_plain:
            lows, highs = _ends(self, num_swaps)
            is_extreme = (lows <= theta + ROUNDING) & (highs >= theta - ROUNDING)
        else:
            is_extreme = self._excess(theta, _sums(self, num_swaps)) >= 0
        # What was seen counts as one of the swaps: Phipson and Smyth, SAGMB 9 (2010).
        return (int(is_extreme.sum()) + 1) / (len(is_extreme) + 1)

    def p_below(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or more: small where it is shown to be less."""
        return self._one_sided(theta, num_swaps, -1.0)

    def p_above(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or less: small where it is shown to be more."""
        return self._one_sided(theta, num_swaps, 1.0)

    def interval(self, confidence: float, num_swaps: int = NUM_SWAPS) -> tuple[float, float]:
        """The hull of every θ whose two-sided p is above 1 - confidence; ends may be infinite."""
        middle, error = self._seen
        if self.is_plain:
            lows, highs = _ends(self, num_swaps)
            rank = _rank(confidence, len(lows))
            if rank == 0:
                return -math.inf, math.inf
            low, high = np.partition(lows, rank - 1)[rank - 1], np.partition(highs, -rank)[-rank]
            return min(float(low), middle), max(float(high), middle)
        if error == 0 and self.smallest_p <= 1 - confidence + 1e-9:
            return middle, middle  # the same change in every cluster
        if not error > 0:
            return -math.inf, math.inf
        step = error * float(special.stdtrit(max(1, self._df), 0.5 + confidence / 2))
        sums = _sums(self, num_swaps)
        rank = _rank(confidence, sums[0].shape[1])
        is_thorough = self.num_clusters <= _MOST_THOROUGH
        low, high = (
            Search(self._excess, middle, each, self._tolerance, is_thorough).end(sums, rank)
            for each in (-step, step)
        )
        return low, high

    def error(self) -> float:
        """The linearised standard error of what was seen."""
        return float(self._moments(0.0, self._unswapped)[1][0])

    @property
    def _df(self) -> int:
        return self.num_clusters - (1 if self.is_joint else len(self.sets))

    @cached_property
    def _seen(self) -> tuple[float, float]:
        return self.estimate(), self.error()

    @property
    def _tolerance(self) -> float:
        """Where swaps are drawn, the draw leaves about 1 % of an error open."""
        return 1e-11 if self.num_clusters <= MOST_ENUMERATED else 1e-4

    def _one_sided(self, theta: float, num_swaps: int, sign: float) -> float:
        """Each swap counts twice: to swap the others instead turns the statistic's sign."""
        if self.is_plain:
            ends = sign * np.concatenate(_ends(self, num_swaps))
            is_extreme = ends <= sign * theta + ROUNDING
            is_opposite = sign * self.estimate() <= sign * theta
        else:
            seen, drawn = self._studentised(theta, _sums(self, num_swaps))
            least = sign * float(seen[0]) - ROUNDING * max(1.0, abs(float(seen[0])))
            is_extreme = np.concatenate([drawn, -drawn]) >= least
            is_opposite = -sign * float(seen[0]) >= least
        return (int(is_extreme.sum()) + 1 + is_opposite) / (len(is_extreme) + 2)

    def _excess(self, theta: Theta, sums: Sequence[Floats]) -> Floats:
        """Of each swap, by how much it is more extreme than what was seen."""
        seen, drawn = self._studentised(theta, sums)
        size = np.abs(seen)
        return np.asarray(np.abs(drawn) - size + ROUNDING * np.maximum(1.0, size))

    def _studentised(self, theta: Theta, sums: Sequence[Floats]) -> tuple[Floats, Floats]:
        with np.errstate(all="ignore"):
            # To take θ out shifts what was seen, and leaves its error as it is.
            shift = np.atleast_1d(np.asarray(self._seen[0] - theta, dtype=np.float64))
            seen = shift / np.float64(self._seen[1])
            middle, error = self._moments(theta, sums)
            # What rounding leaves of nothing is nothing, over no spread too.
            least = ROUNDING * np.maximum(1.0, np.abs(shift))
            is_nothing = (error == 0) & (np.abs(middle) <= least)
            drawn = np.where(is_nothing, 0.0, middle / error)
        # No spread at all: as extreme as can be, or nothing where the statistic is nothing too.
        return _finite(seen), _finite(drawn)

    def _moments(self, theta: Theta, sums: Sequence[Floats]) -> tuple[Floats, Floats]:
        """The weighted statistic and its standard error, of each swap, with θ taken out."""
        middle, variance = np.zeros(sums[0].shape[1]), np.zeros(sums[0].shape[1])
        for weight, (found, spread) in zip(self.weights, self._by_set(theta, sums), strict=True):
            middle += weight * found
            variance += weight**2 * spread
        return middle, np.sqrt(variance)

    def _by_set(self, theta: Theta, sums: Sequence[Floats]) -> list[tuple[Floats, Floats]]:
        return [moments(each, own, theta) for each, own in zip(self.given, sums, strict=True)]

    def interaction_p(self, num_swaps: int = NUM_SWAPS) -> float | None:
        """p that the effect is the same in every set; None of a single set.

        The statistic is Cochran's Q, the squares of the sets' distances from their mean over their
        variances (Biometrics 10, 1954), with the mean effect taken out and recomputed per swap.
        """
        if len(self.sets) < 2:
            return None
        theta = self.estimate()
        seen = _heterogeneity(self._by_set(theta, self._unswapped))
        drawn = _heterogeneity(self._by_set(theta, _sums(self, num_swaps)))
        least = float(seen[0]) * (1 - ROUNDING)
        return (int((drawn >= least).sum()) + 1) / (len(drawn) + 1)

    def pooled(self) -> SwapTest:
        """Of all sets as one: what each counts is what it has of the totals."""
        joined = sum(self.sets[1:], self.sets[0]) if self.is_joint else np.hstack(self.sets)
        return SwapTest((joined,), (1.0,), self.is_log, self.is_joint)

    @property
    def _unswapped(self) -> list[Floats]:
        return [np.zeros((len(each.products), 1)) for each in self.given]


def swap_test(
    sets: Sequence[Floats],
    is_log: bool,
    weights: Sequence[float] | None = None,
    is_joint: bool = False,
) -> SwapTest:
    """Of the sets' totals (4, clusters), with equal weights where none are given."""
    given = [1.0] * len(sets) if weights is None else list(weights)
    whole = math.fsum(given)
    shares = tuple(each / whole for each in given)
    if is_joint:
        return SwapTest(tuple(sets), shares, is_log, is_joint=True)
    joined = tuple(_joined(each, _MOST_CLUSTERS // len(sets) or 2) for each in sets)
    return SwapTest(joined, shares, is_log)


def _rank(confidence: float, num_swaps: int) -> int:
    """Swaps as extreme as what was seen that keep a θ: (k + 1) / (N + 1) > 1 - confidence."""
    return math.floor((1 - confidence) * (num_swaps + 1) + 1e-9)


def _effect(totals: Floats, is_log: bool) -> float:
    a, c, b, d = totals
    with np.errstate(all="ignore"):
        return float(np.log(b / d) - np.log(a / c) if is_log else b / d - a / c)


def _joined(totals: Floats, most: int) -> Floats:
    """At most so many clusters, of neighbours in size that are dealt to them in turn.

    Swapping them together is a subgroup of all swaps, so the test stays what it is; what decides
    which are joined is the same for both sides, so it favours neither.
    """
    size = totals.shape[1]
    # In order of size, so that draws do not depend on the order of the rows.
    order = np.lexsort(
        (np.abs(totals[2] - totals[0]), totals[1] + totals[3], totals[0] + totals[2])
    )
    ordered = totals[:, order[::-1]]
    if size <= most:
        return ordered
    groups = np.arange(size) % most
    return np.stack([np.bincount(groups, weights=row) for row in ordered])


def _heterogeneity(parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    middles = np.stack([found for found, _ in parts])
    with np.errstate(all="ignore"):
        # Sets without any spread differ by whatever they differ by.
        precision = np.stack([1 / np.maximum(spread, _LEAST_SPREAD) for _, spread in parts])
        mean = (middles * precision).sum(axis=0) / precision.sum(axis=0)
        found = (precision * (middles - mean) ** 2).sum(axis=0)
    return _finite(found)


def _finite(values: Floats) -> Floats:
    return np.nan_to_num(values, nan=0.0, posinf=1e300, neginf=-1e300)


@lru_cache(maxsize=4)
def _sums(test: SwapTest, num_swaps: int) -> list[Floats]:
    columns = [each.products for each in test.given]
    if not test.is_joint:
        return swapped_sums(columns, num_swaps, MOST_ENUMERATED)
    (sums,) = swapped_sums([np.concatenate(columns)], num_swaps, MOST_ENUMERATED)
    return np.split(sums, np.cumsum([len(each) for each in columns])[:-1])


@lru_cache(maxsize=4)
def _ends(test: SwapTest, num_swaps: int) -> tuple[Floats, Floats]:
    """Of each swap, the effect in the swapped clusters and in the rest: smaller, larger."""
    columns = test.given[0].products[:2]
    (sums,) = swapped_sums([columns], num_swaps, MOST_ENUMERATED)
    rest = columns.sum(axis=1)[:, None] - sums
    # What rounding leaves of nothing is nothing.
    small = (ROUNDING * np.abs(columns).sum(axis=1))[:, None]
    one, other = (_part(np.where(np.abs(x) <= small, 0.0, x), test.is_log) for x in (sums, rest))
    # A part in which there is nothing bounds nothing.
    nothing = np.isnan(one) | np.isnan(other)
    return (
        np.where(nothing, -np.inf, np.minimum(one, other)),
        np.where(nothing, np.inf, np.maximum(one, other)),
    )


def _part(sums: Floats, is_log: bool) -> npt.NDArray[np.float64]:
    """The effect in a part of the clusters: of (a, b) or (b - a, n)."""
    with np.errstate(all="ignore"):
        found = np.log(sums[1]) - np.log(sums[0]) if is_log else sums[0] / sums[1]
    return np.asarray(found, dtype=np.float64)
