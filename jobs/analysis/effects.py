"""The effect of one configuration against another on paired numbers, with its interval.

The unit is the prompt: the mean over the seeds that both configurations completed. Units are paired
(entry i of `a`, the reference, and of `b` belong to one prompt). Clusters are groups of units that
share noise: the shard for time, memory and throughput, the dataset's cluster column for the rest.
No input makes these functions raise or warn: what cannot be said is null, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from jobs.analysis.intervals import (
    JACKKNIFE,
    NO_SPREAD,
    Floats,
    Jackknifed,
    Statistic,
    jackknife,
    log_rate_ratio,
    log_ratio,
    mean,
)
from jobs.analysis.permutation import sign_flip_p

Numbers = Sequence[float | None] | npt.NDArray[np.float64]
Clusters = Sequence[Hashable] | None
IDENTICAL, NONE = "identical", "none"
NO_PAIRS = "there are no pairs"
ZERO_REFERENCE, ZERO_TOTAL = "the reference's total is zero", "a total is zero"
NEGATIVE = "negative numbers have no ratio of totals"
UNBOUNDED = "units differ by so much that the change, or its interval, has no bound"
_LARGEST = 1e100  # of a number that can be meant; squares of it are finite


FEWEST_FOR_SIGNS = 14
"""Clusters from which sign flips decide: 2^13 patterns, so that p can be as small as 0.00012."""


@dataclass(frozen=True)
class Effect:
    """An estimate with its confidence interval; relative effects are fractions (0.02 is +2 %)."""

    estimate: float | None
    low: float | None
    high: float | None
    num_units: int
    num_clusters: int
    method: str
    reason: str | None = None
    """Why there is no estimate or no interval."""
    identical: bool = False
    """Every pair is exactly equal, so that the estimate and both bounds are exactly 0."""
    num_left_out: int = 0
    """Pairs that could not be used: a number is missing, not finite (or beyond 1e100), or has no
    logarithm."""
    se: float | None = None
    """Standard error by the jackknife: of the log of 1 + a relative effect, else in its unit."""
    p: float | None = None
    """Two-sided p of no effect, by sign flips of the clusters: `jobs.analysis.permutation`."""
    df: int | None = None
    """Degrees of freedom of the standard error: clusters - 1."""
    log_estimate: float | None = None
    """The estimate on the scale of `se`."""

    @property
    def p_of_verdict(self) -> float | None:
        """What verdicts go by: sign flips, or the interval's t where their patterns are few.

        With 8 clusters no pattern of signs is rarer than 1 in 128, which no family of seven tests
        survives, whatever the difference. At 8 and 10 clusters the interval is calibrated as well
        (`benchmarks/statistics.py`).
        """
        if self.num_clusters >= FEWEST_FOR_SIGNS or not self.se or not self.df:
            return self.p
        if self.log_estimate is None:
            return self.p
        return 2 * float(special.stdtr(self.df, -abs(self.log_estimate) / self.se))

    @property
    def includes_zero(self) -> bool | None:
        """Whether no difference is shown; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0.0 <= self.high

    def withheld(self, reason: str) -> Effect:
        """The same estimate without an interval, for a design that cannot support one."""
        return replace(
            self, low=None, high=None, method=NONE, reason=reason, se=None, p=None, df=None
        )

    def bounded(self) -> Effect:
        """The same, but without what is too large to be written."""
        if self.estimate is not None and not math.isfinite(self.estimate):
            return replace(self.withheld(UNBOUNDED), estimate=None, log_estimate=None)
        if self.high is not None and not math.isfinite(self.high):
            return self.withheld(UNBOUNDED)
        return self


def ratio_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """sum(b) / sum(a) - 1: what the whole workload costs more under `b`, as a fraction.

    For quantities that are never negative (tokens, seconds, bytes). The interval is made on the log
    scale. Sources: `jobs.analysis.intervals`.
    """
    pairs = _pairs([a, b], clusters)
    left, right = pairs.columns
    if pairs.size and min(left.min(), right.min()) < 0:
        return pairs.effect(None, NEGATIVE)
    if pairs.size and left.sum() == 0 < right.sum():
        return pairs.effect(None, ZERO_REFERENCE)
    if np.array_equal(left, right):
        return pairs.identical()
    with np.errstate(over="ignore"):
        estimate = float(right.sum() / left.sum()) - 1
    if right.sum() == 0:
        return pairs.effect(estimate, ZERO_TOTAL)
    return pairs.relative(estimate, log_ratio, confidence)


def difference_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """mean(b - a) in the numbers' own unit, for scores and bits per byte."""
    pairs = _pairs([a, b], clusters)
    left, right = pairs.columns
    if np.array_equal(left, right):
        return pairs.identical()
    differences = replace(pairs, columns=[right - left, np.ones_like(left)])
    return differences.absolute(float((right - left).mean()), confidence)


