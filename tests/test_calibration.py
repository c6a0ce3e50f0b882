"""How often the statistics are wrong: `benchmarks/statistics.py` with few trials, or many.

A goal fails where the true rate cannot be within it by the exact binomial interval (99.9 %).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.statistics import (
    POWERS,
    SCENARIOS,
    Rate,
    blocked_order,
    calibration,
    families,
    planted,
    power,
    settled,
)

FEW, MANY = 400, 4000


def check(rates: Sequence[Rate]) -> None:
    missed = [f"{r.name}: {r.what} {r.rate:.2%}" for r in rates if not r.may_be_within]
    assert not missed


@pytest.mark.parametrize("name", SCENARIOS)
def test_false_alarms_are_5_percent_and_coverage_95(name: str) -> None:
    check(calibration(name, FEW, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_false_alarms_are_5_percent_and_coverage_95_in_many_trials(name: str) -> None:
    check(calibration(name, MANY, seed=2))


@pytest.mark.parametrize("number", range(len(POWERS)))
def test_power_is_that_of_the_formula(number: int) -> None:
    check(power(number, FEW, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(POWERS)))
def test_power_is_that_of_the_formula_in_many_trials(number: int) -> None:
    check(power(number, MANY, seed=2))


def test_what_is_needed_gives_the_power_asked_for() -> None:
    check(settled(2 * FEW, seed=1))


@pytest.mark.slow
def test_what_is_needed_gives_the_power_asked_for_in_many_trials() -> None:
    check(settled(MANY, seed=2))


def test_families_keep_their_error_rates() -> None:
    check(families(FEW, seed=1))


@pytest.mark.slow
def test_families_keep_their_error_rates_in_many_trials() -> None:
    check(families(MANY, seed=2))


def test_a_planted_effect_is_found_by_pairs_and_never_by_overlap_of_intervals() -> None:
    assert planted(200, seed=1) == (200, 200, 0)


def test_all_runs_of_one_first_takes_drift_for_an_effect() -> None:
    """Why runs are in random order: the same drift does no harm in `SCENARIOS`."""
    assert blocked_order(100, seed=1) > 0.5


def test_a_rate_outside_its_goal_is_told() -> None:
    assert not Rate("", "", 100, 1000, 0.035, 0.065).may_be_within
    assert Rate("", "", 66, 1000, 0.035, 0.065).may_be_within
    assert not Rate("", "", 66, 1000, 0.035, 0.065).is_within
