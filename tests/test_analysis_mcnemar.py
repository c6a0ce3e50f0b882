"""McNemar's exact test is the swap test of zeros and ones: the same p, with its own interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jobs.analysis.effects import difference_effect
from jobs.analysis.mcnemar import MCNEMAR, exact_difference, mcnemar_test
from jobs.analysis.swaps import NUM_SWAPS

Sides = tuple[np.ndarray, np.ndarray]


def sides(plus: int, zero: int, minus: int) -> Sides:
    """Pairs that only `b` has right, that differ in nothing, and that only `a` has right."""
    a = np.array([0] * plus + [1] * minus + [1, 0] * zero, dtype=float)[: plus + minus + zero]
    b = np.array([1] * plus + [0] * minus + [1, 0] * zero, dtype=float)[: plus + minus + zero]
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


@pytest.mark.parametrize("table", [(5, 3, 2), (0, 4, 6), (3, 0, 3), (1, 9, 0), (4, 8, 1)])
def test_it_is_the_enumerated_swap_test(table: tuple[int, int, int]) -> None:
    """Up to 14 clusters every swap is tried, so that both are exact, at every θ."""
    a, b = sides(*table)
    swaps, exact = difference_effect(a, b), exact_difference(a, b)
    assert swaps.test is not None
    assert exact.test is not None
    for theta in (-0.5, -0.1, -0.02, 0.0, 0.05, 0.2, 1 / 3, 0.7):
        assert exact.test.p(theta) == pytest.approx(swaps.test.p(theta), abs=1e-9)
        assert exact.test.p_above(theta) == pytest.approx(swaps.test.p_above(theta), abs=1e-9)
        assert exact.test.p_below(theta) == pytest.approx(swaps.test.p_below(theta), abs=1e-9)
    assert (exact.low, exact.high) == pytest.approx((swaps.low, swaps.high), abs=2e-6)
    assert (exact.estimate, exact.se) == (swaps.estimate, swaps.se)


@pytest.mark.parametrize("table", [(5, 3, 2), (30, 60, 14), (100, 900, 70), (9, 500, 25)])
def test_p_is_the_binomial_tests_and_that_of_swaps_to_their_draw(
    table: tuple[int, int, int],
) -> None:
    a, b = sides(*table)
    wanted = stats.binomtest(table[0], table[0] + table[2]).pvalue
    exact, drawn = exact_difference(a, b), difference_effect(a, b)
    assert exact.p == pytest.approx(wanted, rel=1e-9)
    assert drawn.p == pytest.approx(wanted, abs=4 * (wanted / NUM_SWAPS) ** 0.5 + 1 / NUM_SWAPS)
    assert exact.method == MCNEMAR


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_leaves_out_nothing_exactly_where_p_says_so(confidence: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        plus, zero, minus = (int(n) for n in rng.integers(0, 14, 3))
        if plus + minus == 0 or plus + zero + minus < 8:
            continue
        test = mcnemar_test(*sides(plus, zero, minus))
        low, high = test.interval(confidence)
        assert (low <= 0 <= high) == (test.p() > 1 - confidence)
        assert -1 <= low <= test.estimate() <= high <= 1
        assert test.p((low + test.estimate()) / 2) > 1 - confidence
        assert low == -1 or test.p(low - 1e-4) <= 1 - confidence
        assert high == 1 or test.p(high + 1e-4) <= 1 - confidence


def test_coverage_and_false_alarms() -> None:
    """Of 200 trials of 60 prompts each, 5 % of intervals at most leave out what is true."""
    rng, missed, alarms = np.random.default_rng(2), 0, 0
    for _ in range(200):
        state = rng.choice(3, 60, p=[0.15, 0.6, 0.25])
        found = mcnemar_test(*sides(*(int((state == i).sum()) for i in range(3))))
        low, high = found.interval(0.95)
        missed += not low <= -0.1 <= high
        same = rng.choice(3, 60, p=[0.2, 0.6, 0.2])
        alarms += mcnemar_test(*sides(*(int((same == i).sum()) for i in range(3)))).p() <= 0.05
    most = stats.binom.ppf(0.999, 200, 0.05)
    assert missed <= most
    assert alarms <= most


def test_what_has_no_test_stays_as_it_is() -> None:
    same = exact_difference(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert same.identical
    few = exact_difference(*sides(2, 1, 0))
    assert (few.low, few.high) == (None, None)
    assert few.reason == "3 units, and 6 are needed for an interval"
    assert exact_difference(np.zeros(0), np.zeros(0)).estimate is None
