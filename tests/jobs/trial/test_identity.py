"""What a spec is to the trial that is there: the same, more of it, or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import optim.model
import optim.registry
from cluster.results.results import MANIFEST, Results
from jobs.provenance.code_version import present_code
from jobs.spec.trial_spec import TrialSpec
from jobs.trial.manifest import write_manifest
from jobs.trial.plan_diff import Standing, Wanted, compare
from jobs.trial.planning import make_plan


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "qa.jsonl", 12)


def write_prompts(path: Path, count: int, **changed: str) -> Path:
    rows = [
        {"id": f"p{n}", "prompt": changed.get(f"p{n}", f"question {n}"), "target": f"t{n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wanted(prompts: Path, **changes: Any) -> Wanted:
    data: dict[str, Any] = {
        "model": "demo",
        "datasets": [{"path": str(prompts), "shards": 4}],
        "configurations": [{"name": "base"}, {"name": "large", "batch_size": 4, "vs": "base"}],
        "seeds": 2,
        "baseline_check": False,
        "output": str(prompts.parent / "out"),
    }
    spec = TrialSpec.model_validate(data | changes)
    plan, rows = make_plan(spec, "trial.yaml")
    return Wanted(spec, plan, rows, present_code(plan))


def begun(prompts: Path, **changes: Any) -> Results:
    """A trial that has its manifest, and no cell."""
    first = wanted(prompts, **changes)
    results = Results(first.plan.output)
    write_manifest(results, first, [])
    return results


def standing(results: Results, prompts: Path, **changes: Any) -> Standing:
    return compare(results, wanted(prompts, **changes))


def dataset(prompts: Path, **changes: Any) -> list[dict[str, Any]]:
    return [{"path": str(prompts), "shards": 4} | changes]


def test_the_same_spec_is_the_same_trial(prompts: Path) -> None:
    found = standing(begun(prompts), prompts)
    assert found.is_same
    assert found.plan == wanted(prompts).plan


def test_workers_and_places_make_no_other_trial(prompts: Path, tmp_path: Path) -> None:
    results = begun(prompts)
    moved = tmp_path / "elsewhere" / "qa.jsonl"
    moved.parent.mkdir()
    prompts.rename(moved)
    found = compare(results, wanted(moved, workers=3, shuffle_seed=7, output="other"))
    assert found.is_same
    assert (found.plan.workers.count, found.plan.shuffle_seed) == (3, 7)
    assert found.plan.output.endswith("other")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"generation": {"temperature": 0.5}}, "generation.temperature: 0.0 -> 0.5"),
        ({"seeds": 1}, "seeds: [0, 1] -> [0]"),
        ({"seeds": [0, 7]}, "seeds: [0, 1] -> [0, 7]"),
        ({"likelihoods": False}, "likelihoods: True -> False"),
        ({"dtype": "float16"}, "model.dtype: 'auto' -> 'float16'"),
        (
            {"configurations": [{"name": "base"}, {"name": "large", "batch_size": 2}]},
            "configurations[large].batch_size: 4 -> 2",
        ),
        ({"configurations": [{"name": "base"}]}, "configurations[large]: present -> absent"),
    ],
)
def test_what_is_changed_or_removed_is_another_trial(
    prompts: Path, changes: dict[str, Any], line: str
) -> None:
    found = standing(begun(prompts), prompts, **changes)
    assert line in found.changes
    assert found.growth.is_nothing, "what is another trial is no larger one"


def test_a_dataset_that_is_removed_is_another_trial(prompts: Path, tmp_path: Path) -> None:
    more = write_prompts(tmp_path / "more.jsonl", 3)
    both = [*dataset(prompts), *dataset(more)]
    found = standing(begun(prompts, datasets=both), prompts)
    assert found.changes == ("datasets[more]: present -> absent",)


def test_changed_prompts_are_named(prompts: Path) -> None:
    results = begun(prompts)
    write_prompts(prompts, 12, p3="something else")
    found = standing(results, prompts)
    assert found.changes == ("datasets[qa]: its prompts differ: 1 differ (p3)",)


def test_removed_prompts_are_named(prompts: Path) -> None:
    results = begun(prompts)
    write_prompts(prompts, 10)
    found = standing(results, prompts)
    assert found.changes == ("datasets[qa]: its prompts differ: 2 of 12 are gone (p10, p11)",)


def test_other_shards_are_another_trial(prompts: Path) -> None:
    found = standing(begun(prompts), prompts, datasets=dataset(prompts, shards=3))
    assert found.changes == ("datasets[qa].shards: 4 -> 3",)


def test_a_larger_draw_is_more_of_the_same(prompts: Path) -> None:
    results = begun(prompts, datasets=dataset(prompts, limit=5))
    found = standing(results, prompts, datasets=dataset(prompts, limit=9))
    assert not found.changes
    assert len(found.growth.prompts["qa"]) == 4
    before = set(results.prompts()["prompt_id"].to_pylist())
    assert not before & {row["prompt_id"] for row in found.growth.prompts["qa"]}


def test_another_draw_is_another_trial_and_says_why(prompts: Path) -> None:
    results = begun(prompts, datasets=dataset(prompts, limit=5))
    found = standing(results, prompts, datasets=dataset(prompts, limit=9, sample_seed=1))
    [line] = found.changes
    assert "are gone" in line
    assert "it is another draw, not a larger one that holds those that were run" in line


def test_appended_rows_are_more_of_the_same(prompts: Path) -> None:
    results = begun(prompts)
    write_prompts(prompts, 15)
    found = standing(results, prompts)
    assert [row["prompt_id"] for row in found.growth.prompts["qa"]] == ["p12", "p13", "p14"]


def test_seeds_datasets_and_configurations_can_be_added(prompts: Path, tmp_path: Path) -> None:
    more = write_prompts(tmp_path / "more.jsonl", 3)
    arms = [
        {"name": "small", "batch_size": 1, "vs": "base"},
        {"name": "base"},
        {"name": "large", "batch_size": 4, "vs": "base"},
    ]
    found = standing(
        begun(prompts),
        prompts,
        seeds=[1, 5, 0],
        datasets=[*dataset(more), *dataset(prompts)],
        configurations=arms,
    )
    assert not found.changes
    growth = found.growth
    assert (growth.seeds, growth.datasets, growth.configurations) == ((5,), ("more",), ("small",))


# --- code ---------------------------------------------------------------------------------------


def test_a_larger_batch_is_added_to_weights_as_they_lie(prompts: Path) -> None:
    small = [{"name": "base", "batch_size": 1}, {"name": "two", "batch_size": 2, "vs": "base"}]
    results = begun(prompts, configurations=small)
    large = {"name": "large", "batch_size": 8, "vs": "base"}
    found = standing(results, prompts, configurations=[*small, large])
    assert not found.changes
    assert found.growth.configurations == ("large",)
    assert found.plan.weight_order == "columns"
    stated = standing(results, prompts, configurations=small, weight_order="rows")
    assert stated.changes == ("weight_order: 'columns' -> 'rows'",)


def test_a_trial_of_before_weights_had_an_order_has_them_by_rows(prompts: Path) -> None:
    small = [{"name": "base", "batch_size": 1}]
    results = begun(prompts, configurations=small, weight_order="rows")
    manifest = json.loads(results.store.read(MANIFEST))
    del manifest["plan"]["weight_order"]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    found = standing(results, prompts, configurations=small)
    assert found.is_same
    assert found.plan.weight_order == "rows"


def test_shards_that_the_spec_leaves_open_stay_as_they_were_planned(prompts: Path) -> None:
    """Earlier versions cut every dataset into eight, whatever the number of comparisons."""
    earlier = begun(prompts, datasets=dataset(prompts, shards=8))
    found = standing(earlier, prompts, datasets=dataset(prompts, shards=None))
    assert found.is_same
    assert found.plan.datasets[0].num_shards == 8
