"""Trials of tasks without a cluster, and the same tasks by lm-eval's own model."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.plan import Plan
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.worker.worker import Worker
from jobs.spec.trial_spec import TrialSpec
from jobs.trial.planning import make_plan

EXAMPLES = Path(__file__).parents[3] / "examples"
TASKS = EXAMPLES / "tasks"


def write_task(folder: Path, documents: Sequence[dict[str, Any]], **config: Any) -> Path:
    """A task named `own` on local JSON; the folder to be named in `include_path`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "documents.jsonl").write_text(lines)
    own = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "documents.jsonl"}},
        "test_split": "test",
        **config,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    return folder


def spec_of(
    model: Path | str, output: Path, *datasets: dict[str, Any], **changes: Any
) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(model),
            "datasets": list(datasets),
            "configurations": [
                {"name": "one", "batch_size": 1},
                {"name": "four", "batch_size": 4, "vs": "one"},
            ],
            "baseline_check": False,
            "output": str(output),
            **changes,
        }
    )


def run_trial(spec: TrialSpec) -> Results:
    """Everything of a trial, by a worker in this process."""
    plan, rows = make_plan(spec, "spec")
    results = Results(plan.output)
    results.store.create(MANIFEST, json.dumps({"plan": plan.model_dump(mode="json")}).encode())
    write_prompts(results.store, rows)
    run_blocks(plan)
    return results


def run_blocks(plan: Plan) -> None:
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    for block in plan.blocks():
        worker.run(block.model_dump_json(), [cell.key for cell in block.cells])


def lm_eval_results(lm: Any, names: Sequence[str], folder: Path, **options: Any) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` finds by its own `HFLM` around a model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with silenced(), contextlib.chdir(folder):  # its data files are relative to where one is
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, device="cpu")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        found: dict[str, Any] = simple_evaluate(
            model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options
        )
    return found


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
