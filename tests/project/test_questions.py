"""docs/questions.md: every block runs, and the four answers to each question are the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.tables import write_tables

PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text()
TOOLS = ("DuckDB", "pandas", "Polars", "pyarrow")
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
IMPORTS = FENCE.findall(PAGE)[0]
QUESTIONS = {
    title: FENCE.findall(text)
    for title, text in re.findall(r"## (.*?)\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)
}

Rows = list[dict[str, Any]]


def vary(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Rows that failed for two reasons, a cold engine, and texts of `again` that differ."""
    if cell.kind != "generations":
        return
    if cell.shard == 0 and cell.configuration in ("fast", "short"):
        metrics = [name for name in rows[0] if name.endswith(("_s", "tokens", "bytes", "text"))]
        reason = "out of memory" if cell.seed == 1 else "it broke"
        rows[0] |= dict.fromkeys(metrics, None) | {"error": reason, "finish_reason": "error"}
    if cell.shard == 1:
        rows[0] |= {"warmup": True, "e2e_s": 1000.0}
    if cell.shard == 2 and cell.configuration == "again":
        rows[0] |= {"completion_text": "otherwise"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = make_results(tmp_path_factory.mktemp("questions") / "out", edit=vary)
    write_tables(made)
    return made


def answer(block: str) -> Rows:
    names: dict[str, Any] = {}
    exec(IMPORTS + block, names)  # noqa: S102 - the page's own code is what is tested
    found = names["answer"]
    if isinstance(found, pd.DataFrame):
        found = found.astype(object).where(found.notna(), None)
        return [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]
    if isinstance(found, pl.DataFrame):
        return found.to_dicts()
    if isinstance(found, duckdb.DuckDBPyRelation):
        found = found.to_arrow_table()
    assert isinstance(found, pa.Table)
    return list(found.to_pylist())


def test_there_are_ten_questions_with_four_answers_each() -> None:
    assert [title.split(".")[0] for title in QUESTIONS] == [str(n) for n in range(1, 11)]
    for blocks in QUESTIONS.values():
        assert [block.splitlines()[0] for block in blocks] == [f"# {tool}" for tool in TOOLS]


@pytest.mark.parametrize("title", QUESTIONS)
def test_all_four_tools_answer_the_same(
    title: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.output)
    first, *others = (answer(block) for block in QUESTIONS[title])
    assert first
    for other in others:
        assert [list(row) for row in other] == [list(row) for row in first]
        for row, expected in zip(other, first, strict=True):
            for name, value in expected.items():
                is_real = isinstance(value, float)
                assert row[name] == (pytest.approx(value, rel=1e-12) if is_real else value)


def given(number: int, results: Results, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.chdir(results.output)
    [blocks] = [found for title, found in QUESTIONS.items() if title.startswith(f"{number}.")]
    return answer(blocks[0])


def test_the_answers_are_what_was_planted(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given(1, results, monkeypatch)[0]["configuration"] == "short"
    slow = given(3, results, monkeypatch)
    assert {row["configuration"] for row in slow} == {"baseline", "again", "fast", "short"}
    assert all(row["e2e_s"] < 1000 for row in slow)
    failed = {
        (row["configuration"], row["error"]): row["num_rows"]
        for row in given(4, results, monkeypatch)
    }
    assert failed == {
        (name, why): 2 for name in ("fast", "short") for why in ("it broke", "out of memory")
    }
    assert all(row["tokens_per_byte"] == 0.25 for row in given(5, results, monkeypatch))
    peaks = {row["configuration"]: row["bytes"] for row in given(6, results, monkeypatch)}
    assert peaks == {"again": 10000, "baseline": 10000, "fast": 9000, "short": 10000}
    differing = {row["configuration"]: row for row in given(9, results, monkeypatch)}
    assert differing["again"]["num_differing"] == 4
    assert differing["fast"]["num_differing"] == 0
    assert differing["short"]["num_differing"] == differing["short"]["num_pairs"] == 92
