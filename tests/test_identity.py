"""What a spec is to the trial that is there: the same, more of it, another; and by which code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from synthetic_runs import Ran

import optim.model
import optim.registry
from cluster.results import MANIFEST, Results, part_name
from jobs import code_identity
from jobs import evaluate as evaluating
from jobs.code_identity import Code, code_differences, decisive_sources, present_code
from jobs.evaluate import evaluate
from jobs.history import code_note, codes, entries
from jobs.identity import Standing, Wanted, compare
from jobs.manifest import write_manifest
from jobs.planning import make_plan
from jobs.report_data import report_data
from jobs.spec import TrialSpec
from optim.errors import InputError


class Cached(BaseModel, extra="allow"):
    stage: str = "cache"

    @property
    def places(self) -> frozenset[str]:
        return frozenset()

    def content(self) -> str:
        return ""


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


def other_code(monkeypatch: pytest.MonkeyPatch, name: str = "cluster/engine.py") -> None:
    """As if a source file had been edited since."""
    known = dict(code_identity._own_files())
    assert name in known
    monkeypatch.setattr(
        code_identity, "_own_files", lambda: tuple((known | {name: "edited"}).items())
    )


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


def test_code_is_all_that_makes_outputs_and_nothing_that_moves_them(prompts: Path) -> None:
    names = {name for name, _ in decisive_sources()}
    made = {"cluster/engine.py", "cluster/sampling.py", "cluster/batch.py", "cluster/arm.py",
            "cluster/worker.py", "cluster/rows.py", "optim/cache.py", "optim/model.py",
            "optim/larosa/kernels/sparse_gemv.c", "optim/vattention/slots.py"}  # fmt: skip
    moves = {"cluster/scheduler.py", "cluster/results.py", "cluster/storage.py", "cluster/logs.py",
             "cluster/run_metrics.py", "cluster/driver_lock.py", "cluster/progress.py"}  # fmt: skip
    assert made <= names
    assert not moves & names
    code = wanted(prompts).code
    assert set(code.files) == names
    assert all(path.is_file() for _, path in decisive_sources())
    assert Code.model_validate_json(code.model_dump_json()) == code


def test_an_edited_source_file_is_another_code(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {}
    for name in ("engine", "batch"):
        sources[f"cluster/{name}.py"] = tmp_path / f"{name}.py"
        sources[f"cluster/{name}.py"].write_text(f"# {name}")
    monkeypatch.setattr(code_identity, "decisive_sources", lambda: iter(sources.items()))
    plan = wanted(prompts).plan
    found = []
    try:
        for text in ("# engine", "# another engine"):
            (tmp_path / "engine.py").write_text(text)
            code_identity._own_files.cache_clear()
            found.append(present_code(plan))
    finally:
        code_identity._own_files.cache_clear()
    before, after = found
    assert before.digest != after.digest
    assert code_differences(before, after) == ["the code: cluster/engine.py"]


def test_a_third_partys_optimisation_counts(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def optimization(name: str, settings: Mapping[str, Any]) -> object:
        return Cached(**settings)

    arms = [{"name": "base"}, {"name": "other", "optimizations": ["mine"], "vs": "base"}]
    monkeypatch.setattr(optim.registry, "optimization", optimization)
    code = wanted(prompts, configurations=arms).code
    assert __name__ in code.files


def test_libraries_that_compute_count(prompts: Path) -> None:
    code = wanted(prompts).code
    old = code.model_copy(update={"packages": code.packages | {"torch": "1.0"}})
    [line] = code_differences(old, code)
    assert line == f"the version of torch: 1.0 -> {code.packages['torch']}"
    assert code_differences(None, code) == ["the code: that which made the rows was not recorded"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    made = Ran()
    monkeypatch.setattr(evaluating, "_run", made)
    return made


def run_it(prompts: Path, *, options: Mapping[str, Any] | None = None, **changes: Any) -> Results:
    return evaluate(wanted(prompts, **changes).spec, **(options or {}))[0]


def test_other_code_is_refused_and_nothing_is_touched(
    prompts: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run_it(prompts)
    before = {p: p.stat().st_mtime_ns for p in Path(results.output).rglob("*")}
    other_code(monkeypatch)
    with pytest.raises(InputError, match=r"other code made(.|\n)*cluster/engine\.py") as caught:
        run_it(prompts)
    assert "--accept-code-change" in str(caught.value)
    assert {p: p.stat().st_mtime_ns for p in Path(results.output).rglob("*")} == before
    assert len(ran.cells) == 1


def test_code_that_was_accepted_is_in_the_report_and_asked_for_once(
    prompts: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run_it(prompts)
    first = codes(results)
    lost = [cell for block in results.plan().blocks() for cell in block.cells][:3]
    for cell in lost:
        results.store.delete(part_name(cell))
    assert code_note(results) is None
    other_code(monkeypatch)
    run_it(prompts, options={"accept_code_change": True})
    assert len(ran.cells[1]) == 3
    [happened] = entries(results)
    assert happened.event == "code accepted"
    assert happened.code is not None
    total = len(results.committed_keys())
    assert happened.cells_committed == total - 3
    note = code_note(results)
    assert note is not None
    assert f"{total - 3} cells by {first[0][1].name}, then 3 cells by {happened.code.name}" in note  # type: ignore[union-attr]
    assert "cluster/engine.py" in note
    data = report_data(results)
    assert note in data["notes"]
    assert [each["cells"] for each in data["code"]] == [total - 3, 3]
    keys = results.committed_keys()
    run_it(prompts)
    assert results.committed_keys() == keys, "the keys are those of before"
    assert len(entries(results)) == 1


def test_a_trial_that_did_not_record_its_code_is_refused(prompts: Path, ran: Ran) -> None:
    results = run_it(prompts)
    manifest = results.manifest()
    del manifest["code"]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(InputError, match="was not recorded"):
        run_it(prompts)
    run_it(prompts, options={"accept_code_change": True})
    assert "code that was not recorded" in str(code_note(results))


def test_another_version_is_other_code_and_keeps_the_cells(
    prompts: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run_it(prompts)
    monkeypatch.setattr("jobs.planning.version", lambda name: "99")
    monkeypatch.setattr("jobs.code_identity.version", lambda name: "99")
    with pytest.raises(InputError, match=r"the version of Optrial: \S+ -> 99"):
        run_it(prompts)
    run_it(prompts, options={"accept_code_change": True})
    assert ran.cells[-1] == []
    assert list(results.verify()) == []


# --- another trial beside it --------------------------------------------------------------------


def test_a_new_run_goes_beside_and_is_found_again(prompts: Path, ran: Ran, tmp_path: Path) -> None:
    old = run_it(prompts)
    before = {p: p.stat().st_mtime_ns for p in Path(old.output).rglob("*")}
    said: list[str] = []
    options = {"new_run": True, "on_stage": said.append}
    warm = {"generation": {"temperature": 0.5}}
    new = run_it(prompts, options=options, **warm)
    assert new.output == f"{old.output}-2"
    assert any(f"{old.output}-2" in line for line in said)
    assert {p: p.stat().st_mtime_ns for p in Path(old.output).rglob("*")} == before
    again = run_it(prompts, options=options, **warm)
    assert again.output == new.output
    assert ran.cells[-1] == []
    third = run_it(prompts, options=options, generation={"temperature": 0.7})
    assert third.output == f"{old.output}-3"
    same = run_it(prompts, options=options)
    assert same.output == old.output, "nothing is changed, so nothing new is needed"
    assert new.plan().generation.temperature == 0.5


def test_a_new_run_of_other_code(prompts: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    old = run_it(prompts)
    other_code(monkeypatch)
    new = run_it(prompts, options={"new_run": True})
    assert new.output == f"{old.output}-2"
    assert code_note(new) is None


def test_a_refused_new_trial_leaves_nothing(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise InputError("the model cannot be loaded")

    monkeypatch.setattr(evaluating, "_run", refuses)
    with pytest.raises(InputError, match="cannot be loaded"):
        run_it(prompts, output=str(tmp_path / "deep" / "er"))
    assert not (tmp_path / "deep").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        run_it(prompts, output=str(tmp_path / "there"))
    assert list((tmp_path / "there").iterdir()) == []
