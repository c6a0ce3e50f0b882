"""Sign-flip permutation test: whether the mean of independent numbers is zero.

Under "no effect" the two sides of a pair could be swapped, which turns the sign of its difference;
so all sign patterns are equally likely (Fisher, The Design of Experiments, 1935, section 21;
Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 3rd ed., 2005). Equal to
`scipy.stats.permutation_test(..., permutation_type="samples")`, which takes too long to be called
thousands of times. n values have 2^n patterns, so p is never below 2^(1 - n): with 5 values no p is
below 0.0625, with 8 none below 0.0078, whatever is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.stats import false_discovery_control
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from jobs.stats.intervals import Floats

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


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p that as many pairs succeed with `a` alone as with `b` alone.

    McNemar, Psychometrika 12 (1947), by the binomial distribution of the pairs that differ, the
    only ones that say anything; 1 without any.
    """
    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927); all of 0 to 1 without trials."""
    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def tost_p(estimate: float, se: float, df: int, low: float, high: float) -> float:
    """The larger p of two one-sided t tests, that the truth is `low` or less, or `high` or more.

    Equivalence at level alpha is that p <= alpha, and the same as the 1 - 2 alpha interval lying
    inside (low, high): Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987). For
    a mean of pairs it is `statsmodels.stats.weightstats.ttost_paired`. All on the scale of `se`; a
    margin of a relative effect is log1p(margin). Raises ValueError where low >= high or se <= 0.
    """
    if low >= high:
        raise ValueError(f"the margin is empty: {low} to {high}")
    if se <= 0:
        raise ValueError(f"a standard error must be positive, not {se}")
    not_above_low = special.stdtr(df, -(estimate - low) / se)
    not_below_high = special.stdtr(df, (estimate - high) / se)
    return float(max(not_above_low, not_below_high))


_BITS = 8
# Sums that differ by less differ by rounding only: they are ties.
_ROUNDING = 1e-12


def sign_flip_p(values: Floats, num_resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p that the mean is 0, the values being independent and symmetric about it.

    All 2^n patterns where these are at most `num_resamples`, else that many at random, with
    p = (k + 1) / (num_resamples + 1) (Phipson and Smyth, Statistical Applications in Genetics and
    Molecular Biology 9, 2010). The values' order, and a common sign, do not matter. NaN without
    values.
    """
    array = np.asarray(values, dtype=np.float64)
    size = len(array)
    if size == 0:
        return math.nan
    # Under random signs only sizes count; sorted, they meet the same signs whatever their order.
    sizes = np.sort(np.abs(array))
    is_exact = 2**size <= num_resamples
    sums = _all_sums(sizes) if is_exact else _random_sums(sizes, num_resamples, seed)
    least = abs(array.sum()) - _ROUNDING * sizes.sum()
    as_extreme = int((np.abs(sums) >= least).sum())
    return as_extreme / len(sums) if is_exact else (as_extreme + 1) / (num_resamples + 1)


def _all_sums(values: Floats) -> Floats:
    # The other half of the patterns has the same sums with the other sign.
    return np.asarray(values[0] + _patterns(len(values) - 1) @ values[1:], dtype=np.float64)


@lru_cache(maxsize=16)
def _patterns(size: int) -> Floats:
    """Every pattern of `size` signs: (2^size, size)."""
    bits = np.arange(2**size)[:, None] >> np.arange(size) & 1
    return np.asarray(bits * 2.0 - 1.0, dtype=np.float64)


def _random_sums(values: Floats, num_resamples: int, seed: int) -> Floats:
    """Sums under random signs: a random byte looks up the sum of eight values at a time."""
    num_groups = math.ceil(len(values) / _BITS)
    padded = np.zeros(num_groups * _BITS)
    padded[: len(values)] = values
    tables = padded.reshape(num_groups, _BITS) @ _patterns(_BITS).T
    rng = np.random.default_rng(seed)
    sums = np.zeros(num_resamples)
    for table in tables:
        sums += table[rng.integers(0, 2**_BITS, num_resamples, dtype=np.uint8)]
    return sums
