"""Tests of hypotheses against scipy, statsmodels and numbers that were published."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from benchmarks.statistics.spending import Spending, conservative_levels, nominal_levels, spent
from jobs.stats.intervals import jackknife, log_ratio, mean
from jobs.stats.permutation.effects import (
    cluster_totals,
    difference_effect,
    geometric_effect,
    mean_effect,
    rate_effect,
    ratio_effect,
)
from jobs.stats.significance import benjamini_hochberg, holm, mcnemar_p, sign_flip_p, tost_p, wilson

# Student, Biometrika 6 (1908): extra hours of sleep by two drugs, ten patients.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Darwin's crossed less self-fertilised maize, in eighths of an inch: Fisher, The Design of
# Experiments, 1935, section 17.
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_students_sleep_data() -> None:
    """t = -4.0621, df = 9, p = 0.002833, as R's `t.test(extra ~ group, paired = TRUE)`."""
    found = difference_effect(SLEEP_2, SLEEP_1)
    assert found.estimate == pytest.approx(-1.58)
    assert found.se is not None
    assert found.df == 9
    t = -1.58 / found.se
    assert t == pytest.approx(-4.0621, abs=5e-5)
    assert 2 * stats.t.sf(-t, 9) == pytest.approx(0.002833, abs=5e-7)
    mean = mean_effect([a - b for a, b in zip(SLEEP_1, SLEEP_2, strict=True)])
    assert (mean.low, mean.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-7)
    assert mean.p == pytest.approx(0.002833, abs=5e-7)


def test_fishers_permutation_of_darwins_maize() -> None:
    """863 of 32,768 patterns have a total as large: section 21, p = 5.267 % two-sided."""
    assert sign_flip_p(np.array(MAIZE, dtype=float), num_resamples=2**15) == 2 * 863 / 2**15


@pytest.mark.parametrize("size", [2, 5, 10, 13])
def test_sign_flips_equal_scipys_where_all_patterns_are_tried(size: int) -> None:
    values = np.random.default_rng(size).normal(0.4, 1, size)
    assert sign_flip_p(values) == pytest.approx(scipys(values))


@pytest.mark.parametrize(("size", "shift"), [(14, 0.1), (40, 0.3), (101, 0.1), (250, 0.02)])
def test_sign_flips_agree_with_scipys_at_random(size: int, shift: float) -> None:
    """The standard error is sqrt(p (1 - p) / 9999); scipy doubles one side, so twice that."""
    values = np.random.default_rng(size).normal(shift, 1, size)
    expected = scipys(values)
    error = math.sqrt(expected * (1 - expected) / 9999)
    assert abs(sign_flip_p(values) - expected) < 4 * math.hypot(error, 2 * error)


def scipys(values: np.ndarray) -> float:
    return float(
        stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=9999, rng=1
        ).pvalue
    )


def test_sign_flips_are_repeatable_in_any_order_and_count_ties() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, 50)
    assert sign_flip_p(values) == sign_flip_p(values) == sign_flip_p(values[::-1])
    assert sign_flip_p(values) == sign_flip_p(-values)
    assert sign_flip_p(np.array([0.1, 0.2, -0.3])) == 1
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, 0.0])) == 0.25
    assert sign_flip_p(np.zeros(20)) == 1
    assert sign_flip_p(np.full(60, 1.0)) == 1 / 10_000
    assert math.isnan(sign_flip_p(np.array([])))


def test_too_few_clusters_cannot_reach_5_percent() -> None:
    assert sign_flip_p(np.ones(5)) == 2 / 32
    assert sign_flip_p(np.ones(8)) == 2 / 256


def test_the_standard_error_of_an_effect_is_on_the_intervals_scale() -> None:
    a, b = np.random.default_rng(4).lognormal(size=(2, 40))
    t = float(stats.t.ppf(0.975, 39))
    for found in (ratio_effect(a, b), geometric_effect(a, b), rate_effect((a, a + 1), (b, a + 2))):
        assert found.estimate is not None
        assert found.se is not None
        assert found.log_estimate == pytest.approx(math.log1p(found.estimate))
        assert found.high == pytest.approx(math.expm1(found.log_estimate + t * found.se), rel=0.2)
        assert found.df == 39
    for found in (difference_effect(a, b), mean_effect(a)):
        assert found.se is not None
        assert found.estimate == found.log_estimate
        assert found.low == pytest.approx(found.log_estimate - t * found.se, rel=0.2)


