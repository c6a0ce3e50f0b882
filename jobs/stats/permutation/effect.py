"""An estimate with its interval, its p and the test that both are of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jobs.stats.permutation.swaps import MOST_SWAPS, NUM_SWAPS, SwapTest, fewest_clusters

IDENTICAL, NONE = "identical", "none"
NO_PAIRS = "there are no pairs"
ZERO_REFERENCE, ZERO_TOTAL = "the reference's total is zero", "a total is zero"
NEGATIVE = "negative numbers have no ratio of totals"
UNBOUNDED = "units differ by so much that the change, or its interval, has no bound"
EQUAL_MEANS = "means are equal, and rows are not"
ONE_IN_A_SET = "a data set has one unit alone, which says nothing of its spread"


@dataclass(frozen=True)
class Effect:
    """An estimate with its confidence interval; relative effects are fractions (0.02 is +2 %)."""

    estimate: float | None
    low: float | None
    high: float | None
    num_units: int
    num_clusters: int
    method: str
    reason: str | None = None
    """Why there is no estimate or no interval."""
    identical: bool = False
    """Every pair is exactly equal, so that the estimate and both bounds are exactly 0."""
    num_left_out: int = 0
    """Pairs that could not be used: a number is missing, not finite (or beyond 1e100), or has no
    logarithm."""
    se: float | None = None
    """Standard error by the jackknife: of the log of 1 + a relative effect, else in its unit. Plans
    go by it; verdicts do not."""
    p: float | None = None
    """Two-sided p of no effect."""
    df: int | None = None
    """Degrees of freedom of the standard error: clusters less strata."""
    log_estimate: float | None = None
    """The estimate on the scale of `se`."""
    by_set: dict[str, float] | None = None
    """Data set -> its own effect; None where there is one."""
    interaction_p: float | None = None
    """p that the effect is the same in every data set."""
    weights: dict[str, float] | None = None
    """Data set -> what its effect counts; they sum to 1. None where there is one."""
    largest_share: float | None = None
    """Of a side's total in a data set, what one cluster has of it at the most."""
    largest: str | None = None
    """That cluster: a shard, a prompt or a group of them, with its data set."""
    test: SwapTest | None = field(default=None, compare=False, repr=False)
    """What `p` and the interval are of, for other levels and other θ; of identical pairs what says
    how large an effect may still be, where units have bounds."""

    @property
    def includes_zero(self) -> bool | None:
        """Whether no difference is shown; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0.0 <= self.high

    @property
    def is_uniform(self) -> bool:
        """Whether every unit shows the same change, so that the interval is a point."""
        if self.low is None or self.high is None or self.identical:
            return False
        return self.high - self.low <= 1e-9 * (1 + abs(self.low))

    def withheld(self, reason: str) -> Effect:
        """The same estimate without an interval, for a design that cannot support one."""
        return replace(
            self,
            low=None,
            high=None,
            method=NONE,
            reason=reason,
            se=None,
            p=None,
            df=None,
            test=None,
        )

    def as_dict(self) -> dict[str, Any]:
        """What is written of it: all but the test itself."""
        return {name: getattr(self, name) for name in WRITTEN}

    def not_identical(self) -> Effect:
        """Of equal means of numbers that differ: no difference is seen, with nothing to test by."""
        return replace(
            self, low=None, high=None, method=NONE, identical=False, reason=EQUAL_MEANS, test=None
        )

    def at(self, confidence: float) -> tuple[float, float] | None:
        """The interval at another confidence, on the test's scale; None where it has no end.

        That all rows are equal shows no more than their number does: of what has bounds an interval
        about 0, of all else 0 where clusters are as many as a test would need.
        """
        if self.identical and self.test is None:
            is_enough = self.num_clusters >= fewest_clusters(1 - confidence)
            return (0.0, 0.0) if is_enough else None
        if self.test is None:
            return None
        if self.identical and self.num_units < 2:
            return None
        # 40 swaps beyond each end, so that an end is known to a sixth of its tail.
        num_swaps = max(NUM_SWAPS, min(MOST_SWAPS, math.ceil(80 / (1 - confidence))))
        low, high = self.test.interval(confidence, num_swaps)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def of_totals(self) -> Effect:
        """The effect on the sums over all data sets, in which each counts as much as it is."""
        if self.test is None or len(self.test.sets) == 1:
            return self
        test = self.test.pooled()
        on_scale = test.estimate()
        estimate = math.expm1(on_scale) if test.is_log else on_scale
        return replace(
            self,
            estimate=estimate,
            log_estimate=on_scale,
            test=test,
            method=test.name,
            p=test.p(),
            low=None,
            high=None,
            by_set=None,
            weights=None,
            interaction_p=None,
        )

    def bounded(self) -> Effect:
        """The same, but without what is too large to be written."""
        if self.estimate is not None and not math.isfinite(self.estimate):
            return replace(self.withheld(UNBOUNDED), estimate=None, log_estimate=None)
        if self.high is not None and not math.isfinite(self.high):
            return self.withheld(UNBOUNDED)
        return self


WRITTEN = tuple(each.name for each in fields(Effect) if each.name != "test")
