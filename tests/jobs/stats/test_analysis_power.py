"""Power, needs and variance components against simulation, statsmodels and worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from jobs.stats.components import (
    Components,
    design_effect,
    intraclass_correlation,
    variance_components,
)
from jobs.stats.permutation.effects import difference_effect
from jobs.stats.power import Needs, mde, needed, needed_se, power_of

# Shrout and Fleiss, Psychological Bulletin 86 (1979), table 2: six targets, four judges.
TARGETS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_the_smallest_effect_is_2_80_standard_errors() -> None:
    assert mde(1.0) == pytest.approx(2.8016, abs=5e-5)
    assert mde(0.01, alpha=0.1, power=0.9) == pytest.approx(0.029264, abs=5e-7)
    assert needed_se(mde(0.3)) == pytest.approx(0.3)
    assert needed_se(-0.02) == needed_se(0.02)


def test_few_degrees_of_freedom_ask_for_more() -> None:
    assert mde(1.0, 7) == pytest.approx(2.36462 + 0.89603, abs=1e-5)
    assert mde(1.0, 10**6) == pytest.approx(mde(1.0), abs=1e-4)


@pytest.mark.parametrize(("effect", "size"), [(0.3, 50), (0.5, 20), (1.0, 8), (0.0, 12)])
def test_power_equals_statsmodels(effect: float, size: int) -> None:
    expected = TTestPower().power(effect, size, 0.05)
    assert power_of(effect, 1 / math.sqrt(size), size - 1) == pytest.approx(expected)
    assert power_of(-effect, 1 / math.sqrt(size), size - 1) == pytest.approx(expected)


def test_power_without_a_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        power_of(0.1, 0.0, 9)


@pytest.mark.parametrize("df", [7, 9, 29, 149, None])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_smallest_effect_has_the_power_asked_for(df: int | None, power: float) -> None:
    assert power_of(mde(1.0, df, power=power), 1.0, df) == pytest.approx(power, abs=0.015)


def test_components_of_a_balanced_design_by_hand() -> None:
    found = variance_components([1, 3, 4, 6, 8, 8], ["a", "a", "b", "b", "c", "c"])
    # Means 2, 5, 8; mean square between 18, within (2 + 2 + 0) / 3.
    assert found.within == pytest.approx(4 / 3)
    assert found.between == pytest.approx((18 - 4 / 3) / 2)
    assert (found.num_prompts, found.num_seeds) == (3, 2)


def test_components_make_up_the_standard_error_of_the_mean() -> None:
    """(between + within / K) / P is exactly the squared standard error, where it is not floored."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (40, 1)) + rng.normal(0, 1, (40, 3))
    found = variance_components(values.ravel().tolist(), np.repeat(np.arange(40), 3).tolist())
    effect = difference_effect(np.zeros(40), values.mean(axis=1))
    assert found.within is not None
    variance = (found.between + found.within / 3) / 40
    assert effect.se == pytest.approx(math.sqrt(variance))


def test_components_of_unequal_prompts_are_unbiased() -> None:
    rng = np.random.default_rng(1)
    sizes = [1, 2, 3, 5, 9] * 6
    prompts = np.repeat(np.arange(30), sizes)
    found = []
    for _ in range(400):
        values = rng.normal(0, 2, 30)[prompts] + rng.normal(0, 1, len(prompts))
        found.append(variance_components(values.tolist(), prompts.tolist()))
    assert np.mean([f.between for f in found]) == pytest.approx(4, rel=0.05)
    assert np.mean([f.within or 0 for f in found]) == pytest.approx(1, rel=0.05)
    assert found[0].num_seeds == pytest.approx(5 / (1 + 1 / 2 + 1 / 3 + 1 / 5 + 1 / 9))


def test_components_of_one_seed_one_prompt_or_nothing() -> None:
    one_seed = variance_components([1.0, 2.0, 6.0], ["a", "b", "c"])
    assert (one_seed.between, one_seed.within) == (pytest.approx(7), None)
    one_prompt = variance_components([1.0, 3.0], ["a", "a"])
    assert math.isnan(one_prompt.between)
    assert one_prompt.within == pytest.approx(2)
    assert variance_components([], []).num_prompts == 0
    with_gap = variance_components([1, 3, math.nan, 4, 6], ["a", "a", "x", "b", "b"])
    assert with_gap == variance_components([1, 3, 4, 6], ["a", "a", "b", "b"])
    # Prompts more alike than seeds: nothing is left between them.
    assert variance_components([0, 10, 10, 0], ["a", "a", "b", "b"]).between == 0


