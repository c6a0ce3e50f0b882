"""Several data sets: what is withheld in one of them, what they say against each other, and what
all the words for a difference cost together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trial_results
from trial_results import make_plan, make_results

from cluster.plan import Cell, digest
from jobs.analysis.comparison import Comparison, MetricEffect
from jobs.analysis.looks import TEST, Look, Settled
from jobs.analysis.verdicts import judge
from jobs.queries.row_pairs import RowComparison, RowCounts, TextComparison
from jobs.report.report_data import report_data
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import BY_NAME
from jobs.stats.permutation.effects import ratio_effect

Row = dict[str, Any]
NOTHING = dict.fromkeys(
    ["completion_text", "completion_tokens", "base_completion_tokens", "completion_bytes",
     "finish_reason", "e2e_s", "ttft_s", "tpot_s"]
)  # fmt: skip
LENGTHS = ("completion_tokens", "base_completion_tokens", "completion_bytes")


def fail(row: Row, facts: Row) -> None:
    row.update(error="out of memory", **NOTHING)
    facts["num_errors"] += 1


def number(row: Row) -> int:
    return int(row["prompt_id"][1:])


def report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, ...],
    edit: Callable[[Cell, list[Row], Row], object],
) -> dict[str, Any]:
    """Of a trial with data sets of these sizes, in eight shards each, edited where it generates."""
    plan = make_plan(str(tmp_path / "out"), seeds=(1,))
    datasets, first = [], 0
    for i, size in enumerate(sizes):
        update = {"name": f"set{i}", "num_prompts": size, "first_row": first, "num_shards": 8}
        datasets.append(plan.datasets[0].model_copy(update=update | {"fingerprint": digest(i)}))
        first += size
    planned = plan.model_copy(update={"datasets": tuple(datasets)})
    monkeypatch.setattr(trial_results, "make_plan", lambda output, **options: planned)

    def edited(cell: Cell, rows: list[Row], facts: Row) -> None:
        if cell.kind == "generations":
            edit(cell, rows, facts)
            for name in LENGTHS:
                facts[name] = sum(row[name] or 0 for row in rows)

    return report_data(make_results(tmp_path / "out", edit=edited))


def verdict(data: dict[str, Any], metric: str) -> tuple[str, str]:
    [row] = [r for r in data["verdicts"] if (r["configuration"], r["metric"]) == ("fast", metric)]
    return row["verdict"], row["verdict_reason"] or ""


def test_a_small_set_that_the_budget_decided_withholds_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        for row in rows:
            row["completion_text"] = f"{row['prompt_id']} {cell.configuration}"
            if cell.dataset == "set1":
                row.update(completion_tokens=32, base_completion_tokens=32, completion_bytes=128)
                row["finish_reason"] = "length"

    data = report(tmp_path, monkeypatch, (300, 30), edit)
    word, reason = verdict(data, "completion_tokens")
    assert word == "withheld"
    assert "ended 100 % and 100 % of the completions of set1" in reason


def test_a_small_set_whose_longest_prompts_failed_withholds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        for row in rows:
            if cell.configuration == "fast" and cell.dataset == "set1" and number(row) >= 30:
                fail(row, facts)

    data = report(tmp_path, monkeypatch, (1000, 40), edit)
    for metric in ("completion_tokens", "e2e_s_per_byte", "kv_committed_peak_bytes"):
        word, reason = verdict(data, metric)
        assert word == "withheld"
        assert "10 of 40 rows of set1 failed" in reason


def test_failures_on_both_sides_do_not_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest fail on one side, as many short ones on the other: the net difference is 0."""

    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        for row in rows:
            is_fast, place = cell.configuration == "fast", number(row)
            if place < 40 if is_fast else place >= 360:
                fail(row, facts)

    data = report(tmp_path, monkeypatch, (400,), edit)
    word, reason = verdict(data, "completion_tokens")
    assert word == "withheld"
    assert "40 of 400 rows failed, and 40 of baseline's" in reason


def test_one_row_in_many_prompts_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        for row in rows:
            if cell.configuration == "fast" and cell.dataset == "set0" and number(row) == 3:
                fail(row, facts)
            elif cell.configuration == "fast":
                row["completion_text"] += " other"

    data = report(tmp_path, monkeypatch, (48, 48), edit)
    assert verdict(data, "kv_committed_peak_bytes")[0] != "withheld"


