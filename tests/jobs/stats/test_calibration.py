"""How often the statistics are wrong: `benchmarks/statistics` with few trials, or many.

A promise is broken where chance does not explain the count: an exact binomial tail below that of 4
standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.statistics.calibration import (
    clusters,
    endings,
    families,
    looks,
    powers,
    promises,
    prompts,
    sets,
)
from benchmarks.statistics.calibration.prompts import LONG, Prompts
from benchmarks.statistics.calibration.rates import Rate, at_most, attained, exactly, summary
from benchmarks.statistics.calibration.sets import Sets
from benchmarks.statistics.calibration.tally import OLD
from benchmarks.statistics.statistics import PARTS
from jobs.stats.permutation.effects import ratio_effect

SEED = 1


def check(rates: Sequence[Rate]) -> None:
    missed = [f"{r.setting}: {r.what} {r.rate:.2%}" for r in rates if not r.may_be_kept]
    assert any(rate.has_goal for rate in rates)
    assert not missed


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_promises_are_kept_in_many_trials(part: str) -> None:
    check(PARTS[part](0.5, 2))


@pytest.mark.parametrize(
    "given", [Prompts(8, 2, 100), LONG, Prompts(24, 2), Prompts(72, 1, 10)], ids=lambda p: p.name
)
def test_false_alarms_and_coverage_whatever_the_lengths(given: Prompts) -> None:
    check(prompts.null(given, 200, SEED) + prompts.covered(given, 80, SEED))


def test_signs_of_pseudo_values_would_be_told() -> None:
    """What verdicts went by before takes one long prompt among short ones for a difference."""
    found = prompts.null(LONG, 150, SEED)
    [alarms] = [rate for rate in found if rate.what == f"{OLD}false alarms at 4 %"]
    assert not Rate("", "", alarms.count, alarms.trials, **exactly(0.04)).may_be_kept


@pytest.mark.parametrize("name", [*clusters.CLUSTERED, *list(clusters.LEASED)[::5]])
def test_false_alarms_and_coverage_of_what_shares_noise(name: str) -> None:
    check(clusters.calibration(name, 80, SEED))


def test_all_runs_of_one_first_takes_drift_for_an_effect() -> None:
    """Why runs are in random order: the same drift does no harm there."""
    assert clusters.blocked_order(60, SEED).rate > 0.5


@pytest.mark.parametrize("given", sets.NULLS[::4], ids=lambda s: s.name)
def test_false_alarms_of_several_sets(given: Sets) -> None:
    check(sets.null(given, 80, SEED))


@pytest.mark.parametrize("given", [Sets(8, 2), Sets(24, 0.5)], ids=lambda s: s.name)
def test_equal_and_opposite_effects(given: Sets) -> None:
    """Among few prompts, some of them very long, what swaps keep can have gaps."""
    check(sets.with_effects(given, 30, SEED))


def test_opposite_effects_are_never_equivalent() -> None:
    found = sets.worded("-20 % and +20 %", 40, SEED)
    check(found)
    assert next(rate for rate in found if rate.what == "word: mixed").rate > 0.5


@pytest.mark.parametrize("number", range(len(powers.POWERS)))
def test_power_is_that_of_the_formula(number: int) -> None:
    check(powers.power(number, 150, SEED))


def test_what_is_needed_gives_the_power_asked_for() -> None:
    check(powers.settled(300, SEED))


def test_a_planted_effect_is_found_by_pairs_and_never_by_overlap_of_intervals() -> None:
    assert [rate.count for rate in powers.planted(60, SEED)] == [60, 0]


def test_few_discoveries_are_false() -> None:
    check(powers.discoveries(60, SEED))


@pytest.mark.parametrize(("size", "trials"), [(1, 150), (8, 20), (32, 6)])
def test_families_keep_their_error_rates(size: int, trials: int) -> None:
    check(families.nothing_differs(size, trials, SEED) + families.some_differ(size, trials, SEED))


@pytest.mark.parametrize("name", endings.CUTS)
def test_what_budgets_cut_gets_no_word(name: str) -> None:
    check(endings.cut(name, 20, SEED))


def test_what_failed_on_one_side_gets_no_word() -> None:
    check(endings.failures("the longest 5 % of one side fail", 20, SEED))


def test_five_looks_share_one_error_rate() -> None:
    check(looks.five_looks(4, SEED))


@pytest.mark.parametrize(("num_claims", "num_looks"), promises.FILES)
def test_true_claims_at_their_bounds(num_claims: int, num_looks: int) -> None:
    check(promises.claims_at_bounds(num_claims, num_looks, 8, SEED))


def test_a_rate_outside_its_promise_is_told() -> None:
    far, near = (Rate("", "", count, 1000, **exactly(0.05)) for count in (100, 64))
    assert not far.may_be_kept
    assert far.deviation == pytest.approx(0.05 / math.sqrt(0.05 * 0.95 / 1000))
    assert near.may_be_kept
    assert near.deviation == pytest.approx(2.03, abs=0.01)
    below = Rate("", "", 10, 1000, **at_most(0.05))
    assert (below.deviation, below.may_be_kept) == (0.0, True)
    never = Rate("", "", 1, 1000, **exactly(0.0))
    assert (never.deviation, never.may_be_kept) == (math.inf, False)
    given = Rate("", "", 900, 1000)
    assert (given.deviation, given.may_be_kept, given.has_goal) == (0.0, True, False)
    found = summary([far, near, below, never, given])
    assert (found["exact"]["goals"], found["exact"]["beyond_2"]) == (2, 2)
    assert (found["bounds"]["goals"], found["bounds"]["beyond_2"]) == (1, 0)
    assert (found["given"], found["exact"]["beyond_4"]) == (1, [": "])
    assert found["never"] == {"goals": 1, "missed": [": , 1 of 1000"]}


@pytest.mark.parametrize(
    ("level", "num", "rate"),
    [(0.05, 8, 6 / 128), (0.001, 8, 0.0), (0.05, 6, 1 / 32), (0.04, 24, 0.04)],
)
def test_what_a_level_attains_is_what_p_can_be(level: float, num: int, rate: float) -> None:
    assert attained(level, num) == pytest.approx(rate)
    strong = ratio_effect(np.ones(num), np.linspace(2, 3, num))
    assert strong.p is not None
    assert (strong.p <= level) == (rate > 0)
