"""Verdicts: planted truths get the right word, and nothing gets a word that it does not deserve."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results, write_prompts
from jobs.analysis.comparison import Comparison, MetricEffect
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.verdicts import Verdict, judge
from jobs.queries.row_pairs import TextComparison
from jobs.queries.sql import connect
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import METRICS
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect


def findings(results: Results) -> Findings:
    connection = connect(results)
    try:
        return read_findings(connection, results.plan())
    finally:
        connection.close()


def effect_of(metric: str, effect: Effect) -> MetricEffect:
    found = next(m for m in METRICS if m.name == metric)
    return MetricEffect(found, "ratio of totals", 1.0, 1.0, effect)


def ratio(shift: float, spread: float, n: int = 40, seed: int = 0) -> Effect:
    """Paired ratios whose mean log is exactly `shift`."""
    noise = np.random.default_rng(seed).normal(0, spread, n)
    return ratio_effect(np.full(n, 100.0), 100 * np.exp(shift + noise - noise.mean()))


def comparison(
    *effects: tuple[str, Effect], name: str = "fast", is_duplicate: bool = False, differing: int = 0
) -> Comparison:
    found = tuple(effect_of(metric, effect) for metric, effect in effects)
    texts = TextComparison(compared=40, differing=differing)
    return Comparison(name, "baseline", is_duplicate, ("dynamic", "dynamic"), texts, found)


def verdict(metric: str, effect: Effect, judgement: Judgement | None = None) -> Verdict:
    [judged] = judge([comparison((metric, effect))], judgement or Judgement())
    return judged.verdicts[metric]


@pytest.mark.parametrize(
    ("metric", "shift", "spread", "word"),
    [
        ("completion_tokens", -0.2, 0.05, "lower"),
        ("tokens_per_base_token", -0.2, 0.05, "better"),
        ("tokens_per_base_token", 0.2, 0.05, "worse"),
        ("completion_bytes_per_s", 0.2, 0.05, "better"),
        ("completion_tokens", 0.001, 0.01, "equivalent"),
        ("completion_tokens", 0.005, 0.3, "inconclusive"),
        ("base_completion_tokens", 0.2, 0.05, "higher"),
    ],
)
def test_words(metric: str, shift: float, spread: float, word: str) -> None:
    found = verdict(metric, ratio(shift, spread))
    assert found.word == word
    assert found.is_open == (word == "inconclusive")


def test_a_real_difference_within_the_margin_is_equivalent() -> None:
    """It is both significant and too small to matter: the margin decides."""
    effect = ratio(0.005, 0.002)
    assert effect.p is not None
    assert effect.p < 0.001
    assert verdict("completion_tokens", effect).word == "equivalent"
    strict = Judgement(margins={"completion_tokens": 0.004})
    assert verdict("completion_tokens", effect, strict).word == "higher"


def test_directions_and_margins_are_the_spec_s() -> None:
    judgement = Judgement(directions={"completion_tokens": "higher"})
    assert verdict("completion_tokens", ratio(0.2, 0.05), judgement).word == "better"
    assert verdict("completion_tokens", ratio(0.2, 0.05)).margin == 0.02


def test_the_mde_is_what_this_size_of_trial_can_find() -> None:
    effect = ratio(0.0, 0.1, n=400)
    found = verdict("completion_tokens", effect, Judgement(reserve=0))
    assert effect.se is not None
    assert found.mde == pytest.approx(math.expm1(2.80 * effect.se), rel=0.01)


def test_exactly_equal_needs_no_test() -> None:
    same = ratio_effect([1.0, 2.0], [1.0, 2.0])
    assert verdict("completion_tokens", same) == Verdict("exactly equal", "primary", 0.02)


@pytest.mark.parametrize(
    ("change", "num", "word"), [(0.9, 8, "better"), (1.001, 8, "equivalent"), (0.9, 1, None)]
)
def test_the_same_change_in_every_unit_is_judged_by_swaps(
    change: float, num: int, word: str | None
) -> None:
    sizes = np.arange(1.0, num + 1)
    effect = ratio_effect(sizes, sizes * change)
    assert effect.is_uniform == (num > 1)
    found = verdict("kv_committed_peak_bytes", effect)
    assert found.word == (word or "inconclusive")
    if word is None:
        assert "one unit alone" in (found.reason or "")


def test_few_units_can_never_be_sure() -> None:
    """Five units' signs agree by chance in 6 % of trials, whatever the sizes."""
    sizes = np.arange(1.0, 6)
    assert verdict("completion_tokens", ratio_effect(sizes, sizes / 2)).word == "inconclusive"


