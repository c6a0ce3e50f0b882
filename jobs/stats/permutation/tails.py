"""Whether the slowest rows became slower: differences of upper quantiles of paired rows.

The effect of a data set is the log ratio of the two sides' quantiles over all its rows; that of
several the mean of theirs, with equal weights. Its test swaps the sides of whole clusters and takes
the quantiles anew, as `jobs.stats.permutation.swaps` does with totals (Pesarin and Salmaso,
Permutation Tests for Complex Data, 2010, chapter 2). θ scales the reference's rows by e^θ; the
interval is every θ that the same swaps do not reject.

Several data sets whose clusters are each their own: a plain swap would take real differences
between them into its distribution of nothing, so the mean is divided by a standard error that is
made again for every swap. It is Bahadur's (Annals of Mathematical Statistics 37, 1966): a quantile
moves by what lies beyond a fixed value over the density there, so that its variance is that of the
clusters' differences in rows beyond the quantile of both sides together. That value and the density
are the same for every swap, so without an effect the test stays exact however rough they are.
Rounds of leases, which are swapped in all data sets at once, need no such error: differences
between the sets cancel within a round.

All swaps are tried where there are 2,000 or fewer, else 2,000 are drawn, of which the p of no
effect needs no more once the answer at 5 % is known: it stops at as many extreme ones as all 2,000
may have, and is (h + 1) / (l + 1) after l swaps (Besag and Clifford, Biometrika 78, 1991).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np

from jobs.stats.intervals import ONE_HOLDS_ALL, Floats
from jobs.stats.levels import (
    SMALLEST,
    Bins,
    Counts,
    Levels,
    Rows,
    Sample,
    binned,
    reaching,
    with_none,
)
from jobs.stats.permutation.effect import IDENTICAL, NO_PAIRS, NONE, ZERO_TOTAL, Effect
from jobs.stats.permutation.swapped import ROUNDING
from jobs.stats.permutation.tail_ends import Search, largest

MOST_SWAPS = 2_000
ROWS_BEYOND = 5
"""Rows of each side and data set that have to lie beyond a quantile for an interval of it."""
LEVEL = 0.05
_BATCH = 500
_MOST_CLUSTERS = 256
_MOST_EXACT, _FINE = 20_000, 0.001
_AT_ONCE = 512


class Tail(NamedTuple):
    """An effect with the two sides' quantiles; of several data sets, the geometric means."""

    effect: Effect
    reference: float | None
    other: float | None


def fewest_rows(q: float) -> int:
    """Rows of a data set that an interval of the quantile `q` needs."""
    return math.ceil(ROWS_BEYOND / (1 - q) - 1e-6)


def tail_effect(
    sets: Mapping[str, Sample],
    q: float,
    *,
    is_joint: bool = False,
    why_not: str | None = None,
    num_left_out: int = 0,
) -> Tail:
    """The relative change of the quantile `q`, with its 95 % interval.

    `is_joint` where cluster i of every set is the same one; `why_not` says why there can be no
    interval. Nothing raises: what cannot be said is null, with the reason.
    """
    samples = list(sets.values())
    num_units = sum(each.size for each in samples)
    effect = Effect(None, None, None, num_units, num_clusters(samples, is_joint), NONE)
    effect = replace(effect, num_left_out=num_left_out)
    if not samples:
        return Tail(replace(effect, reason=NO_PAIRS), None, None)
    pairs = [each.quantiles(q) for each in samples]
    if min(min(pair) for pair in pairs) <= SMALLEST:
        return Tail(replace(effect, reason=ZERO_TOTAL), None, None)
    logs = np.log(pairs)
    reference, other = np.exp(logs.mean(axis=0)).tolist()
    own = (logs[:, 1] - logs[:, 0]).tolist()
    on_scale = math.fsum(own) / len(own)
    effect = replace(effect, estimate=math.expm1(on_scale), log_estimate=on_scale)
    if len(own) > 1:
        by_set = zip(sets, map(math.expm1, own), strict=True)
        effect = replace(effect, by_set=dict(by_set))
    if all(each.is_identical for each in samples):
        effect = replace(effect, estimate=0.0, low=0.0, high=0.0, method=IDENTICAL, identical=True)
        return Tail(replace(effect, log_estimate=None, by_set=None), reference, other)
    if why_not is not None:
        return Tail(replace(effect, reason=why_not), reference, other)
    return Tail(_tested(effect, tail_test(samples, q, is_joint=is_joint)), reference, other)


def num_clusters(sets: Sequence[Sample], is_joint: bool) -> int:
    """Clusters that have rows; where they are joint, in any of the sets."""
    used = [each.sizes > 0 for each in sets]
    if is_joint and used:
        return int(np.logical_or.reduce(used).sum())
    return sum(int(each.sum()) for each in used)


