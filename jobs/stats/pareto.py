"""How sure it is that a configuration is on the Pareto front of several objectives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jobs.stats.intervals import Floats

# Means that differ by less differ by rounding only.
_ROUNDING = 1e-12
# Resamples at a time: of 10,000 units they take 16 MB.
_BATCH = 200


def front_probabilities(
    values: Mapping[str, Floats], seed: int = 0, num_resamples: int = 2000
) -> dict[str, float]:
    """Configuration -> the fraction of resamples in which no other dominates it.

    `values` are (objectives, 2, units): amounts, lower being better, and what they are divided by,
    with the same units (clusters) in the same order everywhere; NaN is a unit that an objective
    lacks. An objective is the total of its amounts over that of what divides them.
    Units are resampled with replacement, the same for all configurations. One dominates another by
    being no worse in every objective and better in one, so equal configurations are on the front
    together. Resamples that leave an objective without units are not counted. Raises ValueError
    where shapes differ, or where an objective has no units at all.
    """
    if not values:
        return {}
    stack = np.stack([np.asarray(each, dtype=np.float64) for each in values.values()])
    if stack.ndim != 4:
        raise ValueError("expected (objectives, 2, units)")
    present = np.isfinite(stack[:, :, 0]) & np.isfinite(stack[:, :, 1])
    if not present.any(axis=2).all():
        raise ValueError("every configuration needs units in every objective")
    above, below = (np.where(present, stack[:, :, i], 0.0) for i in range(2))
    rng = np.random.default_rng(seed)
    num_units = stack.shape[3]
    on_front, num_counted = np.zeros(len(stack)), 0
    for start in range(0, num_resamples, _BATCH):
        size = min(_BATCH, num_resamples - start)
        counts = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size)
        weights = counts.T.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means = (above @ weights) / (below @ weights)
        means = means[:, :, np.isfinite(means).all(axis=(0, 1))]
        on_front += (~dominated(means)).sum(axis=1)
        num_counted += means.shape[2]
    return dict(zip(values, (on_front / num_counted).tolist(), strict=True))


def dominated(means: Floats) -> npt.NDArray[np.bool_]:
    """Whether another is no worse in all objectives and better in one.

    `means` are (configurations, objectives, further); the result is (configurations, further).
    """
    slack = _ROUNDING * np.abs(means).max(axis=0)
    better = means[None] < means[:, None] - slack
    worse = means[None] > means[:, None] + slack
    found = better.any(axis=2) & ~worse.any(axis=2)
    return np.asarray(found.any(axis=1), dtype=np.bool_)
