"""More of a trial through `evaluate`: only what is new is run, and a look is counted as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import Run
from synthetic_runs import Ran
from test_verdicts import findings

import optim.model
from cluster.plan import origin
from cluster.results.results import SUCCESS, Results, part_name
from cluster.results.verification import faults_of
from jobs.analysis.tables import write_tables
from jobs.provenance.history import dataset_specs, entries
from jobs.queries.sql import connect
from jobs.report.report_data import report_data
from jobs.spec.analysis_plan import Judgement
from jobs.spec.trial_spec import TrialSpec
from jobs.trial import evaluate as evaluating
from jobs.trial import settle as settling
from jobs.trial.evaluate import evaluate
from jobs.trial.settle import Budget, settle
from optim.errors import InputError

PLENTY = Budget(max_rows=10**9)


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    made = Ran()
    monkeypatch.setattr(evaluating, "_run", made)
    return made


class Trial:
    """A spec that changes, and the stages that its runs say."""

    def __init__(self, folder: Path) -> None:
        self.prompts = folder / "qa.jsonl"
        self.said: list[str] = []
        self.spec: dict[str, Any] = {
            "model": "demo",
            "datasets": [{"path": str(self.prompts), "limit": 24}],
            "configurations": [
                {"name": "baseline"},
                {"name": "fast", "batch_size": 4, "vs": "baseline"},
                {"name": "short", "batch_size": 2, "vs": "baseline"},
            ],
            "seeds": 2,
            "baseline_check": False,
            "analysis": {"primary": ["completion_tokens"]},
            "output": str(folder / "out"),
        }
        self.write_prompts(60)

    def write_prompts(self, count: int) -> None:
        rows = ({"id": f"p{n}", "prompt": f"q {n}", "target": "t"} for n in range(count))
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def dataset(self, **changes: Any) -> list[dict[str, Any]]:
        return [{"path": str(self.prompts), "limit": 24} | changes]

    def run(self, **changes: Any) -> Results:
        self.said = []
        spec = TrialSpec.model_validate(self.spec | changes)
        return evaluate(spec, on_stage=self.said.append)[0]

    @property
    def heard(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def counted(results: Results) -> dict[str, int]:
    connection = connect(results)
    try:
        rows = connection.execute(
            "SELECT configuration, count(DISTINCT (dataset, prompt_id, seed)) FROM generations "
            "GROUP BY configuration"
        ).fetchall()
        [same] = connection.execute(
            "SELECT count(*) = count(DISTINCT (configuration, split_part(dataset, '+', 1), "
            "prompt_id, seed)) FROM generations"
        ).fetchall()
    finally:
        connection.close()
    assert same == (True,), "a row is there twice"
    return {str(name): int(count) for name, count in rows}


def test_more_seeds_run_alone_and_count_as_a_look(trial: Trial, ran: Ran) -> None:
    results = trial.run()
    before = findings(results)
    verdict = before.of("short").verdicts["completion_tokens"]
    assert verdict.word == "lower"
    assert before.of("fast").verdicts["completion_tokens"].is_open
    stamps = {p: p.stat().st_mtime_ns for p in Path(results.output).rglob("part-*")}

    trial.run(seeds=3)
    assert {cell.seed for cell in ran.cells[1]} == {2}
    assert len(ran.cells[1]) == 3 * results.plan().datasets[0].num_shards
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert list(faults_of(results)) == []
    assert counted(results) == {"baseline": 72, "fast": 72, "short": 72}
    [look] = findings(results).looks
    assert (look.number, look.level) == (1, pytest.approx(0.04))
    assert look.seeds == (2,)
    assert look.num_rows == 3 * 24
    kept = findings(results).of("short").verdicts["completion_tokens"]
    assert (kept.word, kept.p, kept.look) == (verdict.word, verdict.p, 1)
    assert "more seed (2)" in trial.heard
    assert "counts as look 1" in trial.heard
    assert "judged at 0.8 %" in trial.heard
    data = report_data(results)
    assert data["level"] == pytest.approx(Judgement().level(2))

    trial.run(seeds=3)
    assert ran.cells[2] == []
    assert len(results.extensions()) == 1
    with pytest.raises(InputError, match=r"seeds: \[0, 1, 2\] -> \[0, 1\]"):
        trial.run()


def test_more_prompts_of_a_larger_draw(trial: Trial, ran: Ran) -> None:
    results = trial.run()
    trial.run(datasets=trial.dataset(limit=40))
    assert {cell.dataset for cell in ran.cells[1]} == {"qa+1"}
    assert list(faults_of(results)) == []
    assert counted(results)["fast"] == 40 * 2
    assert len(results.prompts()) == 40
    assert len(set(results.prompts()["prompt_id"].to_pylist())) == 40
    unit = findings(results).of("fast").comparison.effect("completion_tokens")
    assert unit is not None
    assert unit.num_units == 40
    [spec] = dataset_specs(results)
    assert spec["limit"] == 40, "`settle` draws what is more than these"
    trial.run(datasets=trial.dataset(limit=40))
    assert ran.cells[2] == []
    trial.run(datasets=trial.dataset(limit=44))
    assert {cell.dataset for cell in ran.cells[3]} == {"qa+2"}
    assert [look.number for look in findings(results).looks] == [1, 2]


def test_rows_that_are_appended_to_a_file(trial: Trial, ran: Ran) -> None:
    trial.write_prompts(24)
    whole = [{"path": str(trial.prompts)}]
    results = trial.run(datasets=whole)
    trial.write_prompts(30)
    trial.run(datasets=whole)
    assert "6 more prompts of qa" in trial.heard
    assert counted(results)["short"] == 30 * 2
    assert list(faults_of(results)) == []


def test_nobody_has_looked_at_what_was_cut_short(trial: Trial, ran: Ran) -> None:
    ran.num_at_most = 10
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    ran.num_at_most = 10**9
    results = trial.run(seeds=3, datasets=trial.dataset(limit=30))
    assert findings(results).looks == ()
    assert "no look is counted" in trial.heard
    assert report_data(results)["level"] == pytest.approx(0.04)
    assert {d.name for d in results.plan().datasets} == {"qa", "qa+0"}
    assert counted(results) == dict.fromkeys(("baseline", "fast", "short"), 90)


def test_a_report_of_what_was_cut_short_is_a_look(trial: Trial, ran: Ran) -> None:
    ran.num_at_most = 40
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    results = Results(trial.spec["output"])
    write_tables(results)  # as every report does
    ran.num_at_most = 5
    with pytest.raises(KeyboardInterrupt):
        trial.run(seeds=3)
    assert [look["number"] for look in results.plan().looks] == [1]
    ran.num_at_most = 10**9
    trial.run(seeds=4)
    assert [look["number"] for look in results.plan().looks] == [1], "nobody has looked since"
    assert [happened.look for happened in entries(results)] == [1, None]


def test_more_configurations_and_datasets_change_the_family(
    trial: Trial, ran: Ran, tmp_path: Path
) -> None:
    results = trial.run()
    assert results.store.exists(SUCCESS)
    arms = [*trial.spec["configurations"], {"name": "new", "batch_size": 1, "vs": "baseline"}]
    trial.run(configurations=arms)
    assert {cell.configuration for cell in ran.cells[1]} == {"new"}
    assert "family of verdicts" in trial.heard
    found = findings(results)
    assert [look.number for look in found.looks] == [1]
    assert found.of("short").verdicts["completion_tokens"].look == 1
    assert found.of("new").verdicts["completion_tokens"].look is None
    data = report_data(results)
    assert any("Added later: new" in note for note in data["notes"])
    second = tmp_path / "second.jsonl"
    second.write_text("".join(json.dumps({"id": f"s{i}", "prompt": f"s {i}"}) + "\n"
                              for i in range(16)))  # fmt: skip
    trial.run(configurations=arms, datasets=[{"path": str(second)}, *trial.dataset()])
    assert {cell.dataset for cell in ran.cells[2]} == {"second"}
    assert list(faults_of(results)) == []
    assert len(dataset_specs(results)) == 2
    trial.run(configurations=arms, datasets=[{"path": str(second)}, *trial.dataset()])
    assert ran.cells[3] == []


def test_a_single_configuration_has_had_no_verdict(trial: Trial, ran: Ran) -> None:
    alone = [{"name": "baseline"}]
    trial.run(configurations=alone)
    results = trial.run()
    assert {cell.configuration for cell in ran.cells[1]} == {"fast", "short"}
    assert findings(results).looks == ()


def test_a_trial_that_kept_no_error_is_refused(trial: Trial, ran: Ran) -> None:
    analysis = {"primary": ["completion_tokens"], "reserve": 0.0}
    results = trial.run(analysis=analysis)
    with pytest.raises(InputError, match=r"analysis\.reserve.*--new-run"):
        trial.run(analysis=analysis, seeds=3)
    assert results.extensions() == []


def test_prompts_before_an_extension_are_those_of_the_run(trial: Trial, ran: Ran) -> None:
    """A cell that is lost after an extension is run again under the key that it had."""
    results = trial.run()
    trial.run(seeds=3, datasets=trial.dataset(limit=30))
    lost = next(b for b in results.plan().blocks() if origin(b.dataset) == "qa").cells[0]
    results.store.delete(part_name(lost))
    trial.run(seeds=3, datasets=trial.dataset(limit=30))
    assert [cell.key for cell in ran.cells[2]] == [lost.key]
    assert list(faults_of(results)) == []


def test_after_settle(trial: Trial, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `settle` added is in no spec; a spec that asks for all of it, for all, gets it."""
    datasets = trial.dataset(limit=48)
    results = trial.run(datasets=datasets)
    monkeypatch.setattr(settling, "run_missing", ran)
    done = settle(results, PLENTY)
    assert done.added is not None
    assert done.added.seeds, "seeds are the cheaper way here"
    added = len(done.added.seeds)
    assert counted(results)["short"] == 96
    trial.run(datasets=datasets)
    assert ran.cells[2] == [], "the spec is still that of this trial"
    trial.run(seeds=2 + added, datasets=datasets)
    assert {cell.configuration for cell in ran.cells[3]} == {"short"}
    assert "for all configurations what `settle` had added" in trial.heard
    assert set(counted(results).values()) == {48 * (2 + added)}
    assert [look.number for look in findings(results).looks] == [1, 2]
    assert list(faults_of(results)) == []
    with pytest.raises(InputError, match="seeds:"):
        trial.run(datasets=datasets)


