"""Binary scores of a single seed: the exact paired test, and the interval of one proportion."""

from __future__ import annotations

from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint


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
