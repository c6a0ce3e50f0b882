"""A resumed run runs the prompts that its trial was planned with, or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from task_trials import spec_of, write_task
from test_extension import Ran, Trial

import optim.model
from cluster.results.files import encode_table
from cluster.results.results import MANIFEST, PROMPTS_FILE, Results, write_prompts
from jobs.provenance.frozen_prompts import require_prompts_as_run
from jobs.trial import evaluate as evaluating
from jobs.trial.planning import make_plan
from optim.errors import InputError


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    monkeypatch.setattr(evaluating, "_run", Ran())
    return Trial(tmp_path)


def change(results: Results, name: str, **values: Any) -> None:
    """Write a file of prompts anew, whole and with right checksums, with a row changed."""
    table = results.prompts_in(name)
    rows = table.to_pylist()
    rows[1] |= values
    made = table.schema.empty_table().from_pylist(rows, schema=table.schema)
    results.store.replace(name, encode_table(made))


def refused(results: Results, name: str, dataset: str) -> None:
    with pytest.raises(InputError, match=f"rows of `{re.escape(dataset)}`") as raised:
        require_prompts_as_run(results)
    assert raised.value.source == results.store.path(name)
    assert raised.value.mend is not None


def test_other_rows_are_refused_by_a_resumed_run(trial: Trial) -> None:
    results = trial.run()
    trial.run()
    change(results, PROMPTS_FILE, prompt="another question")
    refused(results, PROMPTS_FILE, "qa")
    with pytest.raises(InputError, match="not the prompts that the trial was planned with"):
        trial.run()


def test_prompts_that_were_added_are_looked_at_too(trial: Trial) -> None:
    results = trial.run()
    trial.run(datasets=trial.dataset(limit=40))
    trial.run(datasets=trial.dataset(limit=40))
    _, added = results.prompt_files()
    change(results, added, target="another target")
    refused(results, added, "qa+1")


def test_rows_that_are_absent_or_too_many_are_refused(trial: Trial) -> None:
    results = trial.run()
    rows = results.prompts().to_pylist()
    write_prompts(results.store, [*rows, rows[0] | {"dataset": "unknown"}])
    refused(results, PROMPTS_FILE, "unknown")
    write_prompts(results.store, rows[:-1])
    refused(results, PROMPTS_FILE, "qa")
    write_prompts(results.store, [])
    refused(results, PROMPTS_FILE, "qa")


def test_tasks_hold_by_how_they_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    documents = [{"q": f"{n} plus {n} is", "a": f" {2 * n}"} for n in range(4)]
    tasks = write_task(
        tmp_path / "tasks", documents, output_type="generate_until", doc_to_text="{{q}}",
        doc_to_target="{{a}}", generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
    )  # fmt: skip
    spec = spec_of("demo", tmp_path / "out", {"task": "own", "include_path": str(tasks)})
    plan, rows = make_plan(spec, "spec")
    assert plan.datasets[0].generation is not None
    results = Results(plan.output)
    write_prompts(results.store, rows)
    results.store.create(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    require_prompts_as_run(results)
    change(results, PROMPTS_FILE, prompt="another question")
    refused(results, PROMPTS_FILE, plan.datasets[0].name)
