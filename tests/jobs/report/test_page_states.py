"""The page of trials in every state, from no rows to eight million."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_tree import parse
from many_rows import make_many
from test_page import SECTIONS, SMALL, made
from trial_results import configurations, make_results

from cluster.plan import Cell
from jobs.report.page_data import page_data
from jobs.report.render.html import render, write_page

MOST_BYTES = 5_000_000


def all_errors(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if cell.kind == "generations":
        names = [name for name in rows[0] if name.endswith(("_s", "tokens", "bytes", "text"))]
        for row in rows:
            row |= dict.fromkeys(names, None) | {"error": "no", "finish_reason": "error"}
        facts |= dict.fromkeys(("completion_tokens", "completion_bytes", "wall_s"), 0)


def not_numbers(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows:
        for name in ("ttft_s", "tpot_s", "e2e_s", "nats"):
            if name in row:
                row[name] = math.nan
    facts["wall_s"] = math.nan


def no_facts(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for name in list(facts):
        if name not in ("key", "kind", "configuration", "dataset", "shard", "seed"):
            del facts[name]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"edit": lambda *_: False}, "There are no rows yet"),
        ({"edit": all_errors}, "Every row has an error"),
        ({"edit": not_numbers}, "Too few timed cells"),
        ({"edit": no_facts}, "there is no timeline"),
        ({"edit": lambda cell, *_: cell.kind == "likelihoods"}, "There are no completions yet"),
        ({"edit": lambda cell, *_: cell.kind == "generations"}, "quality (no targets"),
        ({"edit": lambda cell, *_: cell.shard == 0}, "Not complete"),
        ({"edit": lambda cell, *_: cell.configuration != "baseline"}, "There is no verdict yet"),
        ({"arms": configurations()[:1]}, "One configuration alone"),
        ({"seeds": (1,)}, "8 prompts × 1 seed"),
        ({"num_prompts": 1, "num_shards": 1}, "1 prompt ×"),
        ({"scorers": ("no_such_module:f",)}, "there are no scores"),
    ],
)
def test_no_state_of_a_trial_breaks_the_page(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    tree = made(make_results(tmp_path / "out", **{**SMALL, **options}))
    assert [node.attributes["id"] for node in tree.all("section")] == SECTIONS
    assert expected in tree.words
    for section in tree.all("section"):
        heading = section.all("h2")[0].words
        assert len(section.words) > len(heading) + 20, f"{heading} says nothing"
    # Not as a word: what is drawn or said is never a number that is none.
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(n.words for n in tree.all("td", "svg")))
    for node in tree:
        assert not [v for v in node.attributes.values() if re.search(r"\b(nan|inf)\b", v)]


def test_its_size_does_not_grow_with_rows(tmp_path: Path) -> None:
    sizes = []
    for num_prompts, num_seeds in ((16, 2), (320, 4)):
        folder = tmp_path / f"{num_prompts}"
        found = make_many(folder, num_prompts=num_prompts, num_seeds=num_seeds, num_arms=2)
        sizes.append(len(render(page_data(found)).encode()))
    assert sizes[1] < 1.15 * sizes[0], "forty times as many rows"
    assert sizes[1] < 1_000_000


@pytest.mark.slow
def test_eight_million_rows_make_a_page_of_less_than_5_mb(tmp_path: Path) -> None:
    found = make_many(tmp_path / "out", num_prompts=50_000, num_seeds=20)
    target = tmp_path / "report.html"
    write_page(found, target)
    assert target.stat().st_size < MOST_BYTES
    tree = parse(target.read_text())
    assert "8,000,000 rows" in tree.words
    assert len(tree.by_id("distributions").all("svg")) >= 5
