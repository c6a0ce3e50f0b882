"""Scores that are right or wrong, of one seed: exact where means of many would be approximate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jobs.stats.permutation.effect import Effect
from jobs.stats.significance import mcnemar_p, wilson

WILSON = "Wilson"


@dataclass(frozen=True)
class BinaryDifference:
    """Pairs of which one side alone is right, which are all that tells the sides apart."""

    only_reference: int
    only_configuration: int
    p: float
    """McNemar's exact test, two-sided."""


def is_binary(values: Mapping[str, float]) -> bool:
    return bool(values) and set(values.values()) <= {0.0, 1.0}


def binary_difference(
    reference: Mapping[str, float], own: Mapping[str, float]
) -> BinaryDifference | None:
    """Of the prompts that both have; None where a value is neither 0 nor 1."""
    both = own.keys() & reference.keys()
    if not both or not (is_binary(own) and is_binary(reference)):
        return None
    lost = sum(reference[prompt] > own[prompt] for prompt in both)
    won = sum(own[prompt] > reference[prompt] for prompt in both)
    return BinaryDifference(lost, won, mcnemar_p(lost, won))


def with_wilson(mean: Effect, values: Mapping[str, float]) -> Effect:
    """The mean of zeros and ones with Wilson's interval, which holds near 0 and 1 too."""
    low, high = wilson(round(sum(values.values())), len(values))
    return replace(mean, low=low, high=high, method=WILSON, reason=None)
