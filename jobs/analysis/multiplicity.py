"""p-values adjusted for how many were looked at; None (and NaN) is no test, nor counted as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from statsmodels.stats.multitest import multipletests


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that, at level alpha, any false alarm at all has probability alpha at most.

    Holm, Scandinavian Journal of Statistics 6 (1979); valid however the tests depend on each other.
    """
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that, at level alpha, this fraction at most of what is found is false on average.

    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995); for tests that are
    independent or positively dependent.
    """
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Sequence[float | None], method: str) -> list[float | None]:
    tested = [i for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    if tested:
        corrected = multipletests([p_values[i] for i in tested], method=method)[1]
        for i, p in zip(tested, corrected, strict=True):
            adjusted[i] = float(p)
    return adjusted
