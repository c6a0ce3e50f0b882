"""What verdicts went by before sides were swapped, to be put beside: signs of pseudo-values.

The jackknife's pseudo-values are centred at the estimate, and their signs flipped at random; with
fewer than 14 clusters p was that of the jackknife's t, whose interval is the one of old. Several
data sets were one sum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from jobs.stats.intervals import Floats, jackknife, log_rate_ratio, mean
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.swaps import SwapTest
from jobs.stats.significance import sign_flip_p

FEWEST_FOR_SIGNS = 14


class OldVerdict(NamedTuple):
    p: float
    low: float
    high: float
    """Of the effect, as an `Effect` has it."""


def old_verdict(effect: Effect, confidence: float = 0.95) -> OldVerdict | None:
    """Of the same totals; None where there was none."""
    if effect.test is None:
        return None
    statistic = log_rate_ratio if effect.test.is_log else _difference
    found = jackknife(_pooled(effect.test), statistic, confidence)
    if isinstance(found, str):
        return None
    size = len(found.pseudo_values)
    if size >= FEWEST_FOR_SIGNS:
        p = sign_flip_p(found.pseudo_values)
    else:
        p = 2 * float(special.stdtr(size - 1, -abs(found.estimate) / found.se))
    if not effect.test.is_log:
        return OldVerdict(p, found.low, found.high)
    return OldVerdict(p, math.expm1(found.low), math.expm1(found.high))


def _pooled(test: SwapTest) -> Floats:
    if test.is_joint:
        return np.asarray(sum(test.sets), dtype=np.float64)
    return np.concatenate(test.sets, axis=1)


def _difference(totals: Floats) -> Floats:
    return mean(totals[2:]) - mean(totals[:2])