def _tested(effect: Effect, test: TailTest) -> Effect:
    effect = replace(effect, p=test.p, method=test.name)
    low, high = (math.expm1(end) if end < 700 else math.inf for end in test.interval())
    if not (math.isfinite(low) and low > -1 and math.isfinite(high)):
        return replace(effect, method=NONE, reason=ONE_HOLDS_ALL)
    estimate = effect.estimate or 0.0
    return replace(effect, low=min(low, estimate), high=max(high, estimate))


@dataclass(frozen=True, eq=False)
class TailTest:
    """Of one quantile of one or several data sets, on the log scale."""

    sets: tuple[Sample, ...]
    q: float
    is_joint: bool = False

    @property
    def is_studentised(self) -> bool:
        return len(self.sets) > 1 and not self.is_joint

    @property
    def name(self) -> str:
        start = "studentised cluster swaps" if self.is_studentised else "cluster swaps"
        widths = {each.width for each in self.sets if isinstance(each, Bins)}
        return f"{start}, bins of {max(widths) * 100:g} %" if widths else start

    @cached_property
    def estimate(self) -> float:
        logs = np.log([each.quantiles(self.q) for each in self.sets])
        return float((logs[:, 1] - logs[:, 0]).mean())

    @cached_property
    def _swaps(self) -> Counts:
        """(clusters, swaps) of 0 and 1."""
        sizes = [each.num_clusters for each in self.sets]
        return swaps_of(sizes[0] if self.is_joint else sum(sizes))

    @property
    def _rank(self) -> int:
        """Swaps as extreme as what was seen that keep a θ: (k + 1) / (N + 1) > 5 %."""
        return int(LEVEL * (self._swaps.shape[1] + 1) + 1e-9)

    @cached_property
    def p(self) -> float:
        """Two-sided p of no effect; exact to the draw where it is at most 5 %."""
        first, rest = self._swaps[:, :_BATCH], self._swaps[:, _BATCH:]
        extreme = self._excess(0.0, first) >= 0
        # Only swaps in random order may be left off, and not those that are counted through.
        is_drawn = self._swaps.shape[1] == MOST_SWAPS
        if not is_drawn or extreme.sum() < self._rank:
            extreme = np.concatenate([extreme, self._excess(0.0, rest) >= 0])
        counts, num_tried = np.cumsum(extreme), len(extreme)
        if is_drawn and counts[-1] >= self._rank:
            num_tried = 1 + int(np.searchsorted(counts, self._rank))
        return (int(extreme[:num_tried].sum()) + 1) / (num_tried + 1)

    def interval(self) -> tuple[float, float]:
        """The 95 % interval on the log scale; ends may be infinite."""
        if self._rank == 0:
            return -math.inf, math.inf
        middle = self.estimate
        some = self._swaps[:, :_BATCH]
        spread = self._excess(middle, some)
        widest = largest(spread, math.ceil(self._rank * some.shape[1] / self._swaps.shape[1]))
        if widest <= 2 * ROUNDING and largest(self._excess(middle, self._swaps), 1) <= 2 * ROUNDING:
            return middle, middle  # the same change in every cluster
        low, high = (
            Search(partial(self._excess_at, sign), self._swaps, self._rank).end(widest)
            for sign in (-1, 1)
        )
        # No effect is in it exactly where p says so, whatever is left of rounding.
        distance, is_kept = abs(middle), self.p > LEVEL
        if middle > 0:
            low = max(low, distance) if is_kept else min(low, distance * (1 - 1e-9))
        elif middle < 0:
            high = max(high, distance) if is_kept else min(high, distance * (1 - 1e-9))
        return middle - low, middle + high

    def _excess_at(self, sign: int, distance: float, swaps: Counts) -> Floats:
        return self._excess(self.estimate + sign * distance, swaps)

    def _excess(self, theta: float, swaps: Counts) -> Floats:
        """By how much each swap is as extreme as what was seen, in logs."""
        split = [with_none(own) for own in self._split(swaps)]
        near = [
            _Near(each, theta, own, (each.size - 1) * (1 - self.q) + 1, self.is_studentised)
            for each, own in zip(self.sets, split, strict=True)
        ]
        # Few at a time, so that they stay in the processor's cache.
        parts = [
            self._sizes(near, [own[:, start : start + _AT_ONCE] for own in split])
            for start in range(0, split[0].shape[1], _AT_ONCE)
        ]
        sizes, errors = (np.concatenate(each) for each in zip(*parts, strict=True))
        if self.is_studentised:
            with np.errstate(all="ignore"):
                scaled = np.where(errors > 0, sizes * errors[0] / errors, math.inf)
            sizes = np.where(sizes <= ROUNDING, 0.0, scaled)
        return np.asarray(sizes[1:] - sizes[0] + ROUNDING)

    def _sizes(self, near: Sequence[_Near], swaps: Sequence[Counts]) -> tuple[Floats, Floats]:
        """The statistic's size after each swap, in logs, and its error (nothing where none is
        needed)."""
        middle, variance = np.zeros(swaps[0].shape[1]), np.zeros(swaps[0].shape[1])
        for each, own in zip(near, swaps, strict=True):
            middle += each.log_ratio(own)
            if self.is_studentised:
                variance += each.variance(own)
        return np.abs(np.nan_to_num(middle, nan=0.0)) / len(self.sets), np.sqrt(variance)

    def _split(self, swaps: Counts) -> Sequence[Counts]:
        if self.is_joint:
            return [swaps] * len(self.sets)
        return np.split(swaps, np.cumsum([each.num_clusters for each in self.sets])[:-1])


