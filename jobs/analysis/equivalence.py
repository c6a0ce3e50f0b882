"""Whether a difference is shown to be within a margin, which "not significant" does not show."""

from __future__ import annotations

from scipy import special


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
