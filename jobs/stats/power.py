"""What a trial of a given size can find, and the size that finds a given effect.

All on the scale of the standard error: for a relative effect, log1p of it. Two-sided tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special, stats

from jobs.stats.components import Components

MOST = 10**9
"""Prompts or seeds beyond which a need is none that could be met."""


@dataclass(frozen=True)
class Needs:
    """What is missing beyond what is there; either of the two is enough, and 0 means nothing."""

    num_prompts: int | None
    """At the present seeds; None where no number would do, or where it is not known."""
    num_seeds: int | None
    """At the present prompts; None where no number would do, or where it is not known."""
    reason: str | None
    """Why there is no number."""


def mde(se: float, df: float | None = None, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest effect that is found with this power: (z[1 - alpha/2] + z[power]) se.

    At the defaults 2.80 se (Bloom, Evaluation Review 19, 1995). With degrees of freedom, both are
    quantiles of t, which is Bloom's approximation for a spread that was estimated.
    """
    return _multiple(df, alpha, power) * se


def needed_se(effect: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The standard error at which `effect` is the smallest that is found with this power."""
    return abs(effect) / _multiple(None, alpha, power)


def power_of(effect: float, se: float, df: float | None = None, alpha: float = 0.05) -> float:
    """The probability that a test at level alpha finds a true effect: noncentral t, or normal.

    Raises ValueError where se <= 0: without any spread there is nothing to test by.
    """
    if se <= 0:
        raise ValueError(f"a standard error must be positive, not {se}")
    size = abs(effect) / se
    if df is None:
        limit = stats.norm.isf(alpha / 2)
        return float(stats.norm.sf(limit - size) + stats.norm.cdf(-limit - size))
    limit = stats.t.isf(alpha / 2, df)
    return float(stats.nct.sf(limit, df, size) + stats.nct.cdf(-limit, df, size))


def needed(
    components: Components,
    effect_or_margin: float,
    num_prompts: int,
    num_seeds: int,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Needs:
    """More prompts, or more seeds, that make this effect the smallest that is found.

    With P prompts and K seeds the squared standard error is (between + within / K) / P, and its
    degrees of freedom are P - 1. Where the within part is not known (one seed), seeds are not
    either, and the prompts are those at one seed.
    """
    within = components.within or 0.0
    target = abs(effect_or_margin)
    variance = components.between + within / num_seeds if num_seeds else math.nan
    if target == 0:
        return Needs(None, None, "no amount of data finds a difference of nothing")
    if not math.isfinite(variance):
        return Needs(None, None, "one prompt alone, or none, says nothing of the spread")
    prompts = _prompts(variance, target, alpha, power)
    more_prompts = None if prompts is None else max(0, prompts - num_prompts)
    if more_prompts == 0:
        return Needs(0, 0, None)
    if components.within is None:
        return Needs(more_prompts, None, "with one seed, the noise between seeds is not known")
    seeds = _seeds(components.between, within, target, num_prompts, alpha, power)
    if seeds is None:
        reason = "prompts differ by more than any number of seeds could average out"
        return Needs(more_prompts, None, reason)
    return Needs(more_prompts, max(0, seeds - num_seeds), None)


def _multiple(df: float | None, alpha: float, power: float) -> float:
    if df is None:
        return float(special.ndtri(1 - alpha / 2) + special.ndtri(power))
    return float(special.stdtrit(df, 1 - alpha / 2) + special.stdtrit(df, power))


def _prompts(variance: float, target: float, alpha: float, power: float) -> int | None:
    """The fewest prompts, 2 or more, whose smallest effect is the target; found by bisection."""

    def is_enough(prompts: int) -> bool:
        return mde(math.sqrt(variance / prompts), prompts - 1, alpha, power) <= target

    low, high = 1, 2
    while not is_enough(high):
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _seeds(
    between: float, within: float, target: float, prompts: int, alpha: float, power: float
) -> int | None:
    if prompts < 2:
        return None
    left = prompts * (target / _multiple(prompts - 1, alpha, power)) ** 2 - between
    if left <= 0:
        return None
    seeds = math.ceil(within / left)
    return seeds if seeds <= MOST else None
