"""Factorials: known additive and interacting effects, Shapley's axioms; and Pareto fronts."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.stats.factorial import (
    Cell,
    MissingCellsError,
    Share,
    contrasts,
    missing,
    shapley,
)
from jobs.stats.intervals import NO_SPREAD, ONE_CLUSTER, Floats, mean
from jobs.stats.pareto import dominated, front_probabilities
from jobs.stats.permutation.effects import ratio_effect

FACTORS = ["larosa", "vocabulary", "cache"]
EFFECTS = {"larosa": -0.3, "vocabulary": 0.1, "cache": 0.02}


def cells(factors: list[str]) -> list[Cell]:
    return [
        frozenset(chosen) for n in range(len(factors) + 1) for chosen in combinations(factors, n)
    ]


def log_total(totals: Floats) -> Floats:
    return np.asarray(np.log(totals[0]), dtype=np.float64)


def planted(interaction: float = 0.0, noise: float = 0.0) -> dict[Cell, Floats]:
    """Log-normal totals of 40 clusters; `interaction` is that of the first two factors."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 0.5, 40)
    totals = {}
    for cell in cells(FACTORS):
        change = sum(EFFECTS[f] for f in cell)
        change += interaction * (cell >= {"larosa", "vocabulary"})
        totals[cell] = (base * np.exp(change + rng.normal(0, noise, 40)))[None]
    return totals


def test_additive_effects_have_no_interactions() -> None:
    for found in contrasts(planted(), FACTORS, log_total):
        expected = EFFECTS[found.factors[0]] if len(found.factors) == 1 else 0.0
        assert found.estimate == pytest.approx(expected, abs=1e-12)
        assert found.reason == NO_SPREAD


def test_an_interaction_is_found_and_half_of_it_goes_to_the_main_effects() -> None:
    found = {c.factors: c.estimate for c in contrasts(planted(0.08), FACTORS, log_total)}
    assert found["larosa", "vocabulary"] == pytest.approx(0.08)
    assert found["larosa",] == pytest.approx(-0.3 + 0.04)
    assert found["vocabulary",] == pytest.approx(0.1 + 0.04)
    assert found["cache",] == pytest.approx(0.02)
    assert found["larosa", "cache"] == pytest.approx(0, abs=1e-12)
    assert found["larosa", "vocabulary", "cache"] == pytest.approx(0, abs=1e-12)
    shares = {s.factor: s.estimate for s in shapley(planted(0.08), FACTORS, log_total)}
    assert shares == pytest.approx({"larosa": -0.26, "vocabulary": 0.14, "cache": 0.02})


def test_contrasts_of_a_mean_are_the_paired_t_of_each_clusters_contrast() -> None:
    rng = np.random.default_rng(1)
    totals = {c: np.stack([rng.normal(size=20), np.ones(20)]) for c in cells(["a", "b"])}
    y = {"".join(sorted(c)): totals[c][0] for c in totals}
    by_hand = {
        ("a",): (y["a"] - y[""] + y["ab"] - y["b"]) / 2,
        ("b",): (y["b"] - y[""] + y["ab"] - y["a"]) / 2,
        ("a", "b"): y["ab"] - y["a"] - y["b"] + y[""],
    }
    for found in contrasts(totals, ["a", "b"], mean):
        values = by_hand[found.factors]
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert found.estimate == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.se == pytest.approx(stats.sem(values))
        assert found.p is not None
        assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.03)


def test_one_factor_is_the_effect_of_a_comparison() -> None:
    a, b = np.random.default_rng(2).lognormal(size=(2, 30))
    totals = {frozenset[str](): a[None], frozenset({"x"}): b[None]}
    expected = ratio_effect(a, b)
    (contrast,) = contrasts(totals, ["x"], log_total)
    (share,) = shapley(totals, ["x"], log_total)
    for found in (contrast, share):
        assert found.estimate == pytest.approx(expected.log_estimate)
        assert found.se == pytest.approx(expected.se)
    assert share.share == 1


