"""The files of an extension: of two drivers that add at once, one has, and its prompts stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trial_results import make_results

from cluster.plan import Plan
from cluster.results.results import Results

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 4, "num_shards": 2, "seeds": (1,)}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return make_results(tmp_path / "out", **SMALL)


def rows(mark: str) -> list[dict[str, Any]]:
    return [
        {"dataset": "set0+1", "row": i, "prompt_id": f"{mark}{i}", "prompt": mark, "is_chat": False}
        for i in range(2)
    ]


def larger(results: Results) -> Plan:
    plan = results.plan()
    update = {"name": "set0+1", "num_prompts": 2, "first_row": 4, "num_shards": 1}
    more = plan.dataset("set0").model_copy(update=update)
    return plan.model_copy(update={"datasets": (*plan.datasets, more)})


def added(results: Results) -> list[str]:
    found = results.prompts().to_pylist()
    return [row["prompt_id"] for row in found if row["dataset"] == "set0+1"]


@pytest.mark.parametrize("mark", ["loser", "winner"], ids=["others", "the same"])
def test_whoever_loses_leaves_the_winners_prompts_alone(
    results: Results, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, late = larger(results), Results(results.output)
    monkeypatch.setattr(late, "_extension_names", list)  # it had looked before
    assert results.extend(plan, rows("winner"))
    before = sorted(results.store.list(""))
    assert not late.extend(plan, rows(mark))
    assert added(results) == ["winner0", "winner1"]
    assert sorted(results.store.list("")) == before
    assert results.plan() == plan


def test_extensions_of_older_results_are_read(results: Results) -> None:
    """Their file is the plan alone, and their prompts lie in the file of its number."""
    plan = larger(results)
    assert results.extend(plan, rows("old"))
    _, file = results.prompt_files()
    results.store.move(file, "inputs/prompts-0001.parquet")
    results.store.replace("extensions/0001.json", plan.model_dump_json().encode())
    assert results.plan() == plan
    assert added(results) == ["old0", "old1"]
    seeds = plan.model_copy(update={"seeds": (1, 2)})
    assert results.extend(seeds, [])
    assert results.plan() == seeds
    assert added(results) == ["old0", "old1"]
    assert json.loads(results.store.read("extensions/0002.json"))["prompts"] is None
