"""What a verdict may be said of: failures, unfinished trials, copies, weights, dominant prompts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_claims import checked_claims, claim, write
from test_verdicts import comparison, failing, findings, ratio
from trial_results import make_results

from cluster.plan import Cell, Configuration, OptimizationSettings, digest
from jobs.analysis.guards.exactness import copies
from jobs.analysis.looks import TEST, Look, Settled
from jobs.analysis.verdicts import judge
from jobs.report.render.markdown import markdown
from jobs.report.report_data import report_data
from jobs.spec.analysis_plan import Judgement
from jobs.spec.trial_spec import TrialSpec
from jobs.spec.yaml_reader import validated
from jobs.stats.permutation.effects import difference_effect, ratio_effect, share_effect
from jobs.stats.permutation.signs import sign_p
from jobs.stats.permutation.units import Strata
from optim.errors import InputError

Rows = list[dict[str, Any]]


@pytest.mark.parametrize(("plus", "minus"), [(5, 0), (4, 1), (9, 3), (30, 12)])
def test_one_seed_s_failures_are_mcnemar_s_test(plus: int, minus: int) -> None:
    agree = 100
    a = [0.0] * plus + [1.0] * minus + [0.0] * agree
    b = [1.0] * plus + [0.0] * minus + [0.0] * agree
    effect = share_effect(a, b, [1.0] * len(a))
    assert effect.p == pytest.approx(stats.binomtest(plus, plus + minus).pvalue, abs=1e-12)
    assert effect.estimate == pytest.approx((plus - minus) / len(a))
    assert effect.includes_zero == (effect.p > 0.05)


def test_signs_of_several_seeds_are_exact() -> None:
    thirds = np.array([1 / 3, -2 / 3, 1.0, 1 / 3, 2 / 3])
    sums = [abs(np.dot(signs, thirds)) for signs in itertools.product((1, -1), repeat=5)]
    assert sign_p(thirds) == pytest.approx(np.mean(np.array(sums) >= thirds.sum() - 1e-12))
    assert sign_p(np.array([0.1234567, 0.3])) is None
    assert sign_p(np.array([1.0, 1e-12])) is None, "what is small is not nothing"


def test_counts_swapped_by_the_draw_agree_with_the_exact_p() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    effect = difference_effect(a, b)
    noisy = difference_effect(a, b + rng.normal(0, 1e-6, 60))
    assert effect.p is not None
    assert noisy.p is not None
    assert abs(effect.p - noisy.p) < 0.06, "nearly the same numbers, whose swaps are drawn"


def test_failures_on_both_sides_are_shown_and_equal(tmp_path: Path) -> None:
    def fails(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        if cell.kind == "generations" and cell.shard == 0:
            failing(rows[0])
            facts["num_errors"] = 1

    results = make_results(tmp_path / "out", edit=fails)
    data = report_data(results)
    shown = [row for row in data["verdicts"] if row["metric"] == "failed_share"]
    assert [row["verdict"] for row in shown] == ["exactly equal"] * 2
    assert shown[0]["mean"] == pytest.approx(4 / 96)
    whole = report_data(make_results(tmp_path / "whole"))
    assert not any(row["metric"] == "failed_share" for row in whole["verdicts"])


def test_an_unfinished_trial_has_no_verdict(tmp_path: Path) -> None:
    """A word on part of a trial would be a look that nobody paid for."""

    def cut(cell: Cell, rows: Rows, facts: dict[str, Any]) -> bool:
        return not (cell.configuration == "fast" and cell.shard == 7)

    results = make_results(tmp_path / "out", edit=cut)
    found = findings(results)
    reasons = {v.reason for v in found.of("fast").verdicts.values()}
    assert {v.word for v in found.of("fast").verdicts.values()} == {"withheld"}
    assert reasons == {"90 of 96 cells are there; `optrial evaluate` again runs the rest"}
    assert found.of("short").verdicts["completion_tokens"].word == "lower"
    answers = checked_claims(
        results,
        write(
            tmp_path,
            claim(metric="e2e_s", at_most=-0.05),
            claim("t", metric="texts", identical=True),
        ),
    )
    assert [each.answer for each in answers] == ["undecided", "undecided"]


def arms(*names: str) -> list[Configuration]:
    chosen = {
        "larosa": (OptimizationSettings(name="larosa", settings={"sparsity": 0.4}),),
        "kv": (OptimizationSettings(name="vattention"),),
    }
    made = [Configuration(name="baseline")]
    for name in names:
        own = tuple(o for part in name.split("+") for o in chosen[part])
        made.append(Configuration(name=name, vs="baseline", optimizations=own))
    return [c.model_copy(update={"fingerprint": digest(c.name)}) for c in made]


def with_other_tokens(*, parted: bool) -> Any:
    def edit(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        if "larosa" not in cell.configuration or cell.kind != "generations":
            return
        rng = np.random.default_rng([cell.shard, cell.seed or 0])
        for row in rows:
            row["completion_tokens"] += int(rng.integers(1, 9))
            row["completion_text"] += "!" if not parted or cell.configuration == "larosa" else "?"

    return edit


def test_a_copy_costs_the_family_nothing() -> None:
    borderline = replace(ratio(0.05, 0.3), p=0.03)
    several = [comparison(("completion_tokens", borderline), name=name) for name in "xy"]
    alone = judge(several, Judgement())
    once = judge(several, Judgement(), copies={"y": "x"})
    assert [j.verdicts["completion_tokens"].p for j in alone] == [pytest.approx(0.06)] * 2
    assert [j.verdicts["completion_tokens"].p for j in once] == [0.03] * 2
    other = comparison(("completion_tokens", replace(borderline, p=0.031)), name="y")
    apart = judge([several[0], other], Judgement(), copies={"y": "x"})
    assert apart[0].verdicts["completion_tokens"].p == pytest.approx(0.06), "no copy, in fact"
    times = [comparison(("e2e_s_per_byte", borderline), name=name) for name in "xy"]
    timed = judge(times, Judgement(), copies={"y": "x"})
    assert timed[0].verdicts["e2e_s_per_byte"].p == pytest.approx(0.06), "each has its own times"


@pytest.mark.parametrize("parted", [False, True])
def test_what_is_declared_exact_is_compared_with_what_it_copies(
    tmp_path: Path, parted: bool
) -> None:
    edit = with_other_tokens(parted=parted)
    both = findings(make_results(tmp_path / "out", edit=edit, arms=arms("larosa", "larosa+kv")))
    assert copies(both.plan) == {"larosa+kv": "larosa"}
    said = "96 of 96 texts differ from larosa's, and vattention declares that it changes none"
    assert [alarm.reason for alarm in both.alarms if alarm.reason] == ([said] if parted else [])


def test_an_exact_optimisation_whose_row_differs_is_an_alarm(tmp_path: Path) -> None:
    def slips(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        if cell.configuration == "kv" and cell.kind == "generations" and cell.shard == 3:
            rows[0]["completion_text"] += "!"

    results = make_results(tmp_path / "out", edit=slips, arms=arms("kv"))
    data = report_data(results)
    said = "4 of 96 texts differ from baseline's, and vattention declares that it changes none"
    assert [alarm["reason"] for alarm in data["alarms"]] == [said]
    assert f"Alarm: kv: {said}." in markdown(data)


def test_one_prompt_that_carries_a_total_is_named(tmp_path: Path) -> None:
    def long_one(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        for row in rows if cell.kind == "generations" else ():
            if row["dataset"] == "set1" and row["prompt_id"] == "p005":
                row["completion_tokens"] *= 100

    data = report_data(make_results(tmp_path / "out", edit=long_one))
    [note] = [line for line in data["notes"] if "alone has" in line]
    assert note.startswith("short: prompt p005 of set1 alone has 79 % of its completion tokens")
    assert "of the typical prompt (geometric mean) it is -19.8 %." in note


def test_weights_of_data_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a = rng.lognormal(0, 0.3, 80)
    b = a * np.repeat([0.8, 1.2], 40) * rng.lognormal(0, 0.01, 80)
    names = ["x"] * 40 + ["y"] * 40
    equal = ratio_effect(a, b, strata=Strata(names))
    three = ratio_effect(a, b, strata=Strata(names, {"x": 3.0}))
    assert equal.by_set is not None
    x, y = (math.log1p(equal.by_set[name]) for name in "xy")
    assert equal.log_estimate == pytest.approx((x + y) / 2)
    assert three.log_estimate == pytest.approx((3 * x + y) / 4)
    assert three.weights == {"x": 0.75, "y": 0.25}
    assert three.by_set == equal.by_set
    assert three.low is not None
    assert three.low < (three.estimate or 0) < (three.high or 0) < 0
    totals = equal.of_totals()
    assert totals.estimate == pytest.approx(b.sum() / a.sum() - 1)


def test_weights_name_data_sets_of_the_spec() -> None:
    given = {
        "model": "demo",
        "datasets": [{"name": "chat", "path": "demo/language"}],
        "output": "out",
        "analysis": {"weights": {"chats": 2}},
    }
    with pytest.raises(InputError, match=r"`analysis.weights` names `chats`.*There are: chat"):
        validated(TrialSpec, given, "trial.yaml")


def test_a_claim_about_totals_is_about_all_data_sets_as_one(tmp_path: Path) -> None:
    """A long data set that loses, and a short one that gains: the sum loses, the mean does not."""

    def uneven(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        if cell.kind == "generations":
            for row in rows:
                factor = 20 if row["dataset"] == "set1" else 1
                if cell.configuration == "fast":
                    factor = 24 if row["dataset"] == "set1" else 0.8
                row["completion_tokens"] = int(100 * factor * row["completion_tokens"])

    results = make_results(tmp_path / "out", edit=uneven)
    bound = {"metric": "completion_tokens", "at_least": 0.1}
    path = write(tmp_path, claim("sets", **bound), claim("all", estimand="totals", **bound))
    sets, totals = checked_claims(results, path)
    assert (sets.answer, totals.answer) == ("refuted", "supported")
    assert totals.evidence.startswith("+18")


def test_looks_of_an_older_test_are_judged_anew_and_marked() -> None:
    settled = (Settled(configuration="fast", metric="completion_tokens", word="worse", look=1),)
    fields = {"number": 1, "level": 0.04, "settled": settled, "open": (), "configurations": ()}
    found = [comparison(("completion_tokens", ratio(0.0, 0.3)))]
    [old] = judge(found, Judgement(), [Look.model_validate(fields)])
    verdict = old.verdicts["completion_tokens"]
    assert (verdict.word, verdict.look, verdict.judged_anew) == ("inconclusive", None, "worse")
    [new] = judge(found, Judgement(), [Look.model_validate({**fields, "test": TEST})])
    verdict = new.verdicts["completion_tokens"]
    assert (verdict.word, verdict.look, verdict.judged_anew) == ("worse", 1, None)


def test_each_data_set_s_effect_stands_in_every_report(tmp_path: Path) -> None:
    data = report_data(make_results(tmp_path / "out"))
    assert data["test"] == TEST
    effect = next(r for r in data["verdicts"] if r["configuration"] == "short")
    assert set(effect["by_set"]) == {"set0", "set1"}
    assert effect["estimand"] == "ratio of totals per data set, mean of their logs"
    assert effect["weights"] == {"set0": 0.5, "set1": 0.5}
    text = markdown(data)
    assert "## By data set" in text
    assert "| configuration | metric | set0 | set1 | p that all are alike |" in text


def test_a_rate_divides_what_is_there_by_the_time_of_the_same_cells(tmp_path: Path) -> None:
    """In each configuration's own figures, as in effects."""

    def partly(cell: Cell, rows: Rows, facts: dict[str, Any]) -> None:
        facts["kv_committed_byte_s"] = 500.0 * facts["wall_s"] if cell.shard % 2 else None

    data = report_data(make_results(tmp_path / "out", edit=partly, scorers=()))
    means = [c["metrics"]["kv_committed_mean_bytes"]["mean"] for c in data["configurations"]]
    assert means == [pytest.approx(500.0)] * len(means)
