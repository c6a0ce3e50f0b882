"""Words of equality and of a difference stand only beside a verdict that says so, in every form."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trial_results import configurations, make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.findings import read_findings
from jobs.analysis.tails import TAILS
from jobs.queries.sql import connect
from jobs.report.explain import explain
from jobs.report.page_data import page_data
from jobs.report.render.html import render
from jobs.report.render.markdown import markdown
from jobs.report.render.terminal import print_report
from jobs.report.report_data import report_data

Row = dict[str, Any]
EQUAL = re.compile(
    "exactly (?:the )?(?:equal|same|0)|no text differs|all are the same|is left to chance|"
    "same tokens|same number of tokens|the same text as",
    re.IGNORECASE,
)
"""But for what is written of one sample."""
DIRECTED = {"better", "worse", "higher", "lower"}
FAILED = dict.fromkeys(
    ("completion_text", "completion_tokens", "base_completion_tokens", "completion_bytes",
     "finish_reason", "e2e_s", "ttft_s", "tpot_s")
)  # fmt: skip


def fail(row: Row, facts: Row) -> None:
    row.update(FAILED, error="MemoryError")
    facts["num_errors"] += 1


def most_fail(cell: Cell, rows: list[Row], facts: Row) -> None:
    for row in rows:
        if cell.kind == "generations" and row["prompt_id"] > "p001":
            fail(row, facts)


def longest_fail(cell: Cell, rows: list[Row], facts: Row) -> None:
    for row in rows:
        if cell.kind == "generations" and row["completion_tokens"] >= 55:
            fail(row, facts)


def one_fails(cell: Cell, rows: list[Row], facts: Row) -> None:
    for row in rows:
        if cell.kind == "generations" and row["prompt_id"] == "p005":
            fail(row, facts)


def is_left_out(cell: Cell, rows: list[Row], facts: Row) -> bool:
    return cell.shard not in (3, 5)


def scaled(factors: tuple[float, float]) -> Callable[[Cell, list[Row], Row], None]:
    def edit(cell: Cell, rows: list[Row], facts: Row) -> None:
        if cell.kind != "generations":
            return
        factor = factors[int(cell.dataset[-1])]
        for row in rows:
            for name in ("completion_tokens", "base_completion_tokens", "completion_bytes"):
                row[name] = max(1, round(row[name] * factor))
            row["completion_text"] += " x"
            row["e2e_s"] = row["ttft_s"] + row["tpot_s"] * (row["completion_tokens"] - 1)
        facts["kv_committed_peak_bytes"] = int(9000 * factor)

    return edit


def nothing(cell: Cell, rows: list[Row], facts: Row) -> None:
    """What `fast` does to times and memory is planted."""


@dataclass(frozen=True)
class Planted:
    edit: Callable[[Cell, list[Row], Row], bool | None]
    """Of the one configuration that is compared."""
    withheld: frozenset[str] = frozenset()
    """Metrics whose verdict is withheld; of an A/A pair those that show nothing."""
    may_be_equal: bool = False
    is_repeat: bool = False
    num_prompts: int = 16
    num_datasets: int = 1


TIMES = frozenset({"ttft_s", "tpot_s", "e2e_s"})
ROWS = TIMES | {"completion_tokens", "prompt_tokens", "contains", "bits_per_byte"}
EXPLAINED = ("prompt_tokens", "completion_tokens", "e2e_s")
PLANTED = {
    "failures": Planted(most_fail, ROWS),
    "the slowest fail": Planted(longest_fail, ROWS, num_prompts=240),
    "one row of many fails": Planted(one_fails, ROWS - TIMES - {"bits_per_byte"}, num_prompts=120),
    "cells are missing": Planted(is_left_out, ROWS),
    "length guard": Planted(scaled((1.5, 1.5)), TIMES, may_be_equal=True, num_prompts=120),
    "data sets of opposite effects": Planted(scaled((0.5, 2.0)), may_be_equal=True, num_datasets=2),
    "all is equal": Planted(nothing, may_be_equal=True, num_datasets=2),
    "a repeat": Planted(nothing, may_be_equal=True, is_repeat=True),
    "a repeat that fails": Planted(longest_fail, ROWS, is_repeat=True, num_prompts=240),
    "a repeat with missing cells": Planted(is_left_out, ROWS, is_repeat=True),
}


def results_of(planted: Planted, folder: Path) -> Results:
    baseline, again, fast, _ = configurations()
    other = again if planted.is_repeat else fast

    def edit(cell: Cell, rows: list[Row], facts: Row) -> bool | None:
        return planted.edit(cell, rows, facts) if cell.configuration == other.name else None

    return make_results(
        folder,
        edit=edit,
        arms=(baseline, other),
        seeds=(1,),
        num_prompts=planted.num_prompts,
        num_datasets=planted.num_datasets,
    )


def explained(results: Results) -> str:
    connection = connect(results)
    try:
        found = read_findings(connection, results.plan())
    finally:
        connection.close()
    if all(judged.comparison.is_duplicate for judged in found.judged):
        return ""
    paragraphs = [p for name in EXPLAINED for p in explain(found, None, name)]
    return "\n".join(line for p in paragraphs for line in (p.heading, *p.lines))


def forms(results: Results, data: dict[str, Any]) -> dict[str, str]:
    """All that people read of it, in lines."""
    terminal = io.StringIO()
    print_report(data, Console(file=terminal, width=300))
    # Of one text of one prompt a sample says that it is the same, which is so.
    page = render({**page_data(results, data), "samples": []})
    page = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    page = re.sub(r"</tr>|</p>|</h\d>|</d[dt]>", "\n", re.sub(r"\s+", " ", page))
    return {
        "terminal": terminal.getvalue(),
        "markdown": markdown(data),
        "page": re.sub(r"<[^>]*>", " ", page),
        "explain": explained(results),
        "headline": data["answer"],
        "bullet": data["comparisons"][0]["answer"],
    }


@pytest.mark.parametrize("name", PLANTED)
def test_words_follow_verdicts(name: str, tmp_path: Path) -> None:
    planted = PLANTED[name]
    results = results_of(planted, tmp_path / "out")
    data = report_data(results)
    [comparison] = data["comparisons"]
    said = forms(results, data)
    mains = {
        row["metric"]: row
        for row in comparison["effects"]
        if row["statistic"] in ("ratio of totals", "mean difference")
    }
    for row in comparison["effects"]:
        check_row(row, mains[row["metric"]], planted)
    for form, text in said.items():
        found = [line for line in text.splitlines() if EQUAL.search(line)]
        if not planted.may_be_equal:
            assert not found, (form, found)
    if planted.may_be_equal:
        check_equality(said, mains, planted)
    if name == "data sets of opposite effects":
        assert mains["kv_committed_peak_bytes"]["by_set"]["set0"] == pytest.approx(-0.55)
        memory = [line for text in said.values() for line in text.splitlines() if "KV mem" in line]
        assert memory
        assert not any("in every unit" in line.split("KV mem")[1] for line in memory)
    if name == "all is equal":
        assert (
            "KV memory held at the peak (dynamic cache) better, -10.0 % in every unit"
            in (said["bullet"])
        )


def check_row(row: Row, main: Row, planted: Planted) -> None:
    """Of JSON and Parquet."""
    word, statement = row["verdict"], row["statement"]
    if EQUAL.search(statement):
        assert main["verdict"] == "exactly equal" or planted.is_repeat, row["metric"]
        assert planted.may_be_equal
    if statement in DIRECTED:
        assert word in DIRECTED, row["metric"]
    if row["metric"] not in planted.withheld:
        return
    assert row["verdict_reason"], row["metric"]
    assert planted.is_repeat or main["verdict"] == "withheld"
    assert statement == f"withheld: {main['verdict_reason']}"
    if row["statistic"] in TAILS:
        assert row["low"] is row["high"] is row["p"] is None
        assert row["estimate"] is None or row["reason"] == main["verdict_reason"]


def check_equality(said: dict[str, str], mains: dict[str, Row], planted: Planted) -> None:
    """Where it is so it is said, and of nothing else."""
    labels = {"prompt_tokens": "prompt tokens", "e2e_s": "time per completion"}
    for metric, label in labels.items():
        rows = re.findall(rf"^[ |]*{label} .*", said["terminal"], re.MULTILINE)
        is_equal = planted.is_repeat or mains[metric]["verdict"] == "exactly equal"
        is_equal = is_equal and mains[metric]["identical"]
        assert any("exactly equal" in row for row in rows) == is_equal, rows
    texts = mains["completion_tokens"]["identical"]
    if not planted.is_repeat:
        assert ("o text differs" in said["headline"]) == texts
    assert ("tokens are exactly the same" in said["bullet"]) == texts


def test_tails_that_are_sound_keep_their_interval(tmp_path: Path) -> None:
    """So that what is withheld above would have had one."""
    results = results_of(Planted(nothing, num_prompts=240), tmp_path / "out")
    [comparison] = report_data(results)["comparisons"]
    rows = [row for row in comparison["effects"] if row["statistic"] == "p95"]
    assert len(rows) == 3
    assert all(row["low"] < row["high"] < 0 and row["p"] < 0.05 for row in rows)