def test_a_set_without_a_completed_pair_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        for row in rows:
            if cell.dataset == "set1":
                fail(row, facts)

    data = report(tmp_path, monkeypatch, (24, 8), edit)
    word, reason = verdict(data, "e2e_s_per_byte")
    assert (word, reason) == (
        "withheld",
        "no pair of set1 completed, and effects are of all data sets",
    )


def test_half_as_long_in_one_set_and_twice_in_another_trips_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        if cell.configuration != "fast":
            return
        factor = 0.5 if cell.dataset == "set0" else 2.0
        for row in rows:
            row.update({name: max(1, round(row[name] * factor)) for name in LENGTHS})
            row["completion_text"] += " other"
        facts["kv_committed_peak_bytes"] = int(9000 * factor)

    data = report(tmp_path, monkeypatch, (48, 48), edit)
    word, reason = verdict(data, "e2e_s_per_byte")
    assert word == "withheld"
    assert "outputs of set" in reason
    assert verdict(data, "kv_committed_peak_bytes")[0] == "mixed"
    assert verdict(data, "completion_tokens")[0] == "mixed"


def test_a_mean_gain_of_a_gain_and_a_loss_is_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        if cell.configuration == "fast":
            factor = 0.6 if cell.dataset == "set0" else 1.5
            noise = np.random.default_rng([cell.shard]).normal()
            facts["kv_committed_peak_bytes"] = int(10000 * factor * (1 + 0.01 * noise))

    data = report(tmp_path, monkeypatch, (48, 48), edit)
    word, reason = verdict(data, "kv_committed_peak_bytes")
    assert word == "mixed"
    assert reason == "the data sets differ: set0 -39.8 %, set1 +50.4 %"
    assert "better: fast" not in data["answer"].partition("KV memory held, peak")[2]


# --- what words cost together --------------------------------------------------------------------


def null_trial(rng: np.random.Generator, num_arms: int) -> list[Comparison]:
    """Two data sets of 24 prompts and three seeds, arms that do nothing."""
    strata = [f"s{i % 2}" for i in range(48)]
    lengths = rng.normal(4, 0.5, 48)

    def side() -> np.ndarray[Any, Any]:
        means: np.ndarray[Any, Any] = np.exp(lengths[:, None] + rng.normal(0, 0.3, (48, 3))).mean(1)
        return means

    reference = side()
    found = []
    for arm in range(num_arms):
        effect = ratio_effect(reference, side(), strata=strata)
        own = MetricEffect(BY_NAME["completion_tokens"], "ratio of totals", 1.0, 1.0, effect)
        texts, rows = TextComparison(144, 144), RowComparison(144, 144)
        found.append(
            Comparison(f"arm{arm}", "base", False, ("dynamic",) * 2, texts, (own,), rows=rows)
        )
    return found


def test_a_difference_is_said_of_what_has_none_as_seldom_as_is_promised() -> None:
    """Whichever word for it: lower, higher or mixed. 300 trials; the bound is 4 errors wide."""
    rng, num, hits = np.random.default_rng(7), 300, 0
    judgement = Judgement(reserve=0)
    for _ in range(num):
        words = {
            each.verdicts["completion_tokens"].word for each in judge(null_trial(rng, 2), judgement)
        }
        hits += bool(words & {"lower", "higher", "mixed"})
    assert hits / num <= 0.05 + 4 * (0.05 * 0.95 / num) ** 0.5


def test_a_level_is_shared_only_where_there_are_sets() -> None:
    assert Judgement.shared(0.04, has_sets=False) == (0.04, 0.0)
    assert Judgement.shared(0.04, has_sets=True) == pytest.approx((0.032, 0.008))


def test_what_a_look_decided_is_withheld_where_later_rows_failed() -> None:
    [found] = null_trial(np.random.default_rng(0), 1)
    settled = Settled(configuration="arm0", metric="completion_tokens", word="lower", look=1, p=0.0)
    look = Look(number=1, level=0.04, settled=(settled,), open=(), configurations=(), test=TEST)
    [kept] = judge([found], Judgement(), [look])
    assert kept.verdicts["completion_tokens"].word == "lower"
    rows = RowComparison(
        144, 84, num_failed=60, num_failed_apart=60, by_set={"s0": RowCounts(144, 84, 60, 0, 60)}
    )
    [failed] = judge([replace(found, rows=rows)], Judgement(), [look])
    said = failed.verdicts["completion_tokens"]
    assert said.word == "withheld"
    assert said.reason is not None
    assert said.reason.endswith("(an earlier look: lower)")