def test_shrout_and_fleiss_intraclass_correlation() -> None:
    """Their ICC(1,1) is 0.17, of mean squares 11.24 and 6.26."""
    values = [float(x) for row in TARGETS for x in row]
    targets = [i for i in range(6) for _ in range(4)]
    found = variance_components(values, targets)
    assert found.within == pytest.approx(6.26, abs=0.005)
    assert found.between == pytest.approx((11.24 - 6.26) / 4, abs=0.005)
    assert intraclass_correlation(values, targets) == pytest.approx(0.17, abs=0.005)


def test_intraclass_correlation_without_an_answer() -> None:
    assert intraclass_correlation([1, 2, 3], ["a", "b", "c"]) is None
    assert intraclass_correlation([1, 2, 3], ["a", "a", "a"]) is None
    assert intraclass_correlation([1, 1, 1, 1], ["a", "a", "b", "b"]) is None
    assert intraclass_correlation([1, 1, 5, 5], ["a", "a", "b", "b"]) == 1


def test_design_effect_of_equal_and_unequal_clusters() -> None:
    assert design_effect(0.1, [10] * 5) == pytest.approx(1.9)
    assert design_effect(0.5, [1, 1, 1]) == 1
    assert design_effect(0.1, [2, 8]) == pytest.approx(1 + (68 / 10 - 1) * 0.1)


def test_design_effect_is_what_clustering_does_to_the_standard_error() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(400), 5)
    d = rng.normal(0, 1, 400)[clusters] + rng.normal(0, 1, 2000)
    icc = intraclass_correlation(d.tolist(), clusters.tolist())
    assert icc == pytest.approx(0.5, abs=0.06)
    apart = difference_effect(np.zeros(2000), d).se
    together = difference_effect(np.zeros(2000), d, clusters.tolist()).se
    assert together / apart == pytest.approx(  # type: ignore[operator]
        math.sqrt(design_effect(icc or 0, [5] * 400)), rel=0.01
    )


def test_more_prompts_are_just_enough() -> None:
    components = Components(0.02**2, 0.08**2, 40, 3)
    found = needed(components, 0.02, 40, 3)
    assert found.num_prompts is not None
    total, variance = 40 + found.num_prompts, 0.02**2 + 0.08**2 / 3
    assert mde(math.sqrt(variance / total), total - 1) <= 0.02
    assert mde(math.sqrt(variance / (total - 1)), total - 2) > 0.02


def test_more_seeds_are_just_enough() -> None:
    components = Components(0.02**2, 0.08**2, 40, 3)
    found = needed(components, 0.02, 40, 3)
    assert found.num_seeds is not None
    seeds = 3 + found.num_seeds

    def smallest(num: int) -> float:
        return mde(math.sqrt((0.02**2 + 0.08**2 / num) / 40), 39)

    assert smallest(seeds) <= 0.02 < smallest(seeds - 1)


def test_seeds_cannot_average_prompts_out() -> None:
    found = needed(Components(0.1**2, 0.01**2, 40, 3), 0.02, 40, 3)
    assert found.num_prompts is not None
    assert found.num_prompts > 0
    assert found.num_seeds is None
    assert found.reason is not None
    assert "prompts differ" in found.reason


def test_needs_that_are_met_or_cannot_be_known() -> None:
    assert needed(Components(0.01**2, 0.01**2, 100, 3), 0.02, 100, 3) == Needs(0, 0, None)
    assert needed(Components(0.0, 0.0, 100, 3), 0.02, 100, 3) == Needs(0, 0, None)
    one_seed = needed(Components(0.1**2, None, 40, 1), 0.02, 40, 1)
    assert one_seed.num_prompts is not None
    assert one_seed.num_seeds is None
    assert one_seed.reason is not None
    for hopeless in (
        needed(Components(0.1, 0.1, 40, 3), 0.0, 40, 3),
        needed(Components(math.nan, 0.1, 1, 3), 0.02, 1, 3),
        needed(Components(1.0, 1.0, 40, 3), 1e-9, 40, 3),
        needed(variance_components([], []), 0.02, 0, 0),
    ):
        assert hopeless.num_prompts is None
        assert hopeless.num_seeds is None
        assert hopeless.reason