def test_holm_is_over_all_primary_answers_of_all_comparisons() -> None:
    borderline = replace(ratio(0.05, 0.3), p=0.03)
    assert verdict("completion_tokens", borderline).word == "higher"
    several = [comparison(("completion_tokens", borderline), name=f"c{i}") for i in range(2)]
    for judged in judge(several, Judgement()):
        assert judged.verdicts["completion_tokens"].word == "inconclusive"
        assert judged.verdicts["completion_tokens"].p == pytest.approx(0.06)


def test_exploratory_metrics_do_not_cost_the_primary_ones() -> None:
    strong = replace(ratio(0.05, 0.3), p=0.03)
    found = comparison(("completion_tokens", strong), ("ttft_s", strong), ("tpot_s", strong))
    [judged] = judge([found], Judgement())
    assert judged.verdicts["completion_tokens"].p == pytest.approx(0.03)
    assert judged.verdicts["ttft_s"].family == "exploratory"


def test_times_are_withheld_where_the_same_configuration_differs_from_itself() -> None:
    pair = comparison(("e2e_s", ratio(0.1, 0.01)), name="again", is_duplicate=True)
    found = comparison(("e2e_s_per_byte", ratio(-0.2, 0.01)), ("completion_tokens", ratio(-1, 0.1)))
    alarmed, judged = judge([pair, found], Judgement())
    assert alarmed.verdicts == {}, "an A/A pair has nothing to be judged"
    assert judged.verdicts["e2e_s_per_byte"].word == "withheld"
    assert "twice" in (judged.verdicts["e2e_s_per_byte"].reason or "")
    assert judged.verdicts["completion_tokens"].word == "lower"
    quiet = comparison(("e2e_s", ratio(0.0, 0.01)), name="again", is_duplicate=True)
    assert judge([quiet, found], Judgement())[1].verdicts["e2e_s_per_byte"].word == "better"


@pytest.mark.parametrize(("shift", "word"), [(-0.08, "better"), (-0.2, "withheld")])
def test_the_length_guard(shift: float, word: str) -> None:
    found = comparison(
        ("e2e_s_per_byte", ratio(-0.2, 0.01)), ("base_completion_tokens", ratio(shift, 0.01))
    )
    [judged] = judge([found], Judgement())
    assert judged.verdicts["e2e_s_per_byte"].word == word
    assert any("guard" in line for line in judged.warnings) == (word == "withheld")


@pytest.mark.parametrize(("apart", "word"), [(0.0, "better"), (0.2, "better"), (0.9, "withheld")])
def test_times_that_were_taken_apart_do_not_compare(apart: float, word: str) -> None:
    found = comparison(
        ("e2e_s_per_byte", ratio(-0.2, 0.05)), ("completion_tokens", ratio(-0.2, 0.05))
    )
    [judged] = judge([replace(found, share_apart=apart)], Judgement())
    assert judged.verdicts["e2e_s_per_byte"].word == word
    assert judged.verdicts["completion_tokens"].word == "lower"


def test_planted_effects_through_parquet(tmp_path: Path) -> None:
    found = findings(make_results(tmp_path / "out"))
    words = {
        (j.comparison.configuration, m): v.word for j in found.judged for m, v in j.verdicts.items()
    }
    assert words["fast", "completion_tokens"] == "exactly equal"
    assert words["fast", "e2e_s_per_byte"] == "better"
    assert words["fast", "kv_committed_peak_bytes"] == "better"
    assert words["short", "completion_tokens"] == "lower"
    assert words["short", "e2e_s_per_byte"] == "withheld"
    assert words["short", "bits_per_byte"] == "worse"
    assert not any(name == "again" for name, _ in words)
    assert found.alarms == []