def mean_effect(
    values: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """The mean of one configuration's own numbers, with the same intervals as a difference."""
    pairs = _pairs([values], clusters)
    if pairs.size == 0:
        return pairs.effect(None, NO_PAIRS)
    column = pairs.columns[0]
    with_sizes = replace(pairs, columns=[column, np.ones_like(column)])
    return with_sizes.absolute(float(column.mean()), confidence)


def geometric_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """exp(mean(log(b / a))) - 1: the typical prompt's relative change.

    Pairs with a zero on either side (empty completions) have no logarithm; they are left out and
    counted.
    """
    pairs = _pairs([a, b], clusters)
    left, right = pairs.columns
    keep = (left > 0) & (right > 0)
    clusters = pairs.groups[keep].tolist()
    found = difference_effect(np.log(left[keep]), np.log(right[keep]), clusters, confidence)
    relative = replace(
        found,
        estimate=_expm1(found.estimate),
        low=_expm1(found.low),
        high=_expm1(found.high),
        num_left_out=pairs.num_left_out + int((~keep).sum()),
    )
    return relative.bounded()


def rate_effect(
    a: tuple[Numbers, Numbers],
    b: tuple[Numbers, Numbers],
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """The relative change of a rate; each side is (amounts, times), one entry per unit.

    (sum(b amounts) / sum(b times)) / (sum(a amounts) / sum(a times)) - 1, a double ratio, with the
    interval made on the log scale.
    """
    pairs = _pairs([*a, *b], clusters)
    columns = pairs.columns
    if pairs.size and min(column.min() for column in columns) < 0:
        return pairs.effect(None, NEGATIVE)
    if pairs.size and min(column.sum() for column in columns) == 0:
        return pairs.effect(None, ZERO_TOTAL)
    if all(np.array_equal(columns[i], columns[i + 2]) for i in range(2)):
        return pairs.identical()
    sums = np.array([column.sum() for column in columns])
    estimate = _expm1(float(log_rate_ratio(sums)))
    assert estimate is not None
    return pairs.relative(estimate, log_rate_ratio, confidence)


def cluster_totals(
    columns: Sequence[Numbers], clusters: Clusters = None
) -> tuple[list[Hashable], Floats]:
    """What statistics of several quantities are made of, of units whose every number is usable.

    The clusters (units' places where none are given) in the order in which they are first seen, and
    the totals of each: (quantities, clusters).
    """
    pairs = _pairs(columns, clusters)
    names = range(len(columns[0])) if clusters is None else list(dict.fromkeys(clusters))
    return [names[i] for i in np.unique(pairs.groups)], pairs.totals()


@dataclass(frozen=True)
class _Pairs:
    """The usable units: one array per quantity, and each unit's cluster number."""

    columns: list[Floats]
    groups: npt.NDArray[np.int64]
    num_left_out: int

    @property
    def size(self) -> int:
        return len(self.groups)

    def effect(
        self,
        estimate: float | None,
        reason: str | None = None,
        bounds: tuple[float, float] | tuple[None, None] = (None, None),
        method: str = NONE,
    ) -> Effect:
        low, high = bounds
        clusters = len(np.unique(self.groups))
        left_out = self.num_left_out
        return Effect(
            estimate, low, high, self.size, clusters, method, reason, num_left_out=left_out
        )

    def identical(self) -> Effect:
        if self.size == 0:
            return self.effect(None, NO_PAIRS)
        return replace(self.effect(0.0, None, (0.0, 0.0), IDENTICAL), identical=True)

    def totals(self) -> Floats:
        _, numbers = np.unique(self.groups, return_inverse=True)
        return np.stack([np.bincount(numbers, weights=column) for column in self.columns])

    def relative(
        self,
        estimate: float,
        statistic: Statistic,
        confidence: float,
    ) -> Effect:
        """`statistic` is the log of 1 + estimate."""
        found = jackknife(self.totals(), statistic, confidence)
        if isinstance(found, str):
            on_scale = float(statistic(self.totals().sum(axis=1)))
            return self.untested(estimate, found, on_scale).bounded()
        with np.errstate(over="ignore"):
            bounds = float(np.expm1(found.low)), float(np.expm1(found.high))
        return self.tested(estimate, bounds, found).bounded()

    def absolute(self, estimate: float, confidence: float) -> Effect:
        found = jackknife(self.totals(), mean, confidence)
        if isinstance(found, str):
            return self.untested(estimate, found, estimate)
        return self.tested(estimate, (found.low, found.high), found)

    def untested(self, estimate: float, reason: str, on_scale: float) -> Effect:
        """No interval; but signs can be flipped of changes that are the same in every unit."""
        effect = self.effect(estimate, reason)
        if reason != NO_SPREAD:
            return effect
        df = effect.num_clusters - 1
        p = sign_flip_p(np.full(effect.num_clusters, on_scale))
        return replace(effect, p=p, df=df, log_estimate=on_scale)

    def tested(self, estimate: float, bounds: tuple[float, float], found: Jackknifed) -> Effect:
        effect = self.effect(estimate, None, bounds, JACKKNIFE)
        return replace(
            effect,
            se=found.se,
            p=sign_flip_p(found.pseudo_values),
            df=effect.num_clusters - 1,
            log_estimate=found.estimate,
        )


def _pairs(columns: Sequence[Numbers], clusters: Clusters) -> _Pairs:
    """What is usable of the columns: units whose every number is there, and is one."""
    arrays = [np.array([math.nan if v is None else v for v in c], np.float64) for c in columns]
    usable = np.logical_and.reduce([np.abs(array) <= _LARGEST for array in arrays])  # NaN is not
    if clusters is None:
        groups = np.arange(len(usable), dtype=np.int64)
    else:
        seen: dict[Hashable, int] = {}
        groups = np.array([seen.setdefault(c, len(seen)) for c in clusters], dtype=np.int64)
    return _Pairs([array[usable] for array in arrays], groups[usable], int((~usable).sum()))


def _expm1(value: float | None) -> float | None:
    if value is None:
        return None
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
