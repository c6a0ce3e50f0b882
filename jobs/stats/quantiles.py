"""Intervals of quantiles, which have no standard error to build on.

Of one sample by order statistics: the number of values below the true quantile is binomial, so two
values of the sample bound it whatever the distribution (Conover, Practical Nonparametric
Statistics, 3rd ed., 1999, section 3.2). Extreme quantiles need many values: a 95 % upper bound of
the 99th percentile needs 299 (0.99^299 <= 0.05), a two-sided 95 % interval 368 (0.99^368 <= 0.025).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jobs.stats.intervals import Floats

Values = Sequence[float] | Floats


class QuantileDifference(NamedTuple):
    """In the values' unit; bounds are None where there are fewer than two clusters."""

    estimate: float
    low: float | None
    high: float | None


def order_interval(
    values: Values, q: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Two of the (independent) values that bound the quantile `q`, each with half of the error.

    At least the confidence asked for; None where the sample is too small for it. A one-sided bound
    with confidence c is that side of the two-sided interval with confidence 2c - 1. NaN is left
    out.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ordered = ordered[~np.isnan(ordered)]
    size, tail = len(ordered), (1 - confidence) / 2
    if size == 0:
        return None
    at_most = stats.binom.cdf(np.arange(size), size, q)
    # Ranks from 1: P(fewer than `low` values are below) and P(`high` or more are) <= `tail`.
    low = int((at_most <= tail).sum())
    enough = np.flatnonzero(at_most >= 1 - tail)
    if low < 1 or not len(enough):
        return None
    return float(ordered[low - 1]), float(ordered[enough[0]])


def order_levels(size: int, q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """The same as shares of the sample, for values that lie elsewhere; None where it is small."""
    if size == 0:
        return None
    bounds = order_interval(np.arange(size, dtype=np.float64), q, confidence)
    if bounds is None or size < 2:
        return None
    return bounds[0] / (size - 1), bounds[1] / (size - 1)


def quantile_difference(
    a: Values,
    b: Values,
    q: float,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = 1999,
) -> QuantileDifference | None:
    """Quantile of `b` less that of `a`, by percentile bootstrap over clusters of paired units.

    Percentile, as BCa's jackknife is inconsistent for quantiles (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, section 11.6). Pairs with NaN are left out; None without
    any.
    """
    sides = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    usable = np.isfinite(sides).all(axis=0)
    members: dict[Hashable, list[int]] = {}
    for place in np.flatnonzero(usable).tolist():
        members.setdefault(place if clusters is None else clusters[place], []).append(place)
    if not members:
        return None
    groups = [np.array(places) for places in members.values()]

    def difference(chosen: Floats) -> float:
        places = np.concatenate([groups[int(i)] for i in chosen])
        left, right = np.quantile(sides[:, places], q, axis=1)
        return float(right - left)

    numbers = np.arange(len(groups), dtype=np.float64)
    estimate = difference(numbers)
    if len(groups) < 2:
        return QuantileDifference(estimate, None, None)
    rng = np.random.default_rng(seed)
    drawn = [difference(rng.choice(numbers, len(numbers))) for _ in range(num_resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if not math.isfinite(low + high):
        return QuantileDifference(estimate, None, None)
    return QuantileDifference(estimate, float(low), float(high))
