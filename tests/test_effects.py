"""Effects: hand-worked numbers, degenerate input, and how often the intervals cover the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.analysis.effects import (
    UNBOUNDED,
    Effect,
    difference_effect,
    geometric_effect,
    mean_effect,
    rate_effect,
    ratio_effect,
)


def test_ratio_by_hand() -> None:
    a, b = [1.0, 2.0, 3.0], [1.1, 2.4, 3.1]
    found = ratio_effect(a, b)
    assert found.estimate == pytest.approx(6.6 / 6 - 1)
    logs = [math.log(5.5 / 5), math.log(4.2 / 4), math.log(3.5 / 3)]
    error = math.sqrt(2 / 3 * sum((x - sum(logs) / 3) ** 2 for x in logs))
    half = float(stats.t.ppf(0.975, 2)) * error
    assert found.low == pytest.approx(1.1 * math.exp(-half) - 1)
    assert found.high == pytest.approx(1.1 * math.exp(half) - 1)
    assert (found.num_units, found.num_clusters) == (3, 3)


def test_difference_equals_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 20))
    found = difference_effect(a, b)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_clusters_of_a_mean_by_the_sandwich_formula() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(1, 1, 24)
    clusters = [i // 4 for i in range(24)]
    found = difference_effect(np.zeros(24), d, clusters)
    sums = (d - d.mean()).reshape(6, 4).sum(axis=1)
    half = float(stats.t.ppf(0.975, 5)) * math.sqrt(6 / 5 * float(np.square(sums).sum())) / 24
    assert found.high is not None
    assert found.high - d.mean() == pytest.approx(half)
    assert (found.num_units, found.num_clusters) == (24, 6)


def test_unequal_clusters_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.lognormal(size=(2, 30))
    clusters = rng.integers(0, 9, 30)
    order = rng.permutation(30)
    first = ratio_effect(a, b, clusters.tolist())
    second = ratio_effect(a[order], b[order], clusters[order].tolist())
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


def test_geometric_leaves_empties_out_and_counts_them() -> None:
    found = geometric_effect([1, 2, 0, 5, None], [2, 8, 3, 0, 1])
    assert found.estimate == pytest.approx(math.sqrt(2 * 4) - 1)
    assert (found.num_units, found.num_left_out) == (2, 3)


def test_rate_of_totals() -> None:
    a = ([10.0, 20.0, 30.0], [1.0, 2.0, 2.0])
    b = ([10.0, 22.0, 30.0], [1.0, 1.5, 1.5])
    found = rate_effect(a, b)
    assert found.estimate == pytest.approx((62 / 4) / (60 / 5) - 1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 62 * 5 / 4 / 60 - 1 < found.high


def test_equal_inputs_are_identical() -> None:
    values = [0.0, 1.5, 2.5]
    for found in (
        ratio_effect(values, values),
        difference_effect(values, values),
        rate_effect((values, values), (values, values)),
        ratio_effect([0, 0], [0, 0]),
        geometric_effect(values, values),
    ):
        assert (found.estimate, found.low, found.high) == (0, 0, 0)
        assert found.identical
        assert found.includes_zero


NAN, INF = math.nan, math.inf
DEGENERATE = [
    ([], []),
    ([1.0], [2.0]),
    ([None, None], [1.0, 2.0]),
    ([NAN, INF], [1.0, 2.0]),
    ([0.0, 0.0], [1.0, 2.0]),
    ([1.0, 2.0], [0.0, 0.0]),
    ([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]),
    ([1.0, 0.0, 0.0], [2.0, 0.0, 0.0]),
    ([-1.0, 1.0], [1.0, 2.0]),
]


@pytest.mark.parametrize(("a", "b"), DEGENERATE)
def test_degenerate_input_gives_reasons_not_crashes(
    a: list[float | None], b: list[float | None]
) -> None:
    for found in (ratio_effect(a, b), geometric_effect(a, b), rate_effect((a, a), (b, b))):
        check_has_reason(found)
    check_has_reason(difference_effect(a, b), may_have_interval=True)
    check_has_reason(mean_effect(a), may_have_interval=True)


NUMBERS = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(allow_nan=True, allow_infinity=True)
)


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 2)), max_size=6),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("error")
def test_no_numbers_make_an_effect_fail(rows: list[tuple[Any, ...]], clustered: bool) -> None:
    """What is found is finite and in order; what is not has a reason."""
    a, b, c, d, groups = ([row[i] for row in rows] for i in range(5))
    clusters = groups if clustered else None
    for found in (
        ratio_effect(a, b, clusters),
        difference_effect(a, b, clusters),
        geometric_effect(a, b, clusters),
        mean_effect(a, clusters),
        rate_effect((a, b), (c, d), clusters),
    ):
        numbers = (found.estimate, found.low, found.high, found.se, found.p, found.log_estimate)
        assert all(number is None or math.isfinite(number) for number in numbers)
        if found.low is None:
            assert found.reason
        else:
            assert found.estimate is not None
            assert found.high is not None
            assert found.low <= found.estimate <= found.high


def test_what_is_too_large_to_be_written_has_a_reason() -> None:
    for found in (
        geometric_effect([1.0, 1.0], [1.0, 1e60]),
        ratio_effect([1e-300, 1e-300], [1e90, 1e91]),
    ):
        assert found.reason == UNBOUNDED
        assert (found.low, found.high, found.p) == (None, None, None)


def check_has_reason(found: Effect, *, may_have_interval: bool = False) -> None:
    if found.low is None:
        assert found.reason
        assert found.high is None
        assert found.includes_zero is None
    else:
        assert may_have_interval or found.identical
        assert math.isfinite(found.low)


def test_one_cluster_has_an_estimate_and_no_interval() -> None:
    found = ratio_effect([1.0, 2.0], [2.0, 3.0], ["x", "x"])
    assert found.estimate == pytest.approx(2 / 3)
    assert found.low is None
    assert found.reason


def test_withheld_keeps_the_estimate() -> None:
    found = ratio_effect([1.0, 2.0, 3.0], [1.0, 2.5, 3.0]).withheld("too few")
    assert found.estimate == pytest.approx(0.5 / 6)
    assert (found.low, found.high, found.reason) == (None, None, "too few")


def test_confidence_widens() -> None:
    a, b = np.random.default_rng(5).lognormal(size=(2, 12))
    narrow, wide = ratio_effect(a, b, confidence=0.8), ratio_effect(a, b, confidence=0.99)
    assert None not in (narrow.low, wide.low)
    assert wide.low < narrow.low  # type: ignore[operator]


@pytest.mark.parametrize("num_clusters", [8, 24])
@pytest.mark.parametrize("cell_noise", [0.005, 0.03])
def test_intervals_cover_the_truth(num_clusters: int, cell_noise: float) -> None:
    """Cells of 4 log-normal prompts share noise; the truth is +2 %, on average over prompts.

    Passes where the coverage may be 93 to 97 % by the exact binomial interval (99.9 %).
    """
    rng = np.random.default_rng([num_clusters, round(cell_noise * 1000)])
    num_trials, shape = 1000, (num_clusters, 4)
    clusters = [i // 4 for i in range(num_clusters * 4)]
    covered = 0
    for _ in range(num_trials):
        prompts = rng.lognormal(0, 0.8, shape)
        change = 1.02 * rng.lognormal(-(0.1**2) / 2, 0.1, shape)
        a, b = rng.lognormal(-(cell_noise**2) / 2, cell_noise, (2, num_clusters, 1))
        found = ratio_effect((prompts * a).ravel(), (prompts * change * b).ravel(), clusters)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.02 <= found.high
    bounds = stats.binomtest(covered, num_trials).proportion_ci(0.999)
    assert bounds.low <= 0.97
    assert bounds.high >= 0.93


def test_treating_rows_of_a_shard_as_independent_would_not_cover() -> None:
    """Why times are clustered by shard: without it, noise shared by a cell is taken for n rows."""
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(300):
        noise = rng.lognormal(0, 0.03, (2, 8, 1)) * np.ones((2, 8, 12))
        a, b = noise * rng.lognormal(0, 0.005, (2, 8, 12))
        found = ratio_effect(a.ravel(), b.ravel())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered / 300 < 0.6
