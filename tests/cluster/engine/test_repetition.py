"""Completions that end in a loop: what is one, and what a trial says of them."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console
from trial_results import Edit, configurations, make_results

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.repetition import ends_in_loop
from cluster.engine.sampling import SamplingParams
from cluster.plan import Cell
from cluster.results.results import Results
from cluster.worker.rows import Circumstances, generation_row
from jobs.analysis.sample_size import influences
from jobs.queries.sql import connect
from jobs.queries.summary import summary_rows
from jobs.report.render.markdown import markdown
from jobs.report.render.terminal import print_report
from jobs.report.report_data import report_data
from jobs.spec.metrics import METRICS
from jobs.stats.permutation.effect import NO_PAIRS

LABEL = "share that ends in a loop"


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("", False),
        ("A network is a set of nodes that exchange data.", False),
        ("It is the end of the world. " * 3, True),
        ("It is the end of the world. " * 2, False),
        ("He said: " + "no, " * 6, True),  # 24 bytes
        ("He said: " + "no, " * 5, False),
        ("and the data, and the data, and the data, and the d", True),  # the last one is cut
        ("ab" * 12, True),
        ("ab" * 11 + "a", False),  # 23 bytes
        ("ab" * 12 + ".", False),  # it went on
        ("网络数据" * 3, True),  # 36 bytes
        ("网络" * 3, False),  # 18 bytes
        ("网络数据" * 3 + "\N{REPLACEMENT CHARACTER}", True),  # half a character at the end
        ("0" * 64, True),
        ("x" + "\n" * 40, True),
        ("A heading that is as long as a line of text\n" + "-" * 40, False),  # a rule under it
        ("A heading\n" + "-" * 40, True),
        ("yes " + "no" * 30 + " then something else", False),
    ],
)
def test_what_a_loop_is(text: str, is_loop: bool) -> None:
    assert ends_in_loop(text) is is_loop


def by_definition(text: str) -> bool:
    """The same, block by block."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    for size in range(1, len(text) // 3 + 1):
        block, repeats = text[-size:], 3
        while len((block * repeats).encode()) < 24:
            repeats += 1
        if text.endswith(block * repeats):
            run = len(text) - len(text.rstrip(text[-1]))
            of_one = len((text[-1] * run).encode())
            if len(set(block)) > 1 or 2 * of_one >= len(text.encode()):
                return True
    return False


def test_it_is_what_every_block_says() -> None:
    draw = random.Random(3)
    found = []
    for _ in range(4000):
        letters = draw.choice(["ab", "abc", "aé", "网络", "a "])
        text = "".join(draw.choices(letters, k=draw.randrange(14)))
        block = "".join(draw.choices(letters, k=draw.randint(1, 7)))
        text += block * draw.randrange(12) + block[: draw.randrange(len(block))]
        found.append(ends_in_loop(text))
        assert found[-1] == by_definition(text), text
    assert 1000 < sum(found) < 3500


def test_rows_have_it_of_their_text() -> None:
    lm = tiny_models.model("llama")
    params = SamplingParams(max_new_tokens=4)
    [made] = Engine(lm).generate([Request("p", "text", params)])
    cell = Cell(
        kind="generations", configuration="c", dataset="d", shard=0, seed=0, start=0, stop=1,
        key="k",
    )  # fmt: skip
    around = Circumstances("r", "a", "w", "n", "cpu", 0, 1, False)
    for text, is_loop in (("round and round " * 4, True), ("round and about it goes", False)):
        made.text = text
        row = generation_row(cell, made, around, lm.tokenizer)
        assert row["ends_in_loop"] is is_loop
    made.error = "no memory"
    assert "ends_in_loop" not in generation_row(cell, made, around, lm.tokenizer)


# --- what a trial says ---------------------------------------------------------------------------


def loops(share_of: dict[str, int]) -> Edit:
    """Of the 12 prompts of each data set so many loop, under both seeds."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows if cell.kind == "generations" else ()):
            row["ends_in_loop"] = cell.start + i < share_of[cell.configuration]

    return edit


def small(folder: Path, edit: Edit | None) -> Results:
    return make_results(
        folder / "out", edit=edit, arms=configurations()[::2], num_prompts=12, num_shards=4
    )


def effect_of(data: dict[str, Any]) -> dict[str, Any]:
    [found] = [e for e in data["comparisons"][0]["effects"] if e["metric"] == "ends_in_loop"]
    return dict(found)


def printed(data: dict[str, Any]) -> str:
    out = io.StringIO()
    print_report(data, Console(file=out, width=100))
    return out.getvalue()


def test_a_difference_is_of_shares_by_prompts(tmp_path: Path) -> None:
    results = small(tmp_path, loops({"baseline": 1, "fast": 10}))
    data = report_data(results)
    found = effect_of(data)
    assert found["statistic"] == "mean difference"
    assert found["reference_mean"] == pytest.approx(1 / 12)
    assert found["mean"] == pytest.approx(10 / 12)
    assert found["estimate"] == pytest.approx(9 / 12)
    assert (found["num_units"], found["family"]) == (24, "exploratory")
    assert found["low"] < 9 / 12 < found["high"]
    assert found["verdict"] == "worse", "fewer loops are better"
    [fast] = [c for c in data["configurations"] if c["configuration"] == "fast"]
    assert fast["metrics"]["ends_in_loop"]["mean"] == pytest.approx(10 / 12)
    assert fast["metrics"]["ends_in_loop"]["n"] == 48
    for text in (printed(data), markdown(data)):
        assert text.count(LABEL) >= 2, "among the effects, and of each configuration"
    rows = [r for r in summary_rows(connect(results)) if r["metric"] == "ends_in_loop"]
    [row] = [r for r in rows if (r["configuration"], r["dataset"]) == ("fast", "*")]
    assert (row["of"], row["n"], row["total"]) == ("row", 48, 40)
    # What each (prompt, seed) adds to the difference, of which needs are foretold: nothing or one.
    metric = next(m for m in METRICS if m.name == "ends_in_loop")
    values, units = influences(connect(results), ("fast", "baseline"), metric)
    assert (len(values), len(set(units))) == (48, 24)
    assert max(values) - min(values) == pytest.approx(1)


def test_no_loops_are_exactly_equal_and_not_printed(tmp_path: Path) -> None:
    data = report_data(small(tmp_path, loops({"baseline": 0, "fast": 0})))
    found = effect_of(data)
    assert (found["identical"], found["estimate"], found["verdict"]) == (True, 0, "exactly equal")
    assert LABEL not in printed(data)
    assert LABEL not in markdown(data)


def test_a_trial_without_the_column_says_nothing_of_it(tmp_path: Path) -> None:
    results = small(tmp_path, None)
    data = report_data(results)
    found = effect_of(data)
    assert (found["estimate"], found["reason"], found["num_units"]) == (None, NO_PAIRS, 0)
    assert all("ends_in_loop" not in c["metrics"] for c in data["configurations"])
    assert LABEL not in printed(data)
    assert "ends_in_loop" not in {r["metric"] for r in summary_rows(connect(results))}


def test_rows_that_one_side_has_it_of_are_no_pairs(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        # The baseline's first seed ran before the column was there.
        for row in rows if cell.kind == "generations" else ():
            row["ends_in_loop"] = False if cell.configuration == "fast" or cell.seed == 2 else None

    found = effect_of(report_data(small(tmp_path, edit)))
    assert (found["num_units"], found["estimate"], found["reference_mean"]) == (24, 0, 0)