def test_a_planted_alarm_through_parquet(tmp_path: Path) -> None:
    def slower(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.configuration == "again" else ():
            for name in ("ttft_s", "tpot_s", "e2e_s"):
                if name in row:
                    row[name] *= 1.2

    found = findings(make_results(tmp_path / "out", edit=slower))
    assert {alarm.metric for alarm in found.alarms} >= {"e2e_s", "tpot_s"}
    assert found.of("fast").verdicts["e2e_s_per_byte"].word == "withheld"


def test_what_is_open_says_what_would_settle_it(tmp_path: Path) -> None:
    def noisy(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows if cell.configuration == "fast" else ()):
            if "completion_tokens" in row:
                draw = np.random.default_rng([cell.start + i, cell.seed or 0, 5])
                row["completion_tokens"] = round(row["completion_tokens"] * draw.lognormal(0, 0.3))

    found = findings(make_results(tmp_path / "out", edit=noisy))
    open_verdict = found.of("fast").verdicts["completion_tokens"]
    assert open_verdict.word == "inconclusive"
    need = found.needs["fast", "completion_tokens"]
    assert need.num_prompts is not None
    assert need.num_prompts > 48
    assert need.num_seeds is None or need.num_seeds > 1


@pytest.mark.parametrize(("num", "word"), [(8, "inconclusive"), (9, "better")])
def test_few_units_cannot_decide_in_a_large_family(num: int, word: str) -> None:
    """Ten tests at 4 % need p of 0.4 %: no swap of eight units is rarer than 1 in 128."""
    strong = ratio(-0.1, 0.005, n=num)
    assert strong.p == 2 / 2**num
    several = [comparison(("e2e_s_per_byte", strong), name=f"c{i}") for i in range(10)]
    for judged in judge(several, Judgement()):
        found = judged.verdicts["e2e_s_per_byte"]
        # Equivalence is out of the question, and 9 units are at the very floor of p.
        assert found.word == word
        if word == "inconclusive":
            assert "at least 9 are needed" in (found.reason or "")


def test_no_number_of_tests_hides_large_effects_behind_the_number_of_draws() -> None:
    strong = ratio(0.4, 0.1, n=24)
    several = [comparison(("completion_tokens", strong), name=f"c{i}") for i in range(400)]
    words = {j.verdicts["completion_tokens"].word for j in judge(several, Judgement())}
    assert words == {"higher"}


def test_needs_count_clusters_of_prompts(tmp_path: Path) -> None:
    """Effects that differ by cluster alone: 8 clusters say what 8 prompts would, not 48."""

    def by_cluster(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.configuration == "fast" else ():
            if "completion_tokens" in row:
                factor = (0.8, 1.25, 0.9, 1.11)[int(row["prompt_id"][1:]) % 4]
                row["completion_tokens"] = round(row["completion_tokens"] * factor)

    results = make_results(tmp_path / "out", edit=by_cluster)
    alone = findings(results).needs["fast", "completion_tokens"].num_prompts
    rows = [row | {"cluster": str(row["row"] % 4)} for row in results.prompts().to_pylist()]
    write_prompts(results.store, rows)
    together = findings(results).needs["fast", "completion_tokens"].num_prompts
    assert alone is not None
    assert together is not None
    assert together > 3 * alone


def test_equal_means_of_rows_that_differ_are_not_exactly_equal(tmp_path: Path) -> None:
    """One seed has as many tokens more as the other has fewer."""

    def mirrored(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.configuration == "fast" else ():
            if "completion_tokens" in row:
                row["completion_tokens"] += 3 if cell.seed == 1 else -3

    found = findings(make_results(tmp_path / "out", edit=mirrored)).of("fast")
    assert found.comparison.effect("completion_tokens").estimate == 0  # type: ignore[union-attr]
    assert found.comparison.rows.unequal["completion_tokens"] == 96
    verdict = found.verdicts["completion_tokens"]
    assert verdict.word == "inconclusive"
    assert verdict.reason == "means are equal, and rows are not"
    assert found.verdicts["prompt_tokens"].word == "exactly equal"


@pytest.mark.parametrize("is_other_text", [False, True])
def test_counts_that_the_budget_decided_are_equal_only_where_texts_are(
    tmp_path: Path, is_other_text: bool
) -> None:
    def cut(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows:
            if "finish_reason" in row:
                row["finish_reason"] = "length"
            if is_other_text and cell.configuration == "fast" and "completion_text" in row:
                row["completion_text"] += "!"

    found = findings(make_results(tmp_path / "out", edit=cut)).of("fast")
    word = found.verdicts["completion_tokens"].word
    assert word == ("withheld" if is_other_text else "exactly equal")
    assert found.verdicts["tokens_per_base_token"].word != "withheld", "it has no length in it"


def failing(row: dict[str, Any]) -> None:
    row["finish_reason"], row["error"] = "error", "out of memory"
    for name in set(row) - KEPT:
        row[name] = None


KEPT = frozenset(
    [
        "run_id",
        "dataset",
        "prompt_id",
        "seed",
        "shard",
        "cell",
        "attempt",
        "finish_reason",
        "error",
        "worker",
        "node",
        "device",
        "order_in_block",
        "batch_size",
        "started_at",
        "warmup",
    ]
)


@pytest.mark.parametrize("num", [1, 12])
def test_failures_of_one_side_withhold(tmp_path: Path, num: int) -> None:
    """What completed of an arm whose long prompts ran out of memory is no such workload."""
    left = num

    def out_of_memory(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        nonlocal left
        for row in rows if cell.configuration == "fast" and cell.kind == "generations" else ():
            if left:
                failing(row)
                left -= 1
                facts["num_errors"] = (facts.get("num_errors") or 0) + 1

    results = make_results(tmp_path / "out", edit=out_of_memory, seeds=(1, 2, 3))
    found = findings(results).of("fast")
    rows = found.comparison.rows
    assert (rows.num_pairs, rows.num_failed, rows.num_failed_reference) == (144, num, 0)
    words = {name: v.word for name, v in found.verdicts.items()}
    own = words.pop("failed_share")
    assert own == ("worse" if num == 12 else "inconclusive"), "failures are an endpoint themselves"
    assert words["completion_tokens"] == "withheld", "it was exactly equal where both completed"
    assert "failed" in (found.verdicts["completion_tokens"].reason or "")
    assert (set(words.values()) == {"withheld"}) == (num == 12)


def in_rounds(num_rounds: int, noise: float) -> Callable[..., None]:
    """Leases: what a round runs of a configuration shares the state of the machine."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        number = 1 + (cell.shard + (cell.seed or 0)) % num_rounds
        draw = np.random.default_rng([number, *cell.configuration.encode()]).normal(0, noise)
        facts["round"] = number
        facts["wall_s"] *= math.exp(draw)
        for row in rows:
            for name in ("ttft_s", "tpot_s", "e2e_s"):
                if row.get(name) is not None:
                    row[name] *= math.exp(draw)

    return edit


def test_in_leases_the_round_is_what_is_swapped(tmp_path: Path) -> None:
    found = findings(make_results(tmp_path / "out", edit=in_rounds(8, 0.01), num_shards=8))
    times = {"e2e_s_per_byte", "e2e_s", "completion_bytes_per_s", "kv_committed_peak_bytes"}
    for effect in found.of("fast").comparison.effects:
        if effect.metric.name in times and not effect.effect.identical:
            assert effect.effect.num_clusters == 8, "rounds of both data sets together"
    effect = found.of("fast").comparison.effect("e2e_s")
    assert effect is not None
    assert effect.estimate == pytest.approx(-0.1, abs=0.02)
    assert effect.p == 2 / 2**8, "every round was faster"


def test_few_rounds_give_times_no_verdict(tmp_path: Path) -> None:
    """With noise of 2 % a round, three rounds of 24 shards found 46 % false differences."""
    found = findings(make_results(tmp_path / "out", edit=in_rounds(3, 0.02)))
    verdict = found.of("fast").verdicts["e2e_s_per_byte"]
    assert verdict.word == "inconclusive"
    assert "3 rounds of leases" in (verdict.reason or "")
    assert found.of("fast").verdicts["completion_tokens"].word == "exactly equal"
    need = found.needs["fast", "e2e_s_per_byte"]
    assert (need.num_prompts, need.num_seeds) == (None, None)
    assert "rounds" in (need.reason or "")


@pytest.mark.parametrize(("share_cut", "word"), [(0.05, "lower"), (0.4, "withheld")])
def test_lengths_that_the_budget_cut_get_no_verdict(
    tmp_path: Path, share_cut: float, word: str
) -> None:
    """A true -20 % looks like less where the longest of both sides end at one length."""

    def cut(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows):
            if "completion_tokens" in row and (cell.start + i) % 100 < share_cut * 100:
                row["finish_reason"] = "length"

    found = findings(make_results(tmp_path / "out", edit=cut, num_prompts=100)).of("short")
    for metric in ("completion_tokens", "base_completion_tokens"):
        assert found.verdicts[metric].word == word
    assert ("budget" in (found.verdicts["completion_tokens"].reason or "")) == (word == "withheld")


def by_set(first: float, second: float) -> Callable[..., None]:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows if cell.configuration == "fast" else ()):
            if "completion_tokens" in row:
                noise = np.random.default_rng([cell.start + i, cell.seed or 0, 3]).normal(0, 0.03)
                factor = (first if cell.dataset == "set0" else second) * math.exp(noise)
                row["completion_tokens"] = round(row["completion_tokens"] * factor)

    return edit


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [(0.8, 1.25, "mixed"), (0.9, 0.7, "lower"), (1.0, 1.0, "equivalent")],
)
def test_data_sets_that_differ(tmp_path: Path, first: float, second: float, word: str) -> None:
    """-20 % in one and +25 % in the other is no effect on average, and not equivalent either."""
    edit = by_set(first, second)
    found = findings(make_results(tmp_path / "out", edit=edit, num_prompts=60)).of("fast")
    verdict, effect = found.verdicts["completion_tokens"], found.comparison.effects
    assert verdict.word == word
    tokens = next(e.effect for e in effect if e.metric.name == "completion_tokens")
    assert tokens.by_set is not None
    assert tokens.by_set == pytest.approx({"set0": first - 1, "set1": second - 1}, abs=0.03)
    if word == "mixed":
        assert re.search(r"set0 -\d+\.\d %, set1 \+\d+\.\d %", verdict.reason or "")
        assert not verdict.is_open, "more data would not settle it"


def test_less_memory_for_much_shorter_texts_is_lower_and_not_better() -> None:
    found = comparison(
        ("kv_committed_peak_bytes", ratio(-0.5, 0.05)),
        ("base_completion_tokens", ratio(-2.0, 0.05)),
    )
    [judged] = judge([found], Judgement())
    assert judged.verdicts["kv_committed_peak_bytes"].word == "lower"
