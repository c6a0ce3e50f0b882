"""Where the noise of an effect comes from: prompts that differ, and seeds of one prompt.

Of K seeds on each of P prompts the mean effect has Var = (between + within / K) / P: Miller, arXiv
2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.stats.intervals import Floats


@dataclass(frozen=True)
class Components:
    """Variances in the square of the values' unit."""

    between: float
    """Of the true effect from prompt to prompt; 0 where seeds explain all, NaN of one prompt."""
    within: float | None
    """Of one prompt's effect from seed to seed; None where no prompt has two seeds, and `between`
    then holds both."""
    num_prompts: int
    num_seeds: float
    """Harmonic mean over the prompts; NaN without any."""


def variance_components(values: Sequence[float], prompts: Sequence[Hashable]) -> Components:
    """By moments of a one-way analysis of variance; prompts may have different numbers of seeds.

    `values` has one entry per (prompt, seed): the difference there, on the scale of the effect's
    standard error. Searle, Casella and McCulloch, Variance Components (1992), chapter 3. Values
    that are not finite are left out.
    """
    moments = _moments(values, prompts)
    sizes = moments.sizes
    num_seeds = len(sizes) / float((1 / sizes).sum()) if len(sizes) else math.nan
    if moments.within is None:
        return Components(moments.between, None, len(sizes), num_seeds)
    between = math.nan
    if len(sizes) > 1:
        between = max(0.0, (moments.between - moments.within) / moments.size)
    return Components(between, moments.within, len(sizes), num_seeds)


def intraclass_correlation(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """ICC(1): how alike the values of one cluster are, from below 0 (unlike) to 1 (all equal).

    Shrout and Fleiss, Psychological Bulletin 86 (1979). None with a single cluster, without two
    values in any, or where all values are equal.
    """
    moments = _moments(values, clusters)
    if moments.within is None or len(moments.sizes) < 2:
        return None
    spread = moments.between + (moments.size - 1) * moments.within
    return (moments.between - moments.within) / spread if spread > 0 else None


def design_effect(icc: float, sizes: Sequence[int]) -> float:
    """By how much clusters multiply a mean's variance: 1 + (m - 1) icc.

    Kish, Survey Sampling (1965). `sizes` are the clusters'; m is the size of the cluster that a
    unit is in, on average over units.
    """
    counts = np.asarray(sizes, dtype=np.float64)
    return float(1 + (np.square(counts).sum() / counts.sum() - 1) * icc)


@dataclass(frozen=True)
class _Moments:
    between: float
    """Mean square; NaN of one group."""
    within: float | None
    """Mean square; None where every group is of one."""
    size: float
    """n0: the size of a group that the expected mean squares have; NaN of one group."""
    sizes: Floats


def _moments(values: Sequence[float], groups: Sequence[Hashable]) -> _Moments:
    array = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(array)
    seen: dict[Hashable, int] = {}
    pairs = zip(groups, usable, strict=True)
    numbers = np.array([seen.setdefault(g, len(seen)) for g, ok in pairs if ok], dtype=np.int64)
    array = array[usable]
    total, num_groups = len(array), len(seen)
    sizes = np.bincount(numbers, minlength=num_groups).astype(np.float64)
    means = np.bincount(numbers, weights=array, minlength=num_groups) / sizes
    within = None
    if total > num_groups:
        within = float(np.square(array - means[numbers]).sum()) / (total - num_groups)
    if num_groups < 2:
        return _Moments(math.nan, within, math.nan, sizes)
    between = float((sizes * np.square(means - array.mean())).sum()) / (num_groups - 1)
    size = (total - float(np.square(sizes).sum()) / total) / (num_groups - 1)
    return _Moments(between, within, size, sizes)
