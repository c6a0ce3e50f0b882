"""McNemar's exact test is the swap test of zeros and ones; of effects other than none, rare ones
too, what it says is right as often as it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jobs.stats.permutation.bounded import BoundedTest, MeanLimits, ShareLimits
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import difference_effect, score_effect, share_effect
from jobs.stats.permutation.mcnemar import MCNEMAR, McNemarSwaps, exact_difference, mcnemar_test
from jobs.stats.permutation.swaps import NUM_SWAPS

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
    swaps, effect, ones = difference_effect(a, b), exact_difference(a, b), np.ones_like(a)
    exact = McNemarSwaps((np.stack([a, ones, b, ones]),), (1.0,), is_log=False)
    assert swaps.test is not None
    for theta in (-0.5, -0.1, -0.02, 0.0, 0.05, 0.2, 1 / 3, 0.7):
        assert exact.p(theta) == pytest.approx(swaps.test.p(theta), abs=1e-9)
        assert exact.p_above(theta) == pytest.approx(swaps.test.p_above(theta), abs=1e-9)
        assert exact.p_below(theta) == pytest.approx(swaps.test.p_below(theta), abs=1e-9)
    assert exact.interval(0.95) == pytest.approx((swaps.low, swaps.high), abs=2e-6)
    assert (effect.estimate, effect.se, effect.p) == (swaps.estimate, swaps.se, exact.p())
    assert effect.test is not None
    # No end is nearer, and none passes 0 by that.
    assert (effect.low or 0.0) <= (swaps.low or 0.0) + 2e-6
    assert (effect.high or 0.0) >= (swaps.high or 0.0) - 2e-6
    assert effect.includes_zero == swaps.includes_zero


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


# --- rare effects --------------------------------------------------------------------------------

RARE = 0.02


@pytest.mark.parametrize("size", [50, 150, 250, 400])
def test_a_loss_of_one_in_fifty_is_not_called_within_2_percent(size: int) -> None:
    """Exactly, over all counts of prompts that are lost: none is won."""
    equivalent = covered = supported = 0.0
    for lost in range(50):
        found = exact_difference(*sides(0, size - lost, lost))
        chance = float(stats.binom.pmf(lost, size, RARE))
        assert found.test is not None
        equivalent += chance * (tost(found) <= 0.05)
        low, high = found.at(0.95) or (-1.0, 1.0)
        covered += chance * (low <= -RARE <= high)
        supported += chance * (low >= -RARE and high <= RARE)
    assert equivalent <= 0.05
    assert covered >= 0.95
    assert supported <= 0.05
    none = exact_difference(*sides(0, size, 0))
    assert tost(none) == pytest.approx((1 - RARE) ** size)


def tost(found: Effect) -> float:
    assert found.test is not None
    return max(found.test.p_below(RARE), found.test.p_above(-RARE))


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("theta", [0.02, 0.1, 0.3])
def test_limits_are_right_whatever_the_shares(size: int, theta: float) -> None:
    """Of every table of wins and losses, with θ won more than is lost, exactly."""
    tables = [(i, j, size - i - j) for i in range(size + 1) for j in range(size + 1 - i)]
    shares = np.array([ShareLimits(i, j, size).p_below(theta) for i, j, _ in tables])
    changes = [np.repeat([1.0, -1.0, 0.0], table) for table in tables]
    ones = np.ones(size)
    bets = np.array([MeanLimits(each, ones, ones).p_below(theta) for each in changes])
    for lost in (0, 0.001, 0.01, 0.05, 0.1, 0.3):
        chances = stats.multinomial.pmf(tables, size, [theta + lost, lost, 1 - theta - 2 * lost])
        for level in (0.01, 0.04, 0.05, 0.2):
            for p in (shares, bets):
                assert chances[p <= level].sum() <= level + 1e-9


def several_seeds(rng: np.random.Generator, size: int) -> Effect:
    """Two data sets, three seeds: one in fifty prompts is lost by all of them."""
    a = np.ones(2 * size)
    b = a - (rng.random(2 * size) < RARE)
    b[0] += 1 / 3 * (b[0] == 0)  # a third is no zero or one
    return score_effect(a, b, strata=["x"] * size + ["y"] * size)


@pytest.mark.parametrize("size", [40, 100])
def test_rare_losses_of_several_sets_and_seeds(size: int) -> None:
    rng, wrong, missed, trials = np.random.default_rng(size), 0, 0, 150
    for _ in range(trials):
        found = several_seeds(rng, size)
        wrong += tost(found) <= 0.05
        low, high = found.at(0.95) or (-1.0, 1.0)
        missed += not low <= -RARE <= high
    most = stats.binom.ppf(0.999, trials, 0.05)
    assert wrong <= most
    assert missed <= most


def test_enough_equal_scores_are_shown_to_be_equivalent() -> None:
    """Of clusters, sets and seeds: what is shown grows with them, and ends at what they are."""
    rng = np.random.default_rng(4)
    a = rng.integers(0, 4, 2000) / 3
    change = (rng.random(2000) < 0.02) * rng.choice([-1, 1], 2000) / 3
    found = score_effect(a, np.clip(a + change, 0, 1), strata=["x", "y"] * 1000)
    assert found.test is not None
    assert tost(found) <= 0.01
    same = score_effect(a, a, strata=["x", "y"] * 1000)
    assert same.identical
    assert bounded(same) == pytest.approx((1 - RARE) ** 2000)
    assert same.at(0.95) == pytest.approx((-(1 - 0.025 ** (1 / 2000)), 1 - 0.025 ** (1 / 2000)))
    few = share_effect([0] * 8, [0] * 8, [3] * 8)
    assert bounded(few) == pytest.approx((1 - RARE) ** 8)
    # Sets count alike, so that each of 10 counts what two of 20 do.
    unequal = score_effect([1.0] * 30, [1.0] * 30, strata=["x"] * 10 + ["y"] * 20)
    assert bounded(unequal) == pytest.approx((1 + 2 / 98) ** -10 * (1 + 1 / 98) ** -20)


def bounded(found: Effect) -> float:
    assert isinstance(found.test, BoundedTest)
    return found.test.limits.p_below(RARE)


def test_numbers_beyond_0_and_1_are_taken_as_they_were() -> None:
    a = np.linspace(0, 2, 30)
    b = a + np.random.default_rng(3).normal(0, 0.1, 30)
    assert score_effect(a, b) == difference_effect(a, b)
