"""The effect of one configuration against another on paired numbers, with its interval.

The unit is the prompt: the mean over the seeds that both configurations completed. Units are paired
(entry i of `a`, the reference, and of `b` belong to one prompt). Clusters are groups of units that
share noise: the shard for time, memory and throughput, the dataset's cluster column for the rest.
Strata are data sets: an effect is the mean of theirs on the scale of the test, with equal weights
unless others are given. p and interval are of one test, which swaps the sides of clusters:
`jobs.stats.permutation.swaps`. No input makes these functions raise or warn: what cannot be said is
null, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from jobs.stats.intervals import JACKKNIFE, Floats, jackknife, mean
from jobs.stats.permutation.effect import NEGATIVE, NO_PAIRS, ZERO_REFERENCE, ZERO_TOTAL, Effect
from jobs.stats.permutation.units import Clusters, Numbers, Strata, usable


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
    pairs = usable([a, b], clusters, strata)
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
    pairs = usable([a, b], clusters, strata)
    left, right = pairs.columns
    if np.array_equal(left, right):
        return pairs.identical()
    ones = np.ones_like(left)
    return replace(pairs, columns=[left, ones, right, ones]).tested(False, confidence)


def score_effect(
    a: Numbers,
    b: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
    strata: Strata | Clusters = None,
) -> Effect:
    """As `difference_effect`; where all numbers are within 0 and 1, what is said of differences
    other than none takes nothing else for granted: `jobs.stats.permutation.bounded`."""
    pairs = usable([a, b], clusters, strata)
    left, right = pairs.columns
    if not pairs.size or min(left.min(), right.min()) < 0 or max(left.max(), right.max()) > 1:
        return difference_effect(a, b, clusters, confidence, strata)
    ones = np.ones_like(left)
    pairs = replace(pairs, columns=[left, ones, right, ones])
    if np.array_equal(left, right):
        return pairs.identical(is_bounded=True)
    return pairs.tested(False, confidence, is_bounded=True)


def share_effect(
    a: Sequence[float], b: Sequence[float], sizes: Sequence[float], clusters: Clusters = None
) -> Effect:
    """(sum(b) - sum(a)) / sum(sizes), for counts out of so many rows: shares of rows.

    p is exact where the counts allow: `jobs.stats.permutation.signs`.
    """
    pairs = usable([a, sizes, b, sizes], clusters)
    if np.array_equal(pairs.columns[0], pairs.columns[2]):
        return pairs.identical(is_bounded=True)
    return pairs.tested(False, 0.95, is_bounded=True)


def mean_effect(
    values: Numbers,
    clusters: Clusters = None,
    confidence: float = 0.95,
) -> Effect:
    """The mean of one configuration's own numbers, with the jackknife's interval: it has no other
    side to be swapped with. Its p, that the mean is 0, is of the same t."""
    pairs = usable([values], clusters)
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
    pairs = usable([a, b], clusters, strata)
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
    pairs = usable([*a, *b], clusters, strata)
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
    pairs = usable(columns, clusters)
    names = range(len(columns[0])) if clusters is None else list(dict.fromkeys(clusters))
    return [names[i] for i in np.unique(pairs.groups)], np.stack(pairs.totals(pairs.columns))


def _expm1(value: float | None) -> float | None:
    if value is None:
        return None
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