def test_prompts_that_settle_added_are_drawn_all_or_not(
    trial: Trial, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = trial.run()
    plan = results.plan()
    taken = set(results.prompts()["prompt_id"].to_pylist())
    spec = TrialSpec.model_validate(trial.spec | {"datasets": trial.dataset(limit=34)})
    rows = [row for row in evaluating.make_plan(spec, "x")[1] if row["prompt_id"] not in taken]
    own = [settling.PromptRow(**row) for row in rows]
    piece, numbered = settling.more_of(plan.dataset("qa"), own, "qa+1", 24)
    piece = piece.model_copy(update={"arms": ("baseline", "fast")})
    larger = plan.model_copy(update={"datasets": (*plan.datasets, piece)})
    assert results.extend(larger, [row.as_dict() for row in numbered])
    trial.run()
    with pytest.raises(InputError, match="draw all of those, or none"):
        trial.run(datasets=trial.dataset(limit=30))
    trial.run(datasets=trial.dataset(limit=40))
    assert results.plan().dataset("qa+1").arms is None
    assert set(counted(results).values()) == {80}
    assert list(faults_of(results)) == []


@pytest.mark.usefixtures("ray_cluster")
def test_extended_end_to_end(
    run: Run, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real fingerprint of a real model
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"prompt {i}", "target": " x"} for i in range(24))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 8, "limit": 16}],
        "configurations": [{"name": "baseline", "batch_size": 2}],
        "generation": {"max_new_tokens": 4, "temperature": 0.8},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "trial.yaml"

    def go(**changes: Any) -> tuple[int, str, str]:
        path.write_text(yaml.safe_dump(spec | changes))
        return run("evaluate", path)

    assert go()[0] == 0
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part-*")}
    more = [{"path": str(prompts), "shards": 8, "limit": 20}]
    arms = [*spec["configurations"], {"name": "cached", "optimizations": ["vattention"]}]
    code, out, err = go(seeds=2, datasets=more, configurations=arms)
    assert code == 0, err
    assert "4 more prompts of prompts" in " ".join(out.split())
    results = Results(str(tmp_path / "out"))
    assert list(faults_of(results)) == []
    assert {p: p.stat().st_mtime_ns for p in parts} == parts
    table = results.read("generations").to_pylist()
    texts: dict[str, dict[Any, str]] = {}
    for row in table:
        assert row["error"] is None
        texts.setdefault(row["configuration"], {})[row["prompt_id"], row["seed"]] = row[
            "completion_text"
        ]
    assert {name: len(each) for name, each in texts.items()} == dict.fromkeys(
        ("baseline", "baseline.repeat", "cached"), 40
    )
    assert texts["baseline"] == texts["baseline.repeat"]
    code, out, _ = go(seeds=2, datasets=more, configurations=arms)
    assert code == 0
    assert "Nothing to do" in out
    assert go()[0] == 2
