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
Probability Letters 36, 1997, on why studentising mends it). Totals, squares and products of
clusters are sums over the swapped clusters, so a swap costs a few additions.

Signs of jackknife pseudo-values, which look like the same test, are not: they are centred at the
estimate, so that beside one dominant cluster all others share an offset and point the same way
(false alarms of 33 % at a level of 4 %: `benchmarks/statistics.py`).

n clusters have 2^(n-1) ways to swap that differ, so no p is below 2^(1-n): a verdict at level a
among m tests needs 1 + log2(m / a) clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from jobs.analysis.intervals import Floats

NUM_SWAPS = 9_999
"""Swaps that are drawn where there are more than can be enumerated."""
_ENUMERATED = 14
"""Clusters up to which every swap is tried: 2^13."""
_MOST_CLUSTERS = 1024
"""More clusters than these are joined to so many before they are swapped: see `_joined`."""
_BITS = 8
# Statistics that differ by less differ by rounding only: they are ties, and ties count.
_ROUNDING = 1e-10
# Standard errors beside the estimate at which the interval's end is looked for.
_STEPS = (1, 1.5, 2, 2.5, 3, 4, 6, 10, 25)
_NUM_SUMS = 13


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

    @property
    def num_clusters(self) -> int:
        return sum(each.shape[1] for each in self.sets)

    @property
    def name(self) -> str:
        """As reports name it."""
        return "cluster swaps" if self._is_plain else "studentised cluster swaps"

    @property
    def smallest_p(self) -> float:
        """What p can be at the least, with so many clusters."""
        return 2.0 ** (1 - self.num_clusters)

    @property
    def _is_plain(self) -> bool:
        return len(self.sets) == 1 and np.array_equal(self.sets[0][1], self.sets[0][3])

    def estimates(self) -> list[float]:
        """Each set's own effect, on this test's scale."""
        totals = [each.sum(axis=1) for each in self.sets]
        return [
            float(_statistic([total[i] for i in (2, 3, 0, 1)], self.is_log)) for total in totals
        ]

    def estimate(self) -> float:
        return math.fsum(w * e for w, e in zip(self.weights, self.estimates(), strict=True))

    def p(self, theta: float = 0.0, num_swaps: int = NUM_SWAPS) -> float:
        """Two-sided p that the effect is θ."""
        seen, drawn = self._seen_and_drawn(theta, num_swaps)
        # What was seen counts as one of the swaps: Phipson and Smyth, SAGMB 9 (2010).
        return (int((drawn >= seen).sum()) + 1) / (len(drawn) + 1)

    def p_below(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or more: small where it is shown to be less."""
        return self._one_sided(theta, num_swaps, -1.0)

    def p_above(self, theta: float, num_swaps: int = NUM_SWAPS) -> float:
        """One-sided p that the effect is θ or less: small where it is shown to be more."""
        return self._one_sided(theta, num_swaps, 1.0)

    def interval(self, confidence: float, num_swaps: int = NUM_SWAPS) -> tuple[float, float]:
        """The hull of every θ whose two-sided p is above 1 - confidence; ends may be infinite."""
        least = self.estimate()
        if self._is_plain:
            lows, highs = (np.sort(ends) for ends in self._ends(num_swaps))
            rank = math.floor((1 - confidence) * (len(lows) + 1) + 1e-9)
            if rank == 0:
                return -math.inf, math.inf
            return min(float(lows[rank - 1]), least), max(float(highs[-rank]), least)
        error = self._error()
        if error == 0 and self.smallest_p <= 1 - confidence + 1e-9:
            return least, least  # the same change in every cluster
        if not error > 0:
            return -math.inf, math.inf
        return (
            self._end(least, -error, confidence, num_swaps),
            self._end(least, error, confidence, num_swaps),
        )

    def _end(self, start: float, step: float, confidence: float, num_swaps: int) -> float:
        """Beyond which no θ is kept: the last kept step is bisected against the next one."""
        alpha = 1 - confidence + 1e-9

        def is_kept(theta: float) -> bool:
            return self.p(theta, num_swaps) > alpha

        inside, outside = 0.0, 0.0
        for each in _STEPS:
            if is_kept(start + each * step):
                inside, outside = each, 0.0
            elif outside:
                break  # twice in a row: p is falling
            else:
                outside = each
        if not outside:
            return math.copysign(math.inf, step)
        # Where swaps are drawn, the draw leaves about 1 % of an error open: no need for less.
        for _ in range(40 if self.num_clusters <= _ENUMERATED else 8):
            middle = (inside + outside) / 2
            if is_kept(start + middle * step):
                inside = middle
            else:
                outside = middle
        return start + inside * step

    def _one_sided(self, theta: float, num_swaps: int, sign: float) -> float:
        """Each swap counts twice: to swap the others instead turns the statistic's sign."""
        if self._is_plain:
            return self._plain_one_sided(theta, num_swaps, sign)
        seen, drawn = self._studentised(theta, num_swaps)
        least = sign * seen - _ROUNDING * max(1.0, abs(seen))
        found = int((drawn >= least).sum()) + int((-drawn >= least).sum())
        return (found + 1 + (-sign * seen >= least)) / (2 * len(drawn) + 2)

    def _plain_one_sided(self, theta: float, num_swaps: int, sign: float) -> float:
        lows, highs = self._ends(num_swaps)
        ends = sign * np.concatenate([lows, highs])
        found = int((ends <= sign * theta + _ROUNDING).sum())
        return (found + 1 + (sign * self.estimate() <= sign * theta)) / (2 * len(lows) + 2)

    def _seen_and_drawn(self, theta: float, num_swaps: int) -> tuple[float, Floats]:
        """A number, and one of each swap, that is at least as large where it is as extreme."""
        if self._is_plain:
            lows, highs = self._ends(num_swaps)
            is_between = (lows <= theta + _ROUNDING) & (highs >= theta - _ROUNDING)
            return 1.0, is_between.astype(np.float64)
        seen, drawn = self._studentised(theta, num_swaps)
        return abs(seen) - _ROUNDING * max(1.0, abs(seen)), np.abs(drawn)

    def _ends(self, num_swaps: int) -> tuple[Floats, Floats]:
        """Of each swap, the effect in the swapped clusters and in the rest: smaller, larger."""
        totals = self.sets[0].sum(axis=1)
        (sums,) = self._sums(num_swaps)
        order = (2, 3, 0, 1)
        # What rounding leaves of nothing is nothing.
        small = [_ROUNDING * np.abs(self.sets[0][i]).sum() for i in order]
        swapped, rest = [sums[:, i] for i in order], [totals[i] - sums[:, i] for i in order]
        one, other = (
            _statistic(
                [np.where(np.abs(x) <= s, 0.0, x) for x, s in zip(part, small, strict=True)],
                self.is_log,
            )
            for part in (swapped, rest)
        )
        # A part in which there is nothing bounds nothing.
        nothing = np.isnan(one) | np.isnan(other)
        return (
            np.where(nothing, -np.inf, np.minimum(one, other)),
            np.where(nothing, np.inf, np.maximum(one, other)),
        )

    def _error(self) -> float:
        """The standard error of what was seen."""
        seen = [np.zeros((1, _NUM_SUMS)) for _ in self.sets]
        return float(self._moments(0.0, seen)[1][0])

    def _studentised(self, theta: float, num_swaps: int) -> tuple[float, Floats]:
        seen, seen_error = self._moments(theta, [np.zeros((1, _NUM_SUMS)) for _ in self.sets])
        drawn, error = self._moments(theta, self._sums(num_swaps))
        with np.errstate(all="ignore"):
            t, drawn_t = seen / seen_error, drawn / error
        # No spread at all: as extreme as can be, or nothing where the statistic is nothing too.
        drawn_t = np.where(np.isnan(drawn_t), 0.0, drawn_t)
        return float(np.nan_to_num(t[0], nan=0.0)), drawn_t

    def _moments(self, theta: float, sums: Sequence[Floats]) -> tuple[Floats, Floats]:
        """The weighted statistic and its standard error, of each swap, with θ taken out."""
        middle = np.zeros(len(sums[0]))
        variance = np.zeros(len(sums[0]))
        for totals, weight, own in zip(self.sets, self.weights, sums, strict=True):
            found, spread = _set_moments(totals, own, theta, self.is_log)
            middle += weight * found
            variance += weight**2 * spread
        return middle, np.sqrt(variance)

    def _sums(self, num_swaps: int) -> list[Floats]:
        """Of each set, the products of `_products` summed over the swapped clusters, by swap."""
        return _drawn_sums(self, num_swaps)


def swap_test(
    sets: Sequence[Floats], is_log: bool, weights: Sequence[float] | None = None
) -> SwapTest:
    """Of the sets' totals (4, clusters), with equal weights where none are given."""
    given = [1.0] * len(sets) if weights is None else list(weights)
    whole = math.fsum(given)
    shares = tuple(each / whole for each in given)
    joined = tuple(_joined(each, _MOST_CLUSTERS // len(sets) or 2) for each in sets)
    if not is_log:
        joined = tuple(_centred(each) for each in joined)
    return SwapTest(joined, shares, is_log)


def _statistic(parts: Sequence[Floats], is_log: bool) -> Floats:
    """Of one side's amounts and what divides them, then the reference's."""
    above_b, below_b, above_a, below_a = parts
    with np.errstate(all="ignore"):
        if is_log:
            found = np.log(above_b) - np.log(below_b) - np.log(above_a) + np.log(below_a)
        else:
            found = above_b / below_b - above_a / below_a
    return np.asarray(found, dtype=np.float64)


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


def _centred(totals: Floats) -> Floats:
    """The same differences without what both sides share, whose squares would swallow them."""
    a, below_a, b, below_b = totals
    if not np.array_equal(below_a, below_b):
        return totals
    return np.stack([(a - b) / 2, below_a, (b - a) / 2, below_b])


def _products(totals: Floats) -> Floats:
    """(clusters, 13): the four totals, and the products that a swap changes."""
    a, c, b, d = totals
    return np.stack([a, c, b, d, a * a, c * c, b * b, d * d, a * c, b * d, a * d, b * c, c * d], 1)


def _set_moments(
    totals: Floats, swapped: Floats, theta: float, is_log: bool
) -> tuple[Floats, Floats]:
    """One set's statistic and its linearised variance after each swap.

    With side 1 over side 0, u = n1/N1 - t1/T1 - n0/N0 + t0/T0 is what a cluster adds to the log of
    a ratio of ratios, and (n1 - R1 t1)/T1 - (n0 - R0 t0)/T0 to a difference; they sum to 0, and
    the variance is G / (G - 1) times the sum of their squares, a quadratic form of the products.
    """
    size = totals.shape[1]
    s = _without_effect(swapped, theta, is_log)
    products = _products(totals)
    u = _without_effect(products.sum(axis=0)[None, :], theta, is_log) - s
    # Side 1 holds what was not swapped of b, and what was swapped of a.
    n1, t1, n0, t0 = u[:, 2] + s[:, 0], u[:, 3] + s[:, 1], u[:, 0] + s[:, 2], u[:, 1] + s[:, 3]
    n1n1, t1t1 = u[:, 6] + s[:, 4], u[:, 7] + s[:, 5]
    n0n0, t0t0 = u[:, 4] + s[:, 6], u[:, 5] + s[:, 7]
    n1t1, n0t0 = u[:, 9] + s[:, 8], u[:, 8] + s[:, 9]
    n1t0, n0t1 = u[:, 11] + s[:, 10], u[:, 10] + s[:, 11]
    a, c, b, d = totals
    shift = math.exp(theta) if is_log else 1.0
    n1n0 = shift * float(a @ b) + (0.0 if is_log else theta * float(b @ c))
    t1t0 = float(c @ d)
    with np.errstate(all="ignore"):
        if is_log:
            v = (1 / n1, -1 / t1, -1 / n0, 1 / t0)
        else:
            v = (1 / t1, -n1 / t1**2, -1 / t0, n0 / t0**2)
        squares = v[0] ** 2 * n1n1 + v[1] ** 2 * t1t1 + v[2] ** 2 * n0n0 + v[3] ** 2 * t0t0
        crossed = (
            v[0] * v[1] * n1t1 + v[2] * v[3] * n0t0 + v[0] * v[3] * n1t0 + v[1] * v[2] * n0t1
            + v[0] * v[2] * n1n0 + v[1] * v[3] * t1t0
        )  # fmt: skip
        found = squares + 2 * crossed
        # What rounding leaves of nothing is nothing.
        found = np.where(found <= 1e-14 * squares, 0.0, found)
    return _statistic([n1, t1, n0, t0], is_log), found * (
        size / (size - 1) if size > 1 else math.nan
    )


def _without_effect(sums: Floats, theta: float, is_log: bool) -> Floats:
    """The products' sums with θ put on the reference's amounts, so that both sides are alike."""
    if theta == 0:
        return sums
    found = sums.copy()
    if is_log:
        scale = math.exp(theta)
        found[:, [0, 8, 10]] *= scale
        found[:, 4] *= scale**2
        return found
    a, c, cc, ac, cd = (sums[:, i] for i in (0, 1, 5, 8, 12))
    found[:, 0] = a + theta * c
    found[:, 4] += 2 * theta * ac + theta**2 * cc
    found[:, 8] += theta * cc
    found[:, 10] += theta * cd
    found[:, 11] = sums[:, 11]
    return found


@lru_cache(maxsize=4)
def _drawn_sums(test: SwapTest, num_swaps: int) -> list[Floats]:
    """(swaps, products) of each set; of a plain test only the totals."""
    sizes = [each.shape[1] for each in test.sets]
    width = 4 if test._is_plain else _NUM_SUMS
    columns = [_products(each)[:, :width] for each in test.sets]
    if sum(sizes) <= _ENUMERATED or 2 ** (sum(sizes) - 1) - 1 <= num_swaps:
        is_swapped = _every_swap(sum(sizes))
        places = np.cumsum([0, *sizes])
        return [
            is_swapped[:, start:end] @ own
            for start, end, own in zip(places, places[1:], columns, strict=False)
        ]
    rng = np.random.default_rng(0)
    return [_random_sums(own, num_swaps, rng) for own in columns]


@lru_cache(maxsize=2)
def _every_swap(size: int) -> Floats:
    """(2^(size - 1) - 1, size): all but none, the first cluster keeping its sides.

    To swap the others instead is the same with the sides named the other way round.
    """
    numbers = np.arange(1, 2 ** (size - 1), dtype=np.int64)[:, None]
    bits = numbers >> np.arange(size - 1) & 1
    return np.concatenate([np.zeros((len(numbers), 1)), bits.astype(np.float64)], axis=1)


def _random_sums(columns: Floats, num_swaps: int, rng: np.random.Generator) -> Floats:
    """Sums over random halves: a random byte looks up the sum of eight clusters at a time."""
    size, width = columns.shape
    num_groups = math.ceil(size / _BITS)
    padded = np.zeros((num_groups * _BITS, width))
    padded[:size] = columns
    tables = _patterns() @ padded.reshape(num_groups, _BITS, width)
    sums = np.zeros((num_swaps, width))
    for table in tables:
        sums += table[rng.integers(0, 2**_BITS, num_swaps, dtype=np.uint8)]
    return sums


@lru_cache(maxsize=1)
def _patterns() -> npt.NDArray[np.float64]:
    """Every choice of eight: (256, 8) of 0 and 1."""
    bits = np.arange(2**_BITS)[:, None] >> np.arange(_BITS) & 1
    return np.asarray(bits, dtype=np.float64)
