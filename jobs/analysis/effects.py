"""The effect of one configuration against another on paired numbers, with its interval.

The unit is the prompt: the mean over the seeds that both configurations completed. Units are paired
(entry i of `a`, the reference, and of `b` belong to one prompt). Clusters are groups of units that
share noise: the shard for time, memory and throughput, the dataset's cluster column for the rest.
Strata are data sets: an effect is the mean of theirs on the scale of the test, with equal weights
unless others are given.
p and interval are of one test, which swaps the sides of clusters: `jobs.analysis.swaps`. No input
makes these functions raise or warn: what cannot be said is null, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from jobs.analysis.intervals import (
    JACKKNIFE,
    NO_SPREAD,
    ONE_CLUSTER,
    ONE_HOLDS_ALL,
    Floats,
    Statistic,
    jackknife,
    log_rate_ratio,
    mean,
)
from jobs.analysis.swaps import MOST_SWAPS, NUM_SWAPS, SwapTest, fewest_clusters, swap_test

Numbers = Sequence[float | None] | npt.NDArray[np.float64]
Clusters = Sequence[Hashable] | None


@dataclass(frozen=True)
class Strata:
    """Which data set each unit is of, and how much each counts; those not named count 1."""

    names: Sequence[Hashable]
    weights: Mapping[str, float] = field(default_factory=dict)


IDENTICAL, NONE = "identical", "none"
NO_PAIRS = "there are no pairs"
ZERO_REFERENCE, ZERO_TOTAL = "the reference's total is zero", "a total is zero"
NEGATIVE = "negative numbers have no ratio of totals"
UNBOUNDED = "units differ by so much that the change, or its interval, has no bound"
EQUAL_MEANS = "means are equal, and rows are not"
ONE_IN_A_SET = "a data set has one unit alone, which says nothing of its spread"
_LARGEST = 1e100  # of a number that can be meant; squares of it are finite


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
    """Standard error by the jackknife: of the log of 1 + a relative effect, else in its unit. Plans
    go by it; verdicts do not."""
    p: float | None = None
    """Two-sided p of no effect."""
    df: int | None = None
    """Degrees of freedom of the standard error: clusters less strata."""
    log_estimate: float | None = None
    """The estimate on the scale of `se`."""
    by_set: dict[str, float] | None = None
    """Data set -> its own effect; None where there is one."""
    interaction_p: float | None = None
    """p that the effect is the same in every data set."""
    weights: dict[str, float] | None = None
    """Data set -> what its effect counts; they sum to 1. None where there is one."""
    largest_share: float | None = None
    """Of a side's total in a data set, what one cluster has of it at the most."""
    largest: str | None = None
    """That cluster: a shard, a prompt or a group of them, with its data set."""
    test: SwapTest | None = field(default=None, compare=False, repr=False)
    """What `p` and the interval are of, for other levels and other θ."""

    @property
    def includes_zero(self) -> bool | None:
        """Whether no difference is shown; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0.0 <= self.high

    @property
    def is_uniform(self) -> bool:
        """Whether every unit shows the same change, so that the interval is a point."""
        if self.low is None or self.high is None or self.identical:
            return False
        return self.high - self.low <= 1e-9 * (1 + abs(self.low))

    def withheld(self, reason: str) -> Effect:
        """The same estimate without an interval, for a design that cannot support one."""
        return replace(
            self,
            low=None,
            high=None,
            method=NONE,
            reason=reason,
            se=None,
            p=None,
            df=None,
            test=None,
        )

    def as_dict(self) -> dict[str, Any]:
        """What is written of it: all but the test itself."""
        return {name: getattr(self, name) for name in WRITTEN}

    def not_identical(self) -> Effect:
        """Of equal means of numbers that differ: no difference is seen, with nothing to test by."""
        return replace(self, low=None, high=None, method=NONE, identical=False, reason=EQUAL_MEANS)

    def at(self, confidence: float) -> tuple[float, float] | None:
        """The interval at another confidence, on the test's scale; None where it has no end."""
        if self.identical:
            return 0.0, 0.0
        if self.test is None:
            return None
        # 40 swaps beyond each end, so that an end is known to a sixth of its tail.
        num_swaps = max(NUM_SWAPS, min(MOST_SWAPS, math.ceil(80 / (1 - confidence))))
        low, high = self.test.interval(confidence, num_swaps)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def of_totals(self) -> Effect:
        """The effect on the sums over all data sets, in which each counts as much as it is."""
        if self.test is None or len(self.test.sets) == 1:
            return self
        test = self.test.pooled()
        on_scale = test.estimate()
        estimate = math.expm1(on_scale) if test.is_log else on_scale
        return replace(
            self,
            estimate=estimate,
            log_estimate=on_scale,
            test=test,
            method=test.name,
            p=test.p(),
            low=None,
            high=None,
            by_set=None,
            weights=None,
            interaction_p=None,
        )

    def bounded(self) -> Effect:
        """The same, but without what is too large to be written."""
        if self.estimate is not None and not math.isfinite(self.estimate):
            return replace(self.withheld(UNBOUNDED), estimate=None, log_estimate=None)
        if self.high is not None and not math.isfinite(self.high):
            return self.withheld(UNBOUNDED)
        return self