def test_the_p_of_a_difference_is_that_of_its_clusters() -> None:
    d = np.random.default_rng(5).normal(0.5, 1, 24)
    clusters = [i // 4 for i in range(24)]
    means = d.reshape(6, 4).mean(axis=1)
    assert difference_effect(np.zeros(24), d, clusters).p == sign_flip_p(means)
    by_signs = sign_flip_p(d)
    assert difference_effect(np.zeros(24), d).p == pytest.approx(by_signs, rel=0.3, abs=1e-3)


def test_swapping_the_sides_turns_a_ratio_and_keeps_its_p() -> None:
    a, b = np.random.default_rng(6).lognormal(0, 0.3, (2, 30))
    there, back = ratio_effect(a, b), ratio_effect(b, a)
    assert there.log_estimate == pytest.approx(-back.log_estimate)  # type: ignore[operator]
    assert there.p == back.p


def test_what_has_no_interval_has_no_p() -> None:
    found = ratio_effect([1.0, 2.0, 3.0], [1.0, 2.5, 3.0])
    assert None not in (found.se, found.p, found.df)
    withheld = found.withheld("too few")
    assert (withheld.se, withheld.p, withheld.df) == (None, None, None)
    assert withheld.estimate == found.estimate
    for other in (ratio_effect([1, 2], [1, 2]), ratio_effect([1], [2]), ratio_effect([], [])):
        assert (other.se, other.p, other.df, other.log_estimate) == (None,) * 4


def test_pseudo_values_are_the_values_where_the_statistic_is_a_mean() -> None:
    values = np.random.default_rng(7).normal(size=9)
    found = jackknife(np.stack([values, np.ones(9)]), mean, 0.95)
    assert not isinstance(found, str)
    assert found.pseudo_values == pytest.approx(values)
    assert found.se == pytest.approx(stats.sem(values))


def test_pseudo_values_have_the_mean_and_the_spread_of_the_estimate() -> None:
    found = jackknife(np.random.default_rng(8).lognormal(size=(2, 12)), log_ratio, 0.95)
    assert not isinstance(found, str)
    assert found.pseudo_values.mean() == pytest.approx(found.estimate)
    assert stats.sem(found.pseudo_values) == pytest.approx(found.se)


def test_cluster_totals_leave_out_what_is_not_usable() -> None:
    names, totals = cluster_totals(
        [[1.0, 2.0, None, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0, math.nan]], ["b", "a", "c", "b", "a"]
    )
    assert names == ["b", "a"]
    assert totals.tolist() == [[5, 2], [2, 1]]
    assert cluster_totals([[1.0, None, 3.0]])[0] == [0, 2]


def test_tost_equals_statsmodels() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(2, 30))
    found = difference_effect(a, b)
    assert found.se is not None
    assert found.df is not None
    for low, high in ((-0.6, 0.6), (-0.1, 0.9), (-2.0, 0.05)):
        p = tost_p((b - a).mean(), found.se, found.df, low, high)
        assert p == pytest.approx(ttost_paired(b, a, low, high)[0])


def test_tost_by_swaps_is_the_90_percent_interval_inside_the_margin() -> None:
    found = ratio_effect(*np.random.default_rng(10).lognormal(0, 0.05, (2, 12)), confidence=0.9)
    assert found.test is not None
    low, high = found.test.interval(0.9)
    assert found.test.p_above(low - 1e-6) <= 0.05 < found.test.p_above(low + 1e-6)
    assert found.test.p_below(high + 1e-6) <= 0.05 < found.test.p_below(high - 1e-6)


@pytest.mark.parametrize(("se", "low", "high"), [(0.0, -1, 1), (1.0, 1, 1)])
def test_tost_refuses_what_has_no_answer(se: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"positive|empty"):
        tost_p(0.0, se, 5, low, high)


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    adjusted = benjamini_hochberg([0.01, None, 0.04, 0.03])
    assert adjusted == pytest.approx([0.03, None, 0.04, 0.04])
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([None]) == [None]
    for adjust in (holm, benjamini_hochberg):
        assert adjust([0.01, math.nan, 0.04]) == adjust([0.01, None, 0.04])


