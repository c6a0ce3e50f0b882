"""p-values adjusted for how many were looked at; None (and NaN) is no test, nor counted as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

P = NDArray[np.float64]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that, at level alpha, any false alarm at all has probability alpha at most.

    Holm, Scandinavian Journal of Statistics 6 (1979); valid however the tests depend on each other.
    """
    return _adjusted(p_values, _stepped_down)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that, at level alpha, this fraction at most of what is found is false on average.

    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995); for tests that are
    independent or positively dependent.
    """
    return _adjusted(p_values, false_discovery_control)


def _stepped_down(p_N: P) -> P:
    """statsmodels has it too, but collects garbage at each call, and looks through all that torch
    and transformers have imported for it: reports call this often."""
    order_N = np.argsort(p_N)
    stepped_N = np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1))
    found_N = np.empty_like(p_N)
    found_N[order_N] = np.minimum(stepped_N, 1.0)
    return found_N


def _adjusted(p_values: Sequence[float | None], adjust: Callable[[P], P]) -> list[float | None]:
    known = np.array([math.nan if p is None else p for p in p_values], dtype=np.float64)
    is_test = ~np.isnan(known)
    if is_test.any():
        known[is_test] = adjust(known[is_test])
    return [float(p) if tested else None for p, tested in zip(known, is_test, strict=True)]
