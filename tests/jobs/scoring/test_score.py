"""Scores of results: values, left-out rows, failing scorers, and the table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trial_results import configurations, make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.scoring.scores import SCORES, score_statistics, score_table, scores
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 12, "num_shards": 3}


def fail_once(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if (cell.kind, cell.configuration, cell.shard, cell.seed) == ("generations", "fast", 0, 1):
        rows[0] |= {"error": "it broke", "finish_reason": "error", "completion_text": None}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("score") / "out", edit=fail_once, **SMALL)


def test_scores_of_the_datasets_own_scorers(results: Results) -> None:
    table = scores(results)
    assert table.column_names == [c.name for c in SCORES]
    rows = table.to_pylist()
    by_text = [r for r in rows if r["scorer"] == "contains"]
    assert len(by_text) == 4 * 12 * 2 - 1, "the failed row has no score"
    assert {r["value"] for r in by_text if r["configuration"] == "baseline"} == {1.0}
    assert {r["value"] for r in by_text if r["configuration"] == "short"} == {0.0}
    bits = {(r["configuration"], r["seed"], round(r["value"], 9)) for r in rows
            if r["scorer"] == "bits_per_byte"}  # fmt: skip
    assert bits == {(n, None, 2.0 if n == "short" else 1.0) for n in
                    ("baseline", "again", "fast", "short")}  # fmt: skip


def test_named_scorers(results: Results) -> None:
    rows = scores(results, ["multiple_choice", "multiple_choice_unnormalised", "exact"]).to_pylist()
    assert {r["scorer"] for r in rows} == {
        "multiple_choice", "multiple_choice_unnormalised", "exact",
    }  # fmt: skip
    chosen = [r for r in rows if r["scorer"] == "multiple_choice"]
    assert len(chosen) == 4 * 12
    assert {r["value"] for r in chosen} == {1.0}


def test_a_scorer_that_raises_costs_its_row_only(results: Results) -> None:
    rows = scores(results, ["operator:truediv"]).to_pylist()
    assert len(rows) == 4 * 12 * 2 - 1
    assert {r["value"] for r in rows} == {None}
    assert all(r["error"].startswith("TypeError") for r in rows)
    statistics = score_statistics(results, ["operator:truediv"])
    assert {row["num_errors"] for row in statistics} == {24, 23}
    assert {row["mean"].estimate for row in statistics} == {None}


def test_statistics_by_hand(tmp_path: Path) -> None:
    def wrong_for_some(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.configuration == "fast" and cell.kind == "generations":
            for row in rows:
                if row["prompt_id"] in ("p001", "p002") or (
                    row["prompt_id"] == "p003" and row["seed"] == 1
                ):
                    row["completion_text"] = "wrong"

    results = make_results(tmp_path / "out", edit=wrong_for_some, **SMALL)
    found = {(r["configuration"], r["scorer"]): r for r in score_statistics(results)}
    fast = found["fast", "contains"]
    assert fast["mean"].estimate == pytest.approx((12 - 2.5) / 12)
    assert fast["difference"].estimate == pytest.approx(-2.5 / 12)
    # Of the 2^12 ways to swap sides only the three prompts that differ matter: 2 of 8 are as far
    # from 0; and no prompt was better, which of 12 does not show that few would be.
    assert fast["difference"].p == pytest.approx(2 / 8)
    assert 0 < fast["difference"].high < 1 - 0.025 ** (1 / 12)
    assert found["again", "contains"]["difference"].identical
    assert found["baseline", "contains"]["difference"] is None


def test_table(results: Results) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(score_table(results))
    assert "bits_per_byte" in out.getvalue()
    assert "0 in 12 pairs" in " ".join(out.getvalue().split())
    assert "exactly equal" not in out.getvalue(), "that is a verdict's word"


def test_unknown_scorers_are_refused(results: Results) -> None:
    with pytest.raises(InputError, match="no scorer"):
        scores(results, ["nonsense"])


def test_no_rows_at_all(tmp_path: Path) -> None:
    results = make_results(
        tmp_path / "out", edit=lambda *_: False, arms=configurations()[:1], **SMALL
    )
    assert len(scores(results)) == 0
    assert score_statistics(results) == []
