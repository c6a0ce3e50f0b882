"""The exact distribution of a sum of whole numbers whose signs are drawn: McNemar's, and more.

Where two sides are counts (rows that failed, answers that are right), to swap a cluster's sides
turns the sign of its difference d, so that the p of no difference is P(|Σ ±d| ≥ |Σ d|) over all
signs. Of differences of 1 that is the exact sign test of McNemar (Psychometrika 12, 1947) over the
pairs that disagree; of several seeds, or clusters of prompts, the same with larger steps. Pairs
that agree take no part in it.
"""

from __future__ import annotations

import numpy as np

from jobs.stats.intervals import Floats

_MOST_STEPS = 20_000_000
"""Additions up to which the distribution is computed."""
_MOST_PARTS = 64
"""Means over so many seeds, at most, are seen to be parts of whole numbers."""


def sign_p(differences: Floats) -> float | None:
    """Two-sided p; None where the differences are no whole numbers, or too large or many for it.

    Means over seeds are whole numbers of their parts.
    """
    steps = _whole(differences[differences != 0])
    if steps is None:
        return None
    sizes = np.abs(steps)
    total = int(sizes.sum())
    if len(sizes) * (total + 1) > _MOST_STEPS:
        return None
    # chances[k]: that the sizes whose sign is plus sum to k; the sum of all is then 2 k - total.
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for size in sizes:
        chances *= 0.5
        chances[size:] += chances[:-size].copy()  # of sums before this one
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chances[sums >= abs(int(steps.sum()))].sum()))


def _whole(differences: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """The same in steps of the largest part 1 / n of which all of them are whole numbers."""
    for parts in range(1, _MOST_PARTS + 1):
        scaled = differences * parts
        whole = np.rint(scaled)
        if np.abs(whole).max(initial=0.0) > _MOST_STEPS:
            return None
        if (np.abs(scaled - whole) <= 1e-9).all() and whole.all():
            return whole.astype(np.int64)
    return None
