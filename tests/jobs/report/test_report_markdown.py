"""The report as Markdown: what comes first, tables that hold, and names that stay text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from program import Run
from trial_results import configurations, make_results

from cluster.plan import Cell, Configuration, digest
from jobs.report.render.markdown import markdown, write_markdown
from jobs.report.report_data import report_data
from optim.errors import InputError

NASTY = "a|b*_c_`<img src=x>`"
SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 16}


def tables(text: str) -> list[list[list[str]]]:
    """Every table's lines, each cut at the bars that are no text."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_verdicts_come_first_and_everything_follows(tmp_path: Path) -> None:
    data = report_data(make_results(tmp_path / "out", **SMALL))
    text = markdown(data)
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings[:4] == ["Verdicts", "Answers", "What each factor does", "Effects"]
    assert "Each configuration" in headings
    verdicts = tables(text)[0]
    assert len(verdicts) == 2 + len(data["verdicts"])
    short = next(row for row in verdicts if row[0] == "short" and row[2] == "completion tokens")
    assert short[4] == "lower"
    assert short[3].startswith("-")
    assert "0 of 32 texts differ" in text
    assert "the same configuration twice" in text


def test_every_line_of_a_table_has_its_columns(tmp_path: Path) -> None:
    arms = [Configuration(name="baseline"), Configuration(name=NASTY, vs="baseline")]
    arms = [arm.model_copy(update={"fingerprint": digest(arm.name)}) for arm in arms]
    text = markdown(report_data(make_results(tmp_path / "out", arms=arms, **SMALL)))
    for table in tables(text):
        assert len({len(row) for row in table}) == 1, table[0]
    assert "<img" not in text
    assert r"a\|b\*\_c\_\`&lt;img src=x&gt;\`" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"edit": lambda *_: False}, "There are no rows yet"),
        ({"arms": configurations()[:1]}, "One configuration alone"),
        ({"edit": lambda cell, *_: cell.configuration != "baseline"}, "There is no verdict yet"),
    ],
)
def test_a_trial_that_cannot_say_much_says_so(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    text = markdown(report_data(make_results(tmp_path / "out", **{**SMALL, **options})))
    assert expected in text
    assert "Nothing can be attributed" in text


def test_a_failed_row_is_counted(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations" and cell.configuration == "fast" and cell.shard == 0:
            rows[0] |= {"error": "no", "completion_text": None, "completion_tokens": None}

    text = markdown(report_data(make_results(tmp_path / "out", edit=edit, **SMALL)))
    assert "2 errors" in text
    assert "| fast | rows (errors) | 32 (2) |" in text


def test_the_command_writes_it_whole(tmp_path: Path, run: Run) -> None:
    results = make_results(tmp_path / "out", **SMALL)
    target = tmp_path / "report.md"
    target.write_text("before")
    code, out, err = run("report", results.output, "--markdown", target)
    assert (code, out, err) == (0, "", "")
    assert target.read_text() == markdown(report_data(results))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "report.md"]


def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    data = report_data(make_results(tmp_path / "out", **SMALL))
    with pytest.raises(InputError, match=r"no such folder. Make it first"):
        write_markdown(data, tmp_path / "missing" / "report.md")
    with pytest.raises(InputError, match="is a folder"):
        write_markdown(data, tmp_path)