WRITTEN = tuple(each.name for each in fields(Effect) if each.name != "test")


def ratio_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
    strata: Strata | Clusters = None,
) -> Effect:
    """sum(b) / sum(a) - 1: what the whole workload costs more under `b`, as a fraction.

    For quantities that are never negative (tokens, seconds, bytes).
    """
    pairs = _pairs([a, b], clusters, strata)
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
    ones = np.ones_like(left)
    return replace(pairs, columns=[left, ones, right, ones]).tested(True, confidence)


def difference_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
    strata: Strata | Clusters = None,
) -> Effect:
    """mean(b - a) in the numbers' own unit, for scores and bits per byte."""
    pairs = _pairs([a, b], clusters, strata)
    left, right = pairs.columns
    if np.array_equal(left, right):
        return pairs.identical()
    ones = np.ones_like(left)
    return replace(pairs, columns=[left, ones, right, ones]).tested(False, confidence)


def share_effect(
    a: Sequence[float], b: Sequence[float], sizes: Sequence[float], clusters: Clusters = None
) -> Effect:
    """(sum(b) - sum(a)) / sum(sizes), for counts out of so many rows: shares of rows.

    p is exact where the counts allow: `jobs.analysis.signs`.
    """
    pairs = _pairs([a, sizes, b, sizes], clusters)
    if np.array_equal(pairs.columns[0], pairs.columns[2]):
        return pairs.identical()
    return pairs.tested(False, 0.95)


def mean_effect(
    values: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """The mean of one configuration's own numbers, with the jackknife's interval: it has no other
    side to be swapped with. Its p, that the mean is 0, is of the same t."""
    pairs = _pairs([values], clusters)
    if pairs.size == 0:
        return pairs.effect(None, NO_PAIRS)
    column = pairs.columns[0]
    estimate = float(column.mean())
    found = jackknife(np.stack(pairs.totals([column, np.ones_like(column)])), mean, confidence)
    if isinstance(found, str):
        return pairs.effect(estimate, found)
    effect = pairs.effect(estimate, None, (found.low, found.high), JACKKNIFE)
    df = effect.num_clusters - 1
    p = 2 * float(special.stdtr(df, -abs(estimate) / found.se))
    return replace(effect, se=found.se, p=p, df=df, log_estimate=estimate)


def geometric_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
    strata: Strata | Clusters = None,
) -> Effect:
    """exp(mean(log(b / a))) - 1: the typical prompt's relative change.

    Pairs with a zero on either side (empty completions) have no logarithm; they are left out and
    counted.
    """
    pairs = _pairs([a, b], clusters, strata)
    left, right = pairs.columns
    keep = (left > 0) & (right > 0)
    clusters = pairs.groups[keep].tolist()
    kept = [pairs.names[i] for i in pairs.strata[keep]] if pairs.names else None
    sets = None if kept is None else Strata(kept, pairs.weights)
    found = difference_effect(np.log(left[keep]), np.log(right[keep]), clusters, confidence, sets)
    relative = replace(
        found,
        estimate=_expm1(found.estimate),
        by_set=found.by_set and {name: math.expm1(e) for name, e in found.by_set.items()},
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
    strata: Strata | Clusters = None,
) -> Effect:
    """The relative change of a rate; each side is (amounts, times), one entry per unit.

    (sum(b amounts) / sum(b times)) / (sum(a amounts) / sum(a times)) - 1, a double ratio, with the
    interval made on the log scale.
    """
    pairs = _pairs([*a, *b], clusters, strata)
    columns = pairs.columns
    if pairs.size and min(column.min() for column in columns) < 0:
        return pairs.effect(None, NEGATIVE)
    if pairs.size and min(column.sum() for column in columns) == 0:
        return pairs.effect(None, ZERO_TOTAL)
    if all(np.array_equal(columns[i], columns[i + 2]) for i in range(2)):
        return pairs.identical()
    return pairs.tested(True, confidence)


