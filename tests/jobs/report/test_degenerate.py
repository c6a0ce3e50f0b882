"""Whatever state results are in: what cannot be said is said to be so, and nothing is made up."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_claims import checked_claims
from test_verdicts import findings
from trial_results import configurations, make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.claims import AUTHORS
from jobs.report.explain import explain_results
from jobs.report.render.markdown import markdown
from jobs.report.render.terminal import print_report
from jobs.report.report_data import report_data
from optim.errors import InputError

Edit = Callable[[Cell, list[dict[str, Any]], dict[str, Any]], bool | None]
TIMES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")
MEASURES = (
    *TIMES, "prompt_tokens", "completion_tokens", "base_completion_tokens", "completion_bytes",
    "completion_chars", "completion_text", "finish_reason",
)  # fmt: skip


def failed(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows:
        row["error"] = "out of memory"
        row |= {name: None for name in (*MEASURES, "nats") if name in row}
    facts |= {"num_errors": len(rows), "completion_tokens": 0, "wall_s": 0.0}
    facts |= {"completion_bytes": 0, "base_completion_tokens": 0}


def failed_in_one(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if cell.configuration == "fast":
        failed(cell, rows, facts)


def nan_times(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows if cell.configuration == "fast" else ():
        row |= {name: math.nan for name in TIMES if name in row}


def constant(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows:
        for name in ("completion_tokens", "base_completion_tokens"):
            if name in row:
                row[name] = 20
        row |= {name: 0.5 for name in TIMES if name in row}
    facts["wall_s"] = 1.0


def empty(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows:
        if "completion_tokens" in row:
            row |= {"completion_tokens": 0, "base_completion_tokens": 0, "tpot_s": None}
            row |= {"completion_bytes": 0, "completion_chars": 0, "completion_text": ""}
    facts |= {"completion_tokens": 0, "completion_bytes": 0, "base_completion_tokens": 0}


def being_written(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
    return cell.kind == "generations" and cell.shard == 0 and cell.configuration == "baseline"


def with_holes(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
    return (cell.shard + len(cell.configuration)) % 3 != 0


STATES: dict[str, tuple[Edit | None, dict[str, Any]]] = {
    "one seed": (None, {"seeds": (1,)}),
    "one prompt": (None, {"num_datasets": 1, "num_prompts": 1, "num_shards": 1}),
    "one prompt, one seed": (
        None, {"num_datasets": 1, "num_prompts": 1, "num_shards": 1, "seeds": (1,)},
    ),
    "two prompts": (None, {"num_datasets": 1, "num_prompts": 2, "num_shards": 2}),
    "one configuration": (None, {"arms": configurations()[:1]}),
    "one shard": (None, {"num_shards": 1}),
    "zero variance": (constant, {}),
    "all errors": (failed, {}),
    "all errors of one": (failed_in_one, {}),
    "nan": (nan_times, {}),
    "empty completions": (empty, {}),
    "nothing yet": (lambda *_: False, {}),
    "being written": (being_written, {}),
    "missing cells": (with_holes, {}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(STATES))
def state(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    edit, options = STATES[request.param]
    folder = tmp_path_factory.mktemp("state") / "out"
    return request.param, make_results(folder, edit=edit, **options)


def test_every_reading_works(state: tuple[str, Results]) -> None:
    _, results = state
    data = report_data(results)
    json.dumps(data, allow_nan=False)
    out = io.StringIO()
    print_report(data, Console(file=out, width=100))
    for text in (out.getvalue(), markdown(data)):
        assert text.strip()
        assert " nan" not in text.lower().replace("nanoseconds", "")
        assert "None" not in text
    claims = checked_claims(results, AUTHORS)
    assert {each.answer for each in claims} <= {"not applicable", "undecided"}
    if all(c.vs is None for c in results.plan().configurations):
        with pytest.raises(InputError, match="no difference to explain"):
            explain_results(results, None, "completion_tokens")
    else:
        said = explain_results(results, None, "completion_tokens")
        assert all(paragraph.lines for paragraph in said)


GIVEN = {"better", "worse", "higher", "lower", "equivalent"}
FALSE_OF_FAST = {"completion_tokens", "prompt_tokens", "bits_per_byte"}
"""In truth exactly the same; any word but `exactly equal` would be a false one."""


def test_no_verdict_is_made_up(state: tuple[str, Results]) -> None:
    name, results = state
    found = findings(results)
    for judged in found.judged:
        for metric, verdict in judged.verdicts.items():
            if judged.comparison.configuration == "fast" and metric in FALSE_OF_FAST:
                assert verdict.word not in GIVEN, (name, metric)
            if name.startswith(("one prompt", "two prompts", "nothing", "all errors")) and (
                name != "all errors of one" or judged.comparison.configuration == "fast"
            ):
                is_failures = metric == "failed_share" and name == "all errors of one"
                assert (verdict.word in GIVEN) == is_failures, (name, metric)
            if verdict.word in ("inconclusive", "withheld") and verdict.p is None:
                assert verdict.reason, (name, metric)


def test_what_cannot_be_said_is_stated(tmp_path: Path) -> None:
    options = STATES["one prompt, one seed"][1]
    found = findings(make_results(tmp_path / "out", **options))
    verdict = found.of("short").verdicts["completion_tokens"]
    assert (verdict.word, verdict.reason) == (
        "inconclusive", "one unit alone says nothing of the spread",
    )  # fmt: skip
    need = found.needs["short", "completion_tokens"]
    assert "pilot" in (need.reason or "")


def test_half_of_the_seeds_is_no_false_difference(tmp_path: Path) -> None:
    """Cells of the second seed are there for one side only: pairs decide, not means."""

    def second_seed_of_baseline(
        cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]
    ) -> bool:
        return cell.seed != 2 or cell.configuration == "baseline"

    found = findings(make_results(tmp_path / "out", edit=second_seed_of_baseline))
    tokens = found.of("fast").comparison.effect("completion_tokens")
    assert tokens is not None
    assert tokens.identical
