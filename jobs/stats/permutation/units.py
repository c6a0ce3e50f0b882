"""Paired units in their clusters and data sets, and the effect that is tested of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from jobs.stats.intervals import (
    NO_SPREAD,
    ONE_CLUSTER,
    ONE_HOLDS_ALL,
    Floats,
    Statistic,
    jackknife,
    log_rate_ratio,
    mean,
)
from jobs.stats.permutation.bounded import BoundedTest, bounded_test
from jobs.stats.permutation.effect import (
    IDENTICAL,
    NO_PAIRS,
    NONE,
    ONE_IN_A_SET,
    ZERO_TOTAL,
    Effect,
)
from jobs.stats.permutation.swaps import SwapTest, fewest_clusters, swap_test

Numbers = Sequence[float | None] | npt.NDArray[np.float64]
Clusters = Sequence[Hashable] | None
_LARGEST = 1e100  # of a number that can be meant; squares of it are finite


@dataclass(frozen=True)
class Strata:
    """Which data set each unit is of, and how much each counts; those not named count 1."""

    names: Sequence[Hashable]
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Units:
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

    def identical(self, is_bounded: bool = False) -> Effect:
        """Of pairs that are all equal; with what that shows of the rest, of four columns that are
        all within 0 and 1."""
        if self.size == 0:
            return self.effect(None, NO_PAIRS)
        found = replace(self.effect(0.0, None, (0.0, 0.0), IDENTICAL), identical=True)
        if not is_bounded:
            return found
        sets = self.sets()
        test = swap_test(sets, False, self.counted(), is_joint=self.is_joint)
        return replace(found, test=bounded_test(test, sets))

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

    def tested(self, is_log: bool, confidence: float, is_bounded: bool = False) -> Effect:
        """Of four columns: the reference's amounts and what divides them, then the other side's.

        `is_bounded` says that both sides' units are within 0 and 1, so that effects other than none
        are tested without more being taken for granted: `jobs.stats.permutation.bounded`.
        """
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
            test=bounded_test(test, sets) if is_bounded else test,
        )
        if not (math.isfinite(low) and math.isfinite(high)):
            fewest = fewest_clusters(1 - confidence)
            few = f"{effect.num_clusters} units, and {fewest} are needed for an interval"
            reason = few if effect.num_clusters < fewest else ONE_HOLDS_ALL
            return replace(effect, reason=reason, method=NONE).bounded()
        low, high = _agreeing(low, high, on_scale, p, 1 - confidence)
        if isinstance(effect.test, BoundedTest):
            low, high = effect.test.widened((low, high), confidence)
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


def usable(
    columns: Sequence[Numbers], clusters: Clusters, strata: Strata | Clusters = None
) -> Units:
    """What is usable of the columns: units whose every number is there, and is one."""
    arrays = [np.array([math.nan if v is None else v for v in c], np.float64) for c in columns]
    usable = np.logical_and.reduce([np.abs(array) <= _LARGEST for array in arrays])  # NaN is not
    groups = np.arange(len(usable), dtype=np.int64) if clusters is None else _numbered(clusters)
    given = strata if isinstance(strata, Strata) else Strata(strata or ())
    sets = _numbered(given.names) if given.names else np.zeros(len(usable), dtype=np.int64)
    return Units(
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