def test_noisy_effects_are_inside_their_intervals() -> None:
    found = contrasts(planted(0.08, noise=0.02), FACTORS, log_total, confidence=0.999)
    expected = {"larosa": -0.26, "vocabulary": 0.14, "cache": 0.02}
    for contrast in found:
        assert contrast.low is not None
        assert contrast.high is not None
        truth = expected[contrast.factors[0]] if len(contrast.factors) == 1 else 0.0
        if contrast.factors == ("larosa", "vocabulary"):
            truth = 0.08
        assert contrast.low <= truth <= contrast.high
        assert contrast.high - contrast.low < 0.1


def test_missing_cells_are_named() -> None:
    totals = planted()
    del totals[frozenset({"larosa", "cache"})], totals[frozenset()]
    assert missing(totals, FACTORS) == [frozenset(), frozenset({"larosa", "cache"})]
    with pytest.raises(MissingCellsError, match=r"none; cache \+ larosa") as raised:
        contrasts(totals, FACTORS, log_total)
    assert raised.value.cells == (frozenset(), frozenset({"larosa", "cache"}))
    with pytest.raises(MissingCellsError):
        shapley(totals, FACTORS, log_total)
    assert missing(planted(), FACTORS) == []


def test_what_has_no_interval_says_why() -> None:
    one = {cell: totals[:, :1] for cell, totals in planted(noise=0.1).items()}
    assert all(c.reason == ONE_CLUSTER for c in contrasts(one, FACTORS, log_total))
    assert all(s.low is None and s.p is None for s in shapley(one, FACTORS, log_total))
    zero = planted()
    zero[frozenset()] = np.zeros((1, 40))
    with pytest.raises(ValueError, match="not finite"), np.errstate(divide="ignore"):
        contrasts(zero, FACTORS, log_total)


def test_equal_cells_show_exactly_nothing() -> None:
    """Not the last digits of sums, which a share would turn into any number."""
    same = np.random.default_rng(8).lognormal(size=(1, 30))
    totals = {cell: same.copy() for cell in cells(FACTORS)}
    for contrast in contrasts(totals, FACTORS, log_total):
        assert (contrast.estimate, contrast.low, contrast.reason) == (0, None, NO_SPREAD)
    for share in shapley(totals, FACTORS, log_total):
        assert (share.estimate, share.share, share.reason) == (0, None, NO_SPREAD)


games = st.lists(st.floats(-10, 10), min_size=16, max_size=16)


def game(values: list[float], factors: list[str]) -> dict[Cell, Floats]:
    """Cells whose mean is the given value, over three clusters."""
    spread = np.array([-1.0, 0.0, 1.0])
    return {
        cell: np.stack([value + spread * (i % 3), np.ones(3)])
        for i, (cell, value) in enumerate(zip(cells(factors), values, strict=False))
    }


def shares_of(totals: dict[Cell, Floats], factors: list[str]) -> dict[str, Share]:
    return {share.factor: share for share in shapley(totals, factors, mean)}


@given(games)
@settings(max_examples=60, deadline=None)
def test_shapley_values_sum_to_the_whole(values: list[float]) -> None:
    factors = ["a", "b", "c", "d"]
    totals = game(values, factors)
    found = shares_of(totals, factors)
    whole = values[15] - values[0]
    assert sum(s.estimate for s in found.values()) == pytest.approx(whole, abs=1e-9)
    if abs(whole) > 1e-3:
        assert sum(s.share or 0 for s in found.values()) == pytest.approx(1)


@given(games)
@settings(max_examples=60, deadline=None)
def test_factors_that_do_alike_get_alike(values: list[float]) -> None:
    """Symmetry: a and b are exchanged in every cell, and the game stays the same."""
    factors = ["a", "b", "c", "d"]
    totals = game(values, factors)
    swap = {"a": "b", "b": "a"}
    alike = {
        cell: totals[min(cell, frozenset(swap.get(f, f) for f in cell), key=sorted)]
        for cell in totals
    }
    found = shares_of(alike, factors)
    assert found["a"].estimate == pytest.approx(found["b"].estimate, abs=1e-9)


