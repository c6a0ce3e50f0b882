"""The effect of one configuration against its reference in one metric, and what is tested of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from oracle.bounded import Bounds
from oracle.metrics import Metric
from oracle.swaps import Floats, Swaps
from oracle.units import MIN_SHARDS, Unit, Units

TOTALS, GEOMETRIC, DIFFERENCE = "ratio of totals", "geometric mean", "mean difference"


@dataclass(frozen=True)
class Effect:
    """As `optrial report --json` has it; relative effects are fractions."""

    metric: Metric
    statistic: str
    estimate: float | None
    by_set: dict[str, float] | None = None
    reference_mean: float | None = None
    mean: float | None = None
    num_units: int = 0
    num_clusters: int = 0
    num_left_out: int = 0
    identical: bool = False
    swaps: Swaps | None = None
    """Where it is tested, and has an interval as far as there are enough clusters for one."""
    bounds: Bounds | None = None
    """Of shares, which are within 0 and 1: what is said of other effects than none needs both."""

    @property
    def is_relative(self) -> bool:
        return self.statistic != DIFFERENCE

    def shown(self, theta: float) -> float:
        """An effect on the scale of the test, as it is reported."""
        return math.expm1(theta) if self.is_relative else theta

    def tested(self, shown: float) -> float:
        """A reported effect, on the scale of the test."""
        return math.log1p(shown) if self.is_relative else shown

    @property
    def se(self) -> float | None:
        """The delete-one jackknife's, data sets apart; None where some cluster holds a total."""
        return None if self.swaps is None else _jackknife(self.swaps)


def effects_of(metric: Metric, units: Units) -> list[Effect]:
    """The one that is judged, and the geometric mean where there is one."""
    if metric.of == "target" or metric.is_share:
        return [_effect(metric, DIFFERENCE, units, units)]
    found = [_effect(metric, TOTALS, units, units)]
    if metric.has_geometric_mean:
        found.append(_effect(metric, GEOMETRIC, units, _logs(units)))
    return found


def _logs(units: Units) -> Units:
    """Of units that have a logarithm on both sides."""
    kept = [unit for unit in units.usable if unit.values[0] > 0 < unit.values[2]]
    logs = [
        Unit(u.dataset, u.cluster, (math.log(u.values[0]), 1.0, math.log(u.values[2]), 1.0))
        for u in kept
    ]
    left_out = units.num_left_out + len(units.usable) - len(kept)
    return replace(units, usable=logs, num_left_out=left_out)


def _effect(metric: Metric, statistic: str, given: Units, units: Units) -> Effect:
    effect = Effect(
        metric,
        statistic,
        None,
        reference_mean=_ratio(given, 0),
        mean=_ratio(given, 2),
        num_units=len(units.usable),
        num_clusters=units.num_clusters,
        num_left_out=units.num_left_out,
    )
    if not units.usable:
        return effect
    a, c, b, d = np.sum([unit.values for unit in units.usable], axis=0)
    if metric.per is not None and min(a, c, b, d) <= 0:
        return effect
    if all(unit.values[:2] == unit.values[2:] for unit in units.usable):
        # Means over seeds may be equal where rows are not: nothing to test, and no equality.
        return replace(effect, estimate=0.0, identical=units.rows_equal)
    if statistic == TOTALS and min(a, b) <= 0:
        return replace(effect, estimate=-1.0 if b == 0 < a else None)
    swaps = Swaps(units.sets(), is_log=statistic == TOTALS)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = swaps.estimate()
    if not math.isfinite(estimate):
        return effect
    effect = replace(effect, estimate=effect.shown(estimate))
    if len(swaps.sets) > 1:
        own = [effect.shown(each) for each in swaps.by_set()]
        effect = replace(effect, by_set=dict(zip(units.datasets, own, strict=True)))
    too_few = metric.is_by_shard and units.fewest_shards() < MIN_SHARDS
    if too_few or min(each.shape[1] for each in swaps.sets) < 2:
        return effect
    bounds = Bounds(swaps.sets) if metric.is_share else None
    return replace(effect, swaps=swaps, bounds=bounds)


def _ratio(units: Units, first: int) -> float | None:
    """Total over total: of what is not divided, the mean over units."""
    below = math.fsum(unit.values[first + 1] for unit in units.usable)
    above = math.fsum(unit.values[first] for unit in units.usable)
    return above / below if below > 0 else None


def _jackknife(swaps: Swaps) -> float | None:
    """Of the mean over data sets: sqrt((G - 1) / G * sum((s_g - mean(s))^2)) of each."""
    variances = []
    for given in swaps.sets:
        used = given[:, given.any(axis=0)]
        size = used.shape[1]
        left = [Swaps([np.delete(used, i, axis=1)], swaps.is_log) for i in range(size)]
        with np.errstate(divide="ignore", invalid="ignore"):
            without = np.array([_plain(each.sets[0], swaps.is_log) for each in left])
        if size < 2 or not np.isfinite(without).all():
            return None
        if np.ptp(without) <= 1e-12 * max(1.0, abs(_plain(used, swaps.is_log))):
            without[:] = 0.0  # what rounding leaves of equal numbers
        variances.append((size - 1) / size * float(np.square(without - without.mean()).sum()))
    return math.sqrt(sum(variances)) / len(swaps.sets) if any(variances) else None


def _plain(totals: Floats, is_log: bool) -> float:
    a, c, b, d = totals.sum(axis=1)
    return float(np.log(b / d) - np.log(a / c)) if is_log else float(b / d - a / c)
