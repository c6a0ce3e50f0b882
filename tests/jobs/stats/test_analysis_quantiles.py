"""Quantiles, bootstrap and drift: known intervals, coverage, and what has no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics.bootstrap import bca, bca_ratio, percentile
from jobs.stats.drift import false_alarm_rate, order_effect, trend
from jobs.stats.permutation.effects import difference_effect
from jobs.stats.quantiles import order_interval, quantile_difference


def test_the_median_of_ten_is_between_the_second_and_the_ninth() -> None:
    """97.9 % confidence: Conover's table of the binomial distribution, n = 10, p = 0.5."""
    values = list(range(10, 0, -1))
    assert order_interval(values, 0.5) == (2, 9)
    assert order_interval(values, 0.5, 0.98) == (1, 10)


def test_a_99th_percentile_needs_299_values_for_a_bound_and_368_for_an_interval() -> None:
    assert order_interval(range(298), 0.99, 0.90) is None
    one_sided = order_interval(range(299), 0.99, 0.90)
    assert one_sided is not None
    assert one_sided[1] == 298
    assert order_interval(range(367), 0.99) is None
    assert order_interval(range(368), 0.99) is not None
    assert order_interval([], 0.5) is None
    assert order_interval([1.0, math.nan], 0.5) is None


@pytest.mark.parametrize(("q", "size"), [(0.5, 25), (0.9, 80), (0.99, 500), (0.05, 90)])
def test_order_intervals_cover_and_are_no_wider_than_they_must_be(q: float, size: int) -> None:
    found = order_interval(range(1, size + 1), q)
    assert found is not None
    low, high = (int(rank) for rank in found)
    below, above = stats.binom.cdf(low - 1, size, q), stats.binom.sf(high - 1, size, q)
    assert below <= 0.025
    assert above <= 0.025
    assert stats.binom.cdf(low, size, q) > 0.025
    assert stats.binom.sf(high - 2, size, q) > 0.025


def test_a_quantile_that_moves_is_found() -> None:
    rng = np.random.default_rng(0)
    a = rng.lognormal(0, 1, 200)
    b = a * np.where(a > np.quantile(a, 0.8), 1.5, 1.0)
    same, moved = quantile_difference(a, b, 0.5), quantile_difference(a, b, 0.9)
    assert same is not None
    assert moved is not None
    assert same == (0, 0, 0)
    assert moved.estimate == pytest.approx(np.quantile(b, 0.9) - np.quantile(a, 0.9))
    assert moved.low is not None
    assert 0 < moved.low < moved.estimate
    assert quantile_difference(a, b, 0.9) == moved


def test_clusters_widen_the_interval_of_a_quantile() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(20), 10)
    a = rng.normal(0, 1, 200)
    b = a + rng.normal(0, 1, 20)[clusters]
    apart = quantile_difference(a, b, 0.5, num_resamples=400)
    together = quantile_difference(a, b, 0.5, clusters.tolist(), num_resamples=400)
    assert apart is not None
    assert together is not None
    assert None not in (apart.low, together.low)
    assert together.high - together.low > 1.3 * (apart.high - apart.low)  # type: ignore[operator]


def test_intervals_of_a_difference_of_quantiles_cover() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(150):
        a, b = rng.exponential(size=(2, 120))
        found = quantile_difference(a, b, 0.75, num_resamples=200)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    bounds = stats.binomtest(covered, 150).proportion_ci(0.999)
    assert bounds.low <= 0.97
    assert bounds.high >= 0.93


def test_quantile_differences_without_an_answer() -> None:
    assert quantile_difference([], [], 0.5) is None
    assert quantile_difference([math.nan], [1.0], 0.5) is None
    assert quantile_difference([1.0], [3.0], 0.5) == (2, None, None)
    assert quantile_difference([1.0, 2.0], [3.0, 4.0], 0.5, ["x", "x"]) == (2, None, None)


