"""What each factor of a full factorial does, alone and together with others.

A cell is the set of factors that are on; its statistic is the log of a ratio of totals, or a mean,
of the same clusters in every cell. Contrasts and Shapley values are linear in the cells' statistics
and get the delete-one jackknife over clusters, as any effect does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import special

from jobs.stats.intervals import Floats, Jackknifed, Statistic, from_left_out, left_out

Cell = frozenset[str]
Totals = Mapping[Cell, Floats]
"""Factors that are on -> (quantities, clusters), the clusters aligned."""


class MissingCellsError(ValueError):
    """Not every combination of the factors is there."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        names = "; ".join(" + ".join(sorted(cell)) or "none" for cell in cells)
        super().__init__(f"the factorial is not full; combinations that are missing: {names}")


@dataclass(frozen=True)
class Contrast:
    """A main effect (one factor) or an interaction, on the statistic's scale."""

    factors: tuple[str, ...]
    estimate: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided, of the interval's t."""
    se: float | None
    reason: str | None = None
    """Why there is no interval."""


@dataclass(frozen=True)
class Share:
    """What is due to one factor of the change from all off to all on."""

    factor: str
    estimate: float
    """Its Shapley value, on the statistic's scale; those of all factors sum to the whole change."""
    low: float | None
    high: float | None
    p: float | None
    se: float | None
    share: float | None
    """Of the whole change: they sum to 1, but each may be below 0 or above 1 where factors work
    against each other. None where the whole change is 0."""
    reason: str | None = None


def missing(totals: Totals, factors: Sequence[str]) -> list[Cell]:
    """The combinations of the factors that have no cell, the smallest first."""
    return [cell for cell in _cells(factors) if cell not in totals]


def contrasts(
    totals: Totals,
    factors: Sequence[str],
    statistic: Statistic,
    confidence: float = 0.95,
) -> list[Contrast]:
    """Main effects, then interactions of two, three, ... factors.

    A main effect is the mean over the levels of the other factors of (on - off); an interaction of
    two is y11 - y10 - y01 + y00, averaged likewise (Box, Hunter and Hunter, Statistics for
    Experimenters, 2nd ed., 2005, chapter 5, where an interaction is half of that); of more, the
    difference of that between the levels of the next factor. Raises MissingCellsError, and
    ValueError where a cell's statistic is not finite.
    """
    weights = {
        tuple(chosen): _contrast_weights(factors, chosen) for chosen in _cells_in_order(factors)
    }
    found = _combinations(totals, factors, statistic, weights.values(), confidence)
    return [
        Contrast(chosen, *_numbers(estimate, result))
        for chosen, (estimate, result) in zip(weights, found, strict=True)
    ]


def shapley(
    totals: Totals,
    factors: Sequence[str],
    statistic: Statistic,
    confidence: float = 0.95,
) -> list[Share]:
    """The Shapley value of each factor: its mean change over all orders of turning factors on.

    Exact, over all subsets, of v(S) = statistic(S) - statistic(none): Shapley, Contributions to the
    Theory of Games II (1953). The shares' own spread is not given: a ratio whose denominator may be
    0 has no useful interval. Raises as `contrasts` does.
    """
    weights = [_shapley_weights(factors, factor) for factor in factors]
    found = _combinations(totals, factors, statistic, weights, confidence)
    whole = math.fsum(estimate for estimate, _ in found)
    shares = []
    for factor, (estimate, result) in zip(factors, found, strict=True):
        estimate, low, high, p, se, reason = _numbers(estimate, result)
        share = estimate / whole if whole else None
        shares.append(Share(factor, estimate, low, high, p, se, share, reason))
    return shares


def _cells(factors: Sequence[str]) -> list[Cell]:
    return [frozenset(), *(frozenset(chosen) for chosen in _cells_in_order(factors))]


def _cells_in_order(factors: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of one factor or more, in the factors' order."""
    sizes = range(1, len(factors) + 1)
    return [chosen for size in sizes for chosen in combinations(factors, size)]


def _contrast_weights(factors: Sequence[str], chosen: Sequence[str]) -> Floats:
    signs = [math.prod(1 if f in cell else -1 for f in chosen) for cell in _cells(factors)]
    return np.array(signs, dtype=np.float64) / float(2 ** (len(factors) - len(chosen)))


def _shapley_weights(factors: Sequence[str], factor: str) -> Floats:
    """Weight of each cell: of joining s others, s! (n - s - 1)! / n!."""
    size = len(factors)
    weights = []
    for cell in _cells(factors):
        others = len(cell - {factor})
        weight = 1 / (size * math.comb(size - 1, others))
        weights.append(weight if factor in cell else -weight)
    return np.array(weights)


def _combinations(
    totals: Totals,
    factors: Sequence[str],
    statistic: Statistic,
    weights: Iterable[Floats],
    confidence: float,
) -> list[tuple[float, Jackknifed | str]]:
    """Each combination of the cells' statistics: its estimate, and its jackknife or why none.

    Weights sum to 0, so that what is common to all cells can be left out of them: cells that are
    equal then give 0, and not what rounding leaves of it.
    """
    if absent := missing(totals, factors):
        raise MissingCellsError(absent)
    pairs = [left_out(totals[cell], statistic) for cell in _cells(factors)]
    whole = np.array([middle for middle, _ in pairs])
    without = np.stack([each for _, each in pairs])
    if not np.isfinite(whole).all():
        raise ValueError("the statistic of a cell is not finite")
    with np.errstate(invalid="ignore"):
        whole, without = whole - whole[0], without - without[0]
        estimates = [(weight, float(weight @ whole)) for weight in weights]
        return [
            (estimate, from_left_out(estimate, weight @ without, confidence))
            for weight, estimate in estimates
        ]


def _numbers(
    estimate: float, found: Jackknifed | str
) -> tuple[float, float | None, float | None, float | None, float | None, str | None]:
    if isinstance(found, str):
        return estimate, None, None, None, None, found
    # Not by signs of the pseudo-values: beside one dominant cluster all others point the same way.
    p = 2 * float(special.stdtr(len(found.pseudo_values) - 1, -abs(estimate) / found.se))
    return estimate, found.low, found.high, p, found.se, None
