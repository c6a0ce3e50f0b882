"""Whether a machine changed while it was measured, and whether the test of an A/A pair holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jobs.stats.intervals import Floats
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect

Values = Sequence[float] | Floats
Test = Callable[[Floats, Floats, Sequence[Hashable], float], Effect]
"""(a, b, clusters, confidence) -> effect, as those of `jobs.stats.permutation.effects`."""


class Trend(NamedTuple):
    """Of values over the order in which they were measured; all in the values' unit."""

    slope_per_step: float
    """Per 1 of `order`: Tukey's resistant line, between the medians of the outer thirds."""
    p: float
    """Two-sided, Kendall's rank test of no trend (Mann, Econometrica 13, 1945)."""
    first_third: float
    """Median."""
    last_third: float


class OrderEffect(NamedTuple):
    """Of the place within a block: first, second and so on."""

    p: float
    """That all places are alike: Kruskal and Wallis, JASA 47 (1952)."""
    medians: dict[int, float]


def trend(values: Values, order: Values) -> Trend | None:
    """Give values without what is known to differ, such as logs less their configuration's mean.

    None with fewer than 6 values, or where all values or all places are equal. NaN is left out.
    """
    y, x = np.asarray(values, dtype=np.float64), np.asarray(order, dtype=np.float64)
    usable = np.isfinite(y) & np.isfinite(x)
    by_order = np.argsort(x[usable], kind="stable")
    y, x = y[usable][by_order], x[usable][by_order]
    if len(y) < 6 or np.ptp(y) == 0 or np.ptp(x) == 0:
        return None
    third = len(y) // 3
    first, last = float(np.median(y[:third])), float(np.median(y[-third:]))
    steps = float(np.median(x[-third:]) - np.median(x[:third]))
    slope = (last - first) / steps if steps > 0 else 0.0
    return Trend(slope, float(stats.kendalltau(x, y).pvalue), first, last)


def order_effect(values: Values, position: Sequence[int]) -> OrderEffect | None:
    """Give values less their block's mean and their configuration's; None where there is no test.

    That needs two places with two values or more each, which are not all equal. NaN is left out.
    """
    y, places = np.asarray(values, dtype=np.float64), np.asarray(position, dtype=np.int64)
    groups = {int(place): y[(places == place) & np.isfinite(y)] for place in np.unique(places)}
    groups = {place: group for place, group in groups.items() if len(group) >= 2}
    if len(groups) < 2 or np.ptp(np.concatenate(list(groups.values()))) == 0:
        return None
    p = float(stats.kruskal(*groups.values()).pvalue)
    return OrderEffect(p, {place: float(np.median(group)) for place, group in groups.items()})


def false_alarm_rate(
    a: Values,
    b: Values,
    blocks: Sequence[Hashable],
    num_relabellings: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
    statistic: Test = ratio_effect,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float | None, int]:
    """How often a difference would be found if the two sides of an A/A pair were named at random.

    The sides of each block are swapped or not by a coin: what is found then is a false alarm. Shows
    whether the test suits this noise where its clusters (default: the blocks) are finer than what
    shares noise; swaps of the blocks themselves keep the rate, whatever the data. A difference that
    all blocks share is not seen here, but by the pair's own test. The rate and how many
    relabellings gave a p; None without any.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    seen: dict[Hashable, int] = {}
    numbers = np.array([seen.setdefault(block, len(seen)) for block in blocks], dtype=np.int64)
    names = list(blocks if clusters is None else clusters)
    rng = np.random.default_rng(seed)
    num_tests = num_alarms = 0
    for _ in range(num_relabellings):
        is_swapped = rng.integers(0, 2, len(seen)).astype(bool)[numbers]
        one, other = np.where(is_swapped, right, left), np.where(is_swapped, left, right)
        p = statistic(one, other, names, 1 - alpha).p
        num_tests += p is not None
        num_alarms += p is not None and p <= alpha
    return (num_alarms / num_tests if num_tests else None), num_tests
