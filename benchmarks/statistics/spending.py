"""Looking at results before they are complete without raising the rate of false alarms.

Lan and DeMets, Biometrika 70 (1983): a function says how much of alpha may be spent by the time a
fraction of the information (of the planned prompts) is in; neither the number nor the times of the
looks need to be known ahead, but the times must not depend on what was seen. Two-sided, symmetric,
half of alpha to each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import optimize, special

from jobs.stats.intervals import Floats

Spending = Literal["obrien-fleming", "pocock"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)
# Below this no boundary is solved for: the increment itself is the level, a little too strict.
_NEGLIGIBLE = 1e-15
_FARTHEST = 9.0


def spent(fraction: float, alpha: float = 0.05, spending: Spending = "obrien-fleming") -> float:
    """How much of alpha may be spent when this fraction of the information is in; all from 1 on.

    O'Brien-Fleming type, 4 - 4 Phi(z[1 - alpha/4] / sqrt(t)), is strict early and costs next to
    nothing at the end; Pocock type, alpha log(1 + (e - 1) t), is about even.
    """
    if fraction <= 0:
        return 0.0
    if fraction >= 1:
        return alpha
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * fraction)
    limit = -float(special.ndtri(alpha / 4)) / math.sqrt(fraction)
    return 4 * float(special.ndtr(-limit))


def nominal_levels(
    fractions: Sequence[float], alpha: float = 0.05, spending: Spending = "obrien-fleming"
) -> list[float]:
    """The two-sided level of each look, so far, that a p must not exceed for a finding.

    By recursive integration over what was not stopped (Armitage, McPherson and Rowe, Journal of the
    Royal Statistical Society A 132, 1969) for statistics whose increments are independent and about
    normal. Levels of earlier looks do not change with later ones. Raises ValueError unless the
    fractions are positive and grow. A look after fraction 1 has nothing left to spend: level 0.
    """
    increments = conservative_levels(fractions, alpha, spending)
    levels: list[float] = []
    before, points, density = 0.0, np.zeros(1), np.ones(1)
    for fraction, increment in zip(fractions, increments, strict=True):
        now = min(fraction, 1.0)
        if increment <= 0:
            levels.append(0.0)
            continue
        step = math.sqrt(now - before)
        limit = _limit(points, density, math.sqrt(now), step, increment)
        levels.append(2 * float(special.ndtr(-limit)))
        edge = min(limit, _FARTHEST) * math.sqrt(now)
        places = edge * _NODES
        kernel = np.exp(-0.5 * ((places[:, None] - points) / step) ** 2)
        density = edge * _WEIGHTS * (kernel @ density) / (step * math.sqrt(2 * math.pi))
        before, points = now, places
    return levels


def conservative_levels(
    fractions: Sequence[float], alpha: float = 0.05, spending: Spending = "obrien-fleming"
) -> list[float]:
    """What each look adds to what is spent: valid whatever the statistics' joint distribution.

    They sum to alpha at most, as in Bonferroni's inequality, so no integration is needed; for when
    looks are few, or increments are not independent. Raises as `nominal_levels` does.
    """
    if any(now <= before for before, now in pairwise([0.0, *fractions])):
        raise ValueError(f"fractions of the information must be positive and grow: {fractions}")
    amounts = [0.0, *(spent(fraction, alpha, spending) for fraction in fractions)]
    return [max(0.0, now - before) for before, now in pairwise(amounts)]


def _limit(points: Floats, density: Floats, scale: float, step: float, increment: float) -> float:
    """The |z| that is exceeded now, and not before, with probability `increment`."""

    def excess(limit: float) -> float:
        above = special.ndtr((points - limit * scale) / step)
        below = special.ndtr((-limit * scale - points) / step)
        return float(density @ (above + below)) - increment

    if increment < _NEGLIGIBLE:
        return -float(special.ndtri(increment / 2))
    return float(optimize.brentq(excess, 0.0, _FARTHEST, xtol=1e-10))
