"""What each factor does, and what tokens are made of: planted parts are found again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from factorial_results import ENCODING, LENGTH, SPEED, arms, factorial_results
from test_verdicts import findings
from trial_results import configurations, make_results

from cluster.plan import Configuration, OptimizationSettings
from jobs.analysis.attribution import Attribution, design_of
from jobs.analysis.findings import Findings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return findings(factorial_results(tmp_path_factory.mktemp("factorial") / "out"))


def attribution(found: Findings, metric: str) -> Attribution:
    return next(a for a in found.attributions if a.metric.name == metric)


def contrasts(found: Findings, metric: str) -> dict[tuple[str, ...], tuple[float, float, float]]:
    return {
        tuple(c.factors): (c.low if c.low is not None else c.estimate, c.estimate,
                           c.high if c.high is not None else c.estimate)
        for c in attribution(found, metric).contrasts
    }  # fmt: skip


def test_main_effects_are_what_was_planted(found: Findings) -> None:
    tokens = contrasts(found, "completion_tokens")
    low, _, high = tokens[("vocabulary",)]
    assert low <= math.log(ENCODING * LENGTH) + 0.01
    assert high >= math.log(ENCODING * LENGTH) - 0.01
    assert tokens[("sparse",)] == (0.0, 0.0, 0.0), "it changes no token, exactly"
    assert tokens[("vocabulary", "sparse")] == (0.0, 0.0, 0.0)
    low, estimate, high = contrasts(found, "e2e_s_per_byte")[("sparse",)]
    assert low <= math.log(SPEED) + 0.01
    assert high >= math.log(SPEED) - 0.02
    assert estimate < -0.05


def test_shares_sum_to_the_whole_change(found: Findings) -> None:
    each = attribution(found, "e2e_s_per_byte")
    totals = {j.comparison.configuration: j.comparison for j in found.judged}
    whole = totals["new.on"].effect("e2e_s_per_byte")
    assert whole is not None
    assert whole.log_estimate is not None
    assert sum(s.estimate for s in each.shares) == pytest.approx(whole.log_estimate, abs=0.01)


def test_tokens_are_taken_apart_exactly(found: Findings) -> None:
    account = found.accounts["new.off"]
    parts = (account.total, account.encoding, account.length)
    total, encoding, length = (math.log1p(e.estimate or 0) for e in parts if e is not None)
    assert encoding + length == pytest.approx(total, abs=1e-12)
    assert encoding == pytest.approx(math.log(ENCODING), abs=0.02)
    assert length == pytest.approx(math.log(LENGTH), abs=0.03)
    assert account.encoding_share is not None
    assert account.length_share is not None
    assert account.encoding_share + account.length_share == pytest.approx(1)
    assert account.prompt is not None
    assert account.prompt.estimate == pytest.approx(-0.2)


def test_texts_part_where_they_do(found: Findings) -> None:
    divergence = found.accounts["new.off"].divergence
    assert divergence.identical_share == 0
    lengths = [len(f"answer {i} seed {s}") for i in range(24) for s in (1, 2)]
    assert divergence.median_chars == np.median(lengths)
    same = found.accounts["old.on"].divergence
    assert same.identical_share == 1
    assert same.median_chars is None


def test_censored_lengths_are_marked(tmp_path: Path) -> None:
    def cut(cell, rows, facts) -> None:  # type: ignore[no-untyped-def]
        for row in rows[::2] if cell.configuration == "short" else ():
            row["finish_reason"] = "length"

    account = findings(make_results(tmp_path / "out", edit=cut)).accounts["short"]
    assert account.is_censored
    assert account.length_stops[0] == 0
    assert account.length_stops[1] == pytest.approx(0.5, abs=0.2)


def test_a_partial_factorial_is_refused_by_name(tmp_path: Path) -> None:
    found = findings(factorial_results(tmp_path / "out", arms=arms(leave_out="new.on")))
    assert found.attributions == []
    assert found.design.reason is not None
    assert "sparse + vocabulary" in found.design.reason


def test_cells_that_are_missing_cost_only_their_units(tmp_path: Path) -> None:
    from factorial_results import edit

    def some(cell, rows, facts):  # type: ignore[no-untyped-def]
        edit(cell, rows, facts)
        return not (cell.configuration == "new.on" and cell.shard < 4)

    found = findings(factorial_results(tmp_path / "out", edit=some))
    tokens = attribution(found, "completion_tokens")
    assert 0 < tokens.num_clusters < 48
    assert contrasts(found, "completion_tokens")[("sparse",)] == (0.0, 0.0, 0.0)


def test_optimisations_make_factors_where_none_are_declared(tmp_path: Path) -> None:
    def arm(name: str, *used: str) -> Configuration:
        chosen = tuple(OptimizationSettings(name=each) for each in used)
        vs = None if name == "none" else "none"
        return Configuration(name=name, vs=vs, optimizations=chosen)

    full = (arm("none"), arm("a", "a"), arm("b", "b"), arm("both", "a", "b"))
    plan = make_results(tmp_path / "out").plan().model_copy(update={"configurations": full})
    design = design_of(plan)
    assert design.reason is None
    assert design.cells[frozenset({"a", "b"})] == "both"
    missing = design_of(plan.model_copy(update={"configurations": full[:3]}))
    assert missing.reason is not None
    assert "a + b" in missing.reason
    single = design_of(plan.model_copy(update={"configurations": full[:2]}))
    assert single.reason is not None
    assert "one factor" in single.reason


def test_one_optimisation_with_several_settings_is_no_factorial(tmp_path: Path) -> None:
    def arm(name: str, sparsity: float | None) -> Configuration:
        settings = {} if sparsity is None else {"sparsity": sparsity}
        chosen = () if sparsity is None else (OptimizationSettings(name="l", settings=settings),)
        return Configuration(name=name, vs=None if sparsity is None else "o", optimizations=chosen)

    arms_ = (arm("o", None), arm("l4", 0.4), arm("l5", 0.5))
    plan = make_results(tmp_path / "out").plan().model_copy(update={"configurations": arms_})
    assert "several settings" in (design_of(plan).reason or "")


def test_results_without_any_factor_say_so(tmp_path: Path) -> None:
    plan = make_results(tmp_path / "out").plan()
    assert plan.configurations == configurations()
    assert design_of(plan).reason is not None