def test_benjamini_and_hochbergs_own_example_finds_four() -> None:
    """Their section 3.2: 15 p-values of which their procedure finds four and Bonferroni's three."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert sum(q is not None and q <= 0.05 for q in benjamini_hochberg(p)) == 4
    assert sum(q is not None and q <= 0.05 for q in holm(p)) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_adjusted_p_equal_statsmodels_and_never_fall(p: list[float]) -> None:
    for adjust, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        with patch("gc.collect"):  # which statsmodels calls each time
            expected = multipletests(p, method=method)[1].tolist()
        assert adjust(p) == pytest.approx(expected)
        found = adjust(p)
        assert all(q is not None and q >= x * (1 - 1e-12) for q, x in zip(found, p, strict=True))


def test_mcnemar_is_the_binomial_test() -> None:
    for only_a, only_b in ((0, 0), (1, 0), (3, 12), (25, 25), (0, 6)):
        expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar_p(only_a, only_b) == pytest.approx(expected)
    assert mcnemar_p(0, 6) == 2 / 64


def test_wilsons_interval() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(
    ("spending", "expected"),
    [
        ("obrien-fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_boundaries_of_five_equal_looks(spending: Spending, expected: list[float]) -> None:
    """As Lan and DeMets' functions give them; also in the manual of R's `ldbounds`."""
    levels = nominal_levels([0.2, 0.4, 0.6, 0.8, 1.0], 0.05, spending)
    assert [-stats.norm.ppf(p / 2) for p in levels] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_two_unequal_looks_by_direct_integration(spending: Spending) -> None:
    """P(no finding at either look), by an integral over the first z, is 1 - alpha."""
    first, second = (-stats.norm.ppf(p / 2) for p in nominal_levels([0.3, 1.0], 0.05, spending))

    def stays(z: float) -> float:
        middle, spread = z * math.sqrt(0.3), math.sqrt(0.7)
        inside = stats.norm.cdf([(-second - middle) / spread, (second - middle) / spread])
        return float(stats.norm.pdf(z) * (inside[1] - inside[0]))

    assert integrate.quad(stays, -first, first)[0] == pytest.approx(0.95, abs=1e-7)


def test_looks_keep_alpha_and_earlier_levels_do_not_change() -> None:
    rng = np.random.default_rng(11)
    fractions = [0.13, 0.4, 0.55, 0.9, 1.0]
    levels = nominal_levels(fractions)
    assert nominal_levels(fractions[:3]) == levels[:3]
    steps = np.sqrt(np.diff([0.0, *fractions]))
    z = np.cumsum(rng.normal(size=(100_000, 5)) * steps, axis=1) / np.sqrt(fractions)
    alarms = int((2 * stats.norm.sf(abs(z)) <= levels).any(axis=1).sum())
    bounds = stats.binomtest(alarms, 100_000).proportion_ci(0.999)
    assert bounds.low <= 0.05 <= bounds.high
    assert (2 * stats.norm.sf(abs(z)) <= 0.05).any(axis=1).mean() > 0.1


def test_the_conservative_levels_sum_to_alpha_and_are_never_above() -> None:
    fractions = [0.2, 0.5, 0.7, 1.0]
    for spending in ("obrien-fleming", "pocock"):
        levels = conservative_levels(fractions, 0.05, spending)
        assert sum(levels) == pytest.approx(0.05)
        exact = nominal_levels(fractions, 0.05, spending)
        assert all(x <= y + 1e-12 for x, y in zip(levels, exact, strict=True))


def test_spending_ends_at_alpha_and_very_early_looks_spend_nothing() -> None:
    assert (spent(0.0), spent(1.0), spent(1.3)) == (0, 0.05, 0.05)
    assert spent(0.999999) == pytest.approx(0.05, abs=1e-5)
    assert nominal_levels([0.01, 1.0]) == pytest.approx([0, 0.05], abs=1e-9)
    assert nominal_levels([1.0, 1.2]) == pytest.approx([0.05, 0])
    assert nominal_levels([]) == []
    with pytest.raises(ValueError, match="grow"):
        nominal_levels([0.5, 0.5])
