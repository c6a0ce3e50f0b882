"""By which code a trial was made, and what becomes of it when the code is another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from synthetic_runs import Ran
from test_identity import (
    _fake_model,  # noqa: F401  (of every test here)
    wanted,
    write_prompts,
)

import optim.registry
from cluster.results.results import MANIFEST, Results, part_name
from cluster.results.verification import faults_of
from jobs.provenance import code_version as code_identity
from jobs.provenance.code_version import Code, code_differences, decisive_sources, present_code
from jobs.provenance.history import code_note, codes, entries
from jobs.report.report_data import report_data
from jobs.trial import evaluate as evaluating
from jobs.trial.evaluate import evaluate
from optim.errors import InputError


class Cached(BaseModel, extra="allow"):
    stage: str = "cache"

    @property
    def places(self) -> frozenset[str]:
        return frozenset()

    def content(self) -> str:
        return ""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "qa.jsonl", 12)


def other_code(monkeypatch: pytest.MonkeyPatch, name: str = "cluster/engine/engine.py") -> None:
    """As if a source file had been edited since."""
    known = dict(code_identity._own_files())
    assert name in known
    monkeypatch.setattr(
        code_identity, "_own_files", lambda: tuple((known | {name: "edited"}).items())
    )


def test_code_is_all_that_makes_outputs_and_nothing_that_moves_them(prompts: Path) -> None:
    names = {name for name, _ in decisive_sources()}
    made = {
        "cluster/engine/engine.py",
        "cluster/engine/sampling.py",
        "cluster/engine/batch.py",
        "cluster/worker/loaded_configuration.py",
        "cluster/worker/worker.py",
        "cluster/worker/rows.py",
        "optim/cache/slot_cache.py",
        "optim/model.py",
        "optim/larosa/kernels/sparse_gemv.c",
        "optim/vattention/slot_cache.py",
    }
    moves = {
        "cluster/scheduling/scheduler.py",
        "cluster/results/results.py",
        "cluster/storage/open_store.py",
        "cluster/telemetry/logs.py",
        "cluster/telemetry/ray_metrics.py",
        "cluster/storage/driver_lock.py",
        "cluster/telemetry/progress.py",
    }
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
        file = tmp_path / f"{name}.py"
        file.write_text(f"# {name}")
        sources[f"cluster/engine/{name}.py"] = file
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
    assert code_differences(before, after) == ["the code: cluster/engine/engine.py"]


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
    names = r"other code made(.|\n)*cluster/engine/engine\.py"
    with pytest.raises(InputError, match=names) as caught:
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
    assert "cluster/engine/engine.py" in note
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
    monkeypatch.setattr("jobs.trial.planning.version", lambda name: "99")
    monkeypatch.setattr("jobs.provenance.code_version.version", lambda name: "99")
    with pytest.raises(InputError, match=r"the version of Optrial: \S+ -> 99"):
        run_it(prompts)
    run_it(prompts, options={"accept_code_change": True})
    assert ran.cells[-1] == []
    assert list(faults_of(results)) == []


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
