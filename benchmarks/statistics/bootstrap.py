"""Bootstrap intervals by `scipy.stats.bootstrap`, to set beside the jackknife's.

Not what a trial's effects use: `jobs.stats.intervals` has the coverage of both. To resample
clusters, give the clusters' totals. None where there are fewer than two values, or no spread.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from jobs.stats.intervals import Floats, Interval

Values = Sequence[float] | Floats
NUM_RESAMPLES = 9999
# Resamples at a time: of 1,000 values they take 8 MB.
_BATCH = 1000


def bca(
    values: Values, confidence: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval | None:
    """Of the mean; bias-corrected and accelerated (Efron, JASA 82, 1987)."""
    return _interval((values,), np.mean, confidence, seed, num_resamples, "BCa")


def bca_ratio(
    a: Values,
    b: Values,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Of sum(b) / sum(a) - 1, units being paired."""
    return _interval((a, b), _relative_change, confidence, seed, num_resamples, "BCa")


def percentile(
    values: Values,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Of any statistic that takes an `axis`: the quantiles of what resamples give."""
    return _interval((values,), statistic, confidence, seed, num_resamples, "percentile")


def _relative_change(a: Floats, b: Floats, axis: int = -1) -> Floats:
    return np.asarray(b.sum(axis=axis) / a.sum(axis=axis) - 1, dtype=np.float64)


def _interval(
    samples: Sequence[Values],
    statistic: Callable[..., Any],
    confidence: float,
    seed: int,
    num_resamples: int,
    method: str,
) -> Interval | None:
    data = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if len(data[0]) < 2:
        return None
    # A statistic that no resample moves has no interval; scipy says so by a warning and NaN.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            data,
            statistic,
            n_resamples=num_resamples,
            batch=_BATCH,
            vectorized=True,
            paired=True,
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return Interval(low, high) if math.isfinite(low + high) and low < high else None