@given(games)
@settings(max_examples=60, deadline=None)
def test_a_factor_that_does_nothing_gets_nothing(values: list[float]) -> None:
    factors = ["a", "b", "c", "d"]
    totals = game(values, factors)
    without = {cell: totals[cell - {"d"}] for cell in totals}
    found = shares_of(without, factors)
    assert found["d"].estimate == pytest.approx(0, abs=1e-9)
    rest = shares_of({c: t for c, t in totals.items() if "d" not in c}, factors[:3])
    for factor in factors[:3]:
        assert found[factor].estimate == pytest.approx(rest[factor].estimate, abs=1e-9)


def test_shapley_is_the_mean_over_all_orders() -> None:
    """The glove game: one left glove, two right ones; a pair is worth 1."""
    factors = ["left", "right", "other right"]
    values = {c: float("left" in c and len(c) > 1) for c in cells(factors)}
    totals = {c: np.stack([np.full(4, value), np.ones(4)]) for c, value in values.items()}
    found = {s.factor: s.estimate for s in shapley(totals, factors, mean)}
    assert found == pytest.approx({"left": 2 / 3, "right": 1 / 6, "other right": 1 / 6})


def front_of(values: dict[str, Any], seed: int = 0) -> dict[str, float]:
    """Of plain means: every unit counts one."""
    return front_probabilities(
        {name: np.stack([each, np.ones_like(each)], axis=1) for name, each in values.items()},
        seed,
    )


def test_a_ratio_is_that_of_totals() -> None:
    """By means of ratios `even` would win: 1 against 1.51."""
    even = np.stack([np.full(40, 2.0), np.full(40, 2.0)])
    odd = np.stack([np.tile([3.0, 2.0], 20), np.tile([1.0, 100.0], 20)])
    assert front_probabilities({"even": even[None], "odd": odd[None]}) == {"even": 0, "odd": 1}


def test_a_clear_front() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, (4, 2, 50))
    points = {"fast": (1, 3), "small": (3, 1), "middle": (2, 2), "bad": (3, 3)}
    values = {
        name: np.array(point)[:, None] + noise[i] for i, (name, point) in enumerate(points.items())
    }
    assert front_of(values) == {"fast": 1, "small": 1, "middle": 1, "bad": 0}


def test_configurations_that_are_equal_are_on_the_front_together() -> None:
    one = np.random.default_rng(4).lognormal(size=(3, 40))
    found = front_of({"a": one, "b": one.copy(), "worse": one + np.array([[0], [0], [0.1]])})
    assert found == {"a": 1, "b": 1, "worse": 0}


def test_one_objective_without_a_difference_is_even() -> None:
    """With one objective, the front is the best: the bootstrap probability of a mean below 0."""
    d = np.random.default_rng(5).normal(0, 1, 200)
    d += 0.5 * d.std() / math.sqrt(200) - d.mean()
    found = front_of({"a": np.zeros((1, 200)), "b": d[None]})
    assert found["a"] == pytest.approx(stats.norm.cdf(0.5), abs=0.05)
    assert found["a"] + found["b"] == pytest.approx(1)


def test_units_are_resampled_together() -> None:
    """A small steady gain is sure although units differ far more than the gain."""
    units = np.random.default_rng(6).lognormal(0, 2, 60)
    found = front_of({"slow": units[None], "quick": 0.99 * units[None]})
    assert found == {"slow": 0, "quick": 1}


def test_units_that_an_objective_lacks_are_left_out_of_its_mean() -> None:
    one, other = np.ones((2, 30)), np.ones((2, 30))
    one[1, :20], other[1, :20] = math.nan, math.nan
    other[1, 20:] = 2
    assert front_of({"a": one, "b": other}) == {"a": 1, "b": 0}
    other[1] = math.nan
    with pytest.raises(ValueError, match="needs units"):
        front_of({"a": one, "b": other})
    assert front_probabilities({}) == {}


def test_the_front_is_repeatable() -> None:
    values = dict(zip("abc", np.random.default_rng(7).normal(size=(3, 2, 20)), strict=True))
    assert front_of(values, seed=1) == front_of(values, seed=1)
    assert front_of(values, seed=1) != front_of(values, seed=2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_domination_by_its_definition(points: list[tuple[int, int]]) -> None:
    expected = [
        any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in points)
        for p in points
    ]
    found = dominated(np.array(points, dtype=float)[:, :, None])[:, 0]
    assert found.tolist() == expected