def tail_test(sets: Sequence[Sample], q: float, *, is_joint: bool = False) -> TailTest:
    """With many clusters joined, and many rows in bins, so that a swap costs little."""
    most = _MOST_CLUSTERS if is_joint else max(2, _MOST_CLUSTERS // len(sets))
    made = [
        binned(each, _FINE) if isinstance(each, Rows) and each.size > _MOST_EXACT else each
        for each in sets
    ]
    return TailTest(tuple(each.joined(most) for each in made), q, is_joint)


@lru_cache(maxsize=8)
def swaps_of(size: int) -> Counts:
    """(clusters, swaps) of 0 and 1: every swap (but none) where there are few, or 2,000 at random.

    To swap the others instead only turns the statistic's sign, so the first cluster keeps its sides
    where all are tried. They are alike each time.
    """
    if 2 ** (size - 1) - 1 <= MOST_SWAPS:
        numbers = np.arange(1, 2 ** (size - 1), dtype=np.int64)
        bits = numbers >> np.arange(size - 1)[:, None] & 1
        every = np.concatenate([np.zeros((1, len(numbers))), bits])
        return np.asarray(every, dtype=np.float32)
    drawn = np.random.default_rng(0).integers(0, 2, (size, MOST_SWAPS))
    return np.asarray(drawn, dtype=np.float32)


class _Near:
    """What is near the quantile of one data set, with θ on the reference."""

    def __init__(
        self, sample: Sample, theta: float, swaps: Counts, rank: float, with_error: bool
    ) -> None:
        self.sample, self.rank = sample, rank
        self.levels = reaching(sample, theta, swaps, rank)
        if with_error:
            self._weigh(self.levels, sample.sizes)

    def _weigh(self, levels: Levels, sizes: Floats) -> None:
        total, num = float(sizes.sum()), int((sizes > 0).sum())
        value, density = _density(levels, 2 * self.rank, 2 * total)
        # All rows that are as large, so that the order of equal ones decides nothing.
        place = int(np.searchsorted(-levels.values, -value, side="right")) - 1
        beyond = -levels.apart[place].astype(np.float64)
        if isinstance(self.sample, Bins) and place + 1 < len(levels.total):
            rows = levels.total[place : place + 2].astype(np.float64)
            share = (2 * self.rank - rows[0]) / max(rows[1] - rows[0], 1.0)
            beyond -= min(max(share, 0.0), 1.0) * (levels.apart[place + 1] - levels.apart[place])
        self.parts = np.stack([beyond / total, beyond * sizes])
        self.squares = float(beyond @ beyond), float(sizes @ sizes)
        self.scale = num / max(1, num - 1) / (total * density) ** 2

    def log_ratio(self, swaps: Counts) -> Floats:
        other, reference = self.sample.after(self.levels, swaps, self.rank)
        with np.errstate(all="ignore"):
            return np.asarray(np.log(other / reference))

    def variance(self, swaps: Counts) -> Floats:
        """Of the log ratio after each swap: of how clusters differ in rows beyond the quantile."""
        mean, crossed = self.parts @ (1.0 - 2.0 * swaps)
        squares, sizes = self.squares
        spread = squares - 2 * mean * crossed + mean**2 * sizes
        return np.asarray(self.scale * np.where(spread <= ROUNDING * squares, 0.0, spread))


def _density(levels: Levels, rank: float, size: float) -> tuple[float, float]:
    """The value of that rank of both sides together, and the density of logs there.

    By the distance of values half as far out and half as far in again: Siddiqui, Journal of
    Research of the NBS 64B, 1960.
    """
    ranks = np.array([rank / 2, rank, 1.5 * rank])
    upper, value, lower = np.interp(ranks, levels.total, levels.values)
    distance = math.log(upper / max(lower, SMALLEST * upper))
    return float(value), rank / size / max(distance, 1e-6)