def cluster_totals(
    columns: Sequence[Numbers], clusters: Clusters = None
) -> tuple[list[Hashable], Floats]:
    """What statistics of several quantities are made of, of units whose every number is usable.

    The clusters (units' places where none are given) in the order in which they are first seen, and
    the totals of each: (quantities, clusters).
    """
    pairs = _pairs(columns, clusters)
    names = range(len(columns[0])) if clusters is None else list(dict.fromkeys(clusters))
    return [names[i] for i in np.unique(pairs.groups)], np.stack(pairs.totals(pairs.columns))


@dataclass(frozen=True)
class _Pairs:
    """The usable units: one array per quantity, and each unit's cluster and stratum by number."""

    columns: list[Floats]
    groups: npt.NDArray[np.int64]
    strata: npt.NDArray[np.int64]
    num_left_out: int
    names: Sequence[Hashable] = ()
    """Of the strata, by number."""
    weights: Mapping[str, float] = field(default_factory=dict)
    clusters: Sequence[Hashable] | None = None
    """Names of the groups, by number; None where every unit is one."""

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

    def totals(self, columns: Sequence[Floats]) -> list[Floats]:
        """Of each cluster."""
        _, numbers = np.unique(self.groups, return_inverse=True)
        return [np.bincount(numbers, weights=c).astype(np.float64) for c in columns]

    @property
    def is_joint(self) -> bool:
        """Whether a cluster is of several strata, as a round of all data sets is."""
        both = np.unique(np.stack([self.groups, self.strata]), axis=1).shape[1]
        return bool(both > len(np.unique(self.groups)))

    def sets(self) -> list[Floats]:
        """Totals of each stratum's clusters; where clusters are joint, of all clusters in each."""
        _, groups = np.unique(self.groups, return_inverse=True)
        size, parts = int(groups.max(initial=-1)) + 1, []
        for stratum in np.unique(self.strata):
            own = self.strata == stratum
            numbers, num = groups[own], size
            if not self.is_joint:
                names, numbers = np.unique(numbers, return_inverse=True)
                num = len(names)
            totals = [np.bincount(numbers, weights=c[own], minlength=num) for c in self.columns]
            parts.append(np.stack(totals).astype(np.float64))
        return parts

    def by_set(self, test: SwapTest) -> dict[str, float] | None:
        if len(test.sets) < 2:
            return None
        with np.errstate(over="ignore"):
            found = np.expm1(test.estimates()) if test.is_log else np.array(test.estimates())
        return dict(zip(self.present, found.tolist(), strict=True))

    @property
    def present(self) -> list[str]:
        """The strata that have a unit, in the order of `sets`."""
        return [str(self.names[i]) for i in np.unique(self.strata)] if self.names else [""]

    def counted(self) -> list[float]:
        """What each of them counts, before they are made to sum to 1."""
        return [float(self.weights.get(name, 1.0)) for name in self.present]

    def largest(self) -> tuple[float | None, str | None]:
        """The largest share that one cluster has of a side's total in a stratum, and its name."""
        found: tuple[float, int, int] = (0.0, -1, -1)
        amounts = [self.columns[0], self.columns[len(self.columns) // 2]]
        for stratum in np.unique(self.strata):
            own = self.strata == stratum
            for amount in amounts:
                totals = np.bincount(self.groups[own], weights=np.abs(amount[own]))
                place, whole = int(totals.argmax()), float(totals.sum())
                if whole > 0:
                    found = max(found, (float(totals[place]) / whole, place, int(stratum)))
        if found[1] < 0:
            return None, None
        name = found[1] if self.clusters is None else self.clusters[found[1]]
        stratum_name = str(self.names[found[2]]) if self.names else None
        return found[0], cluster_name(name, stratum_name)

    def tested(self, is_log: bool, confidence: float) -> Effect:
        """Of four columns: the reference's amounts and what divides them, then the other side's."""
        sets = self.sets()
        with np.errstate(over="ignore"):
            test = swap_test(sets, is_log, self.counted(), is_joint=self.is_joint)
            on_scale = test.estimate()
            estimate = float(np.expm1(on_scale)) if is_log else on_scale
        if not math.isfinite(on_scale):
            # A data set in which one side has nothing leaves no mean of ratios.
            return self.effect(None, ZERO_TOTAL)
        share, name = self.largest() if is_log else (None, None)
        effect = replace(
            self.effect(estimate),
            method=test.name,
            by_set=self.by_set(test),
            weights=dict(zip(self.present, test.weights, strict=True)) if len(sets) > 1 else None,
            largest_share=share,
            largest=name,
        )
        if effect.num_clusters < 2:
            return replace(effect, reason=ONE_CLUSTER, method=NONE).bounded()
        if len(sets) > 1 and min(each.shape[1] for each in sets) < 2:
            return replace(effect, reason=ONE_IN_A_SET, method=NONE).bounded()
        se, df = _jackknife_error(sets, test.weights, is_log)
        low, high = test.interval(confidence)
        p = _beyond_gaps(test, low, high, 1 - confidence)
        effect = replace(
            effect,
            p=p,
            se=se,
            df=df,
            log_estimate=on_scale,
            interaction_p=test.interaction_p(),
            test=test,
        )
        if not (math.isfinite(low) and math.isfinite(high)):
            fewest = fewest_clusters(1 - confidence)
            few = f"{effect.num_clusters} units, and {fewest} are needed for an interval"
            reason = few if effect.num_clusters < fewest else ONE_HOLDS_ALL
            return replace(effect, reason=reason, method=NONE).bounded()
        low, high = _agreeing(low, high, on_scale, p, 1 - confidence)
        if is_log:
            with np.errstate(over="ignore"):
                low, high = float(np.expm1(low)), float(np.expm1(high))
        # Rounding on the way to logarithms and back must not part an estimate from its interval.
        return replace(effect, low=min(low, estimate), high=max(high, estimate)).bounded()


_PLACES = 17


def _beyond_gaps(test: SwapTest, low: float, high: float, level: float) -> float:
    """p of no effect; where farther effects are kept and only this one is not, the largest of
    theirs.

    The θ that swaps of few clusters of several sets keep may have gaps, and an interval is their
    hull: no effect in such a gap is not shown to be wrong.
    """
    p = test.p()
    if p > level or not low <= 0 <= high or test.is_plain or not math.isfinite(high - low):
        return p
    end = low if test.estimate() > 0 else high
    return max(p, *(test.p(float(theta)) for theta in np.linspace(0, end, _PLACES)))


def _agreeing(
    low: float, high: float, estimate: float, p: float, level: float
) -> tuple[float, float]:
    """An exact p, and bounds of swaps that are drawn, may part by the draw alone: p decides."""
    if p <= level and low <= 0 <= high and estimate != 0:
        least = math.nextafter(0.0, estimate)
        return (least, high) if estimate > 0 else (low, least)
    if p > level and not low <= 0 <= high:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def cluster_name(cluster: Hashable, stratum: str | None) -> str:
    """As people read it: `shard 3 of support`, `prompt 17 of support`, `round 2 of support`."""
    kind, name = "unit", cluster
    if isinstance(cluster, tuple) and len(cluster) == 2:
        kind, name = ("round" if cluster[0] == "round" else "shard"), cluster[1]
        if isinstance(name, str):
            kind, _, name = name.partition(" ")
    return f"{kind} {name}" + (f" of {stratum}" if stratum else "")


def _jackknife_error(
    sets: Sequence[Floats], weights: Sequence[float], is_log: bool
) -> tuple[float | None, int]:
    """Of the mean of the sets' effects, with its degrees of freedom; None where it has none."""
    statistic: Statistic = _log_of_rates if is_log else _difference_of_means
    found = [jackknife(each[:, each.any(axis=0)], statistic, 0.95) for each in sets]
    errors = [0.0 if each == NO_SPREAD else each for each in found]
    squares = [each if isinstance(each, (str, float)) else each.se for each in errors]
    df = sum(int(each.any(axis=0).sum()) - 1 for each in sets)
    if any(isinstance(each, str) for each in squares) or not any(squares):
        return None, df
    parts = zip(weights, squares, strict=True)
    return math.sqrt(math.fsum((weight * float(each)) ** 2 for weight, each in parts)), df


def _log_of_rates(totals: Floats) -> Floats:
    return log_rate_ratio(totals)


def _difference_of_means(totals: Floats) -> Floats:
    return mean(totals[2:]) - mean(totals[:2])


def _pairs(
    columns: Sequence[Numbers], clusters: Clusters, strata: Strata | Clusters = None
) -> _Pairs:
    """What is usable of the columns: units whose every number is there, and is one."""
    arrays = [np.array([math.nan if v is None else v for v in c], np.float64) for c in columns]
    usable = np.logical_and.reduce([np.abs(array) <= _LARGEST for array in arrays])  # NaN is not
    groups = np.arange(len(usable), dtype=np.int64) if clusters is None else _numbered(clusters)
    given = strata if isinstance(strata, Strata) else Strata(strata or ())
    sets = _numbered(given.names) if given.names else np.zeros(len(usable), dtype=np.int64)
    return _Pairs(
        [array[usable] for array in arrays],
        groups[usable],
        sets[usable],
        int((~usable).sum()),
        list(dict.fromkeys(given.names)),
        given.weights,
        None if clusters is None else list(dict.fromkeys(clusters)),
    )


def _numbered(names: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def _expm1(value: float | None) -> float | None:
    if value is None:
        return None
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