def test_bootstraps_are_close_to_t_where_t_is_right() -> None:
    rng = np.random.default_rng(3)
    values, a = rng.normal(1, 1, 200), rng.lognormal(0, 0.3, 200)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    for found in (bca(values), percentile(values)):
        assert found == pytest.approx((expected.low, expected.high), abs=0.02)
    ratio = bca_ratio(a, a * (1 + 0.1 * values))
    assert ratio is not None
    assert ratio.low < float((a * 0.1 * values).sum() / a.sum()) < ratio.high
    assert percentile(values, np.median) != percentile(values)
    assert bca(values, seed=1) == bca(values, seed=1) != bca(values, seed=2)


def test_bootstraps_without_an_answer() -> None:
    assert bca([1.0]) is None
    assert bca([2.0, 2.0, 2.0]) is None
    assert percentile([2.0, 2.0, 2.0]) is None
    assert bca_ratio([1.0, 2.0], [2.0, 4.0]) is None
    assert bca_ratio([0.0, 0.0], [2.0, 4.0]) is None


def test_a_trend_is_found_whatever_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(4)
    order = rng.permutation(90)
    found = trend(0.001 * order + rng.normal(0, 0.01, 90), order)
    assert found is not None
    assert found.slope_per_step == pytest.approx(0.001, abs=2e-4)
    assert found.p < 1e-6
    assert found.last_third - found.first_third == pytest.approx(0.06, abs=0.01)


def test_one_outlier_is_no_trend() -> None:
    values = np.random.default_rng(5).normal(0, 0.01, 60)
    values[-1] = 50.0
    found = trend(values, np.arange(60))
    assert found is not None
    assert found.p > 0.05
    assert abs(found.slope_per_step) < 1e-3


def test_trends_and_places_raise_5_percent_of_alarms_where_nothing_is() -> None:
    rng = np.random.default_rng(6)
    trends = places = 0
    for _ in range(500):
        values = rng.lognormal(size=40)
        found, other = trend(values, np.arange(40)), order_effect(values, [0, 1, 2, 3] * 10)
        assert found is not None
        assert other is not None
        trends += found.p <= 0.05
        places += other.p <= 0.05
    for count in (trends, places):
        bounds = stats.binomtest(count, 500).proportion_ci(0.999)
        assert bounds.low <= 0.05 <= bounds.high


def test_the_first_in_a_block_is_slower() -> None:
    rng = np.random.default_rng(7)
    position = [0, 1, 2] * 20
    values = rng.normal(0, 0.01, 60) + np.where(np.array(position) == 0, 0.02, 0.0)
    found = order_effect(values, position)
    assert found is not None
    assert found.p < 0.001
    assert found.medians[0] == pytest.approx(0.02, abs=0.01)


def test_drift_without_an_answer() -> None:
    assert trend([1.0] * 10, range(10)) is None
    assert trend([1.0, 2.0, 3.0], [1, 2, 3]) is None
    assert trend([1.0, 2.0, 3.0, math.nan, 4.0, 5.0], range(6)) is None
    assert order_effect([1.0, 2.0, 3.0], [0, 0, 0]) is None
    assert order_effect([1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1]) is None


def test_relabelling_an_a_a_pair_shows_whether_the_clusters_are_right() -> None:
    rng = np.random.default_rng(8)
    shards = np.repeat(np.arange(12), 10)
    a, b = rng.lognormal(0, 0.02, (2, 12))[:, shards] * rng.lognormal(0, 0.005, (2, 120))
    rate, num = false_alarm_rate(a, b, shards.tolist(), 400)
    assert num == 400
    assert rate is not None
    bounds = stats.binomtest(round(rate * num), num).proportion_ci(0.999)
    assert bounds.low <= 0.065
    assert bounds.high >= 0.035
    rows = list(range(120))
    naive, _ = false_alarm_rate(a, b, shards.tolist(), 200, clusters=rows)
    assert naive is not None
    assert naive > 0.25
    assert false_alarm_rate(a, b, shards.tolist(), 400) == (rate, num)


def test_relabelling_takes_any_effect_and_says_where_there_is_no_test() -> None:
    d = np.random.default_rng(9).standard_t(3, 30)
    rate, num = false_alarm_rate(np.zeros(30), d, list(range(30)), 200, statistic=difference_effect)
    assert num == 200
    assert rate is not None
    assert rate < 0.12
    assert false_alarm_rate([1.0], [2.0], ["x"]) == (None, 0)
