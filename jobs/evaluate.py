"""The main job: spec -> plan -> prompts frozen -> scheduler -> summary and effects.

Nothing is written before the workers have loaded the model, so that what cannot run leaves nothing
behind. Running the same spec again resumes: committed cells are not run twice.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cluster.plan import Plan
from cluster.progress import Progress, ProgressFile
from cluster.results import MANIFEST, PROMPTS_FILE, SUCCESS, Results, write_prompts
from cluster.scheduler import Outcome, Scheduler, preflight
from cluster.storage import LocalStore
from jobs.planning import describe_difference, make_plan
from jobs.ray_session import ray_session, terminated_as_interrupted
from jobs.spec import DatasetSpec, TrialSpec, read_spec
from jobs.tables import write_tables
from optim.errors import InputError

PACKAGES = ("optrial", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow")

OnProgress = Callable[[Progress], None]
OnStage = Callable[[str], None]


def evaluate(
    spec: TrialSpec | Path | str,
    *,
    output: str | None = None,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    remote_worker: Any = None,
) -> tuple[Results, Outcome]:
    """Run a trial, or what is missing of it; returns its results and what the run came to.

    `spec` is one, or the YAML file of one; `output` overrides the spec's; `address` is a running
    Ray cluster's, else RAY_ADDRESS, else Ray is started on this machine. Raises InputError for
    what a person can mend.
    """
    on_stage("reading the spec and the prompts")
    source = "the command line" if isinstance(spec, TrialSpec) else str(spec)
    spec = spec if isinstance(spec, TrialSpec) else read_spec(spec)
    if output is not None:
        spec = spec.model_copy(update={"output": output})
    plan, prompts = make_plan(spec, source)
    results = Results(plan.output)
    is_new = _check_output(results, plan)
    freeze = partial(_freeze, results, plan, prompts, spec) if is_new else None
    outcome = run_missing(
        plan,
        results,
        address=address,
        on_stage=on_stage,
        on_progress=on_progress,
        remote_worker=remote_worker,
        freeze=freeze,
    )
    return results, outcome


def run_missing(
    plan: Plan,
    results: Results,
    *,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    remote_worker: Any = None,
    freeze: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Outcome:
    """Run the cells of a plan that are not committed, then bring the tables up to date.

    `freeze` is called with the workers' hardware once they have loaded the model, before anything
    runs, where the output is new.
    """
    worker = {} if remote_worker is None else {"remote_worker": remote_worker}
    progress_file = ProgressFile(results.store)

    def note(progress: Progress) -> None:
        on_progress(progress)
        progress_file(progress)

    scheduler = Scheduler(plan, results, on_progress=note, **worker)
    if scheduler.num_pending and freeze is None:
        done = scheduler.outcome.cells_done
        on_stage(f"resuming: {done} of {scheduler.outcome.cells_total} cells are there already")
    if scheduler.num_pending:
        with ray_session(address, on_stage), terminated_as_interrupted():
            on_stage(preflight(plan))
            on_stage(f"loading the model ({plan.model.path})")
            hardware = scheduler.start()
            if freeze is not None:
                freeze(hardware)
            on_stage("running")
            try:
                scheduler.run()
            finally:
                progress_file(scheduler.progress(), now=True)
    return _finish(results, scheduler.outcome, on_stage)


def _finish(results: Results, outcome: Outcome, on_stage: OnStage) -> Outcome:
    counts = {"cells": outcome.cells_total}
    if outcome.cells_done and not (outcome.is_complete and _is_marked(results, counts)):
        on_stage("summarising")
        write_tables(results)
        if outcome.is_complete:
            mark = json.dumps({**counts, "completed_at": _now()})
            results.store.replace(SUCCESS, mark.encode())
    return outcome


def _is_marked(results: Results, counts: dict[str, int]) -> bool:
    """Whether a run that came to at least as much has finished here before."""
    if not results.store.exists(SUCCESS):
        return False
    return bool(json.loads(results.store.read(SUCCESS)).get("cells", 0) >= counts["cells"])


def _check_output(results: Results, plan: Plan) -> bool:
    """True for a new output; raises where it is another trial's, not empty, or not writable."""
    if results.store.exists(MANIFEST):
        differences = describe_difference(results.manifest()["plan"], plan.model_dump(mode="json"))
        if differences:
            shown = "\n  ".join(differences[:20])
            raise InputError(
                f"holds the results of another trial, which differs in:\n  {shown}\n",
                source=plan.output,
                field="output",
                mend="Choose another output, or give back the spec that it was made with",
            )
        return False
    if isinstance(results.store, LocalStore):
        _check_folder(results.store.root)
    return True


def _check_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "exists and is not the results of a trial",
            source=str(folder),
            field="output",
            mend="Choose a new or empty folder",
        )
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot be written: {nearest} does not admit it",
            source=str(folder),
            field="output",
            mend="Choose a folder that you may write to",
        )


def _freeze(
    results: Results,
    plan: Plan,
    prompts: list[dict[str, Any]],
    spec: TrialSpec,
    hardware: list[dict[str, Any]],
) -> None:
    """Write the prompts as run, then the manifest, which makes the folder a trial's."""
    manifest = {
        "plan": plan.model_dump(mode="json"),
        "prompts": PROMPTS_FILE,
        "datasets": [_with_place(dataset) for dataset in spec.datasets],
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "workers": hardware,
        },
        "git": git_state(),
        "created_at": _now(),
    }
    try:
        write_prompts(results.store, prompts)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        results.store.create(MANIFEST, text.encode())
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            source=plan.output,
            field="output",
            mend="Choose a place that you may write to",
        ) from error


def _with_place(dataset: DatasetSpec) -> dict[str, Any]:
    """The dataset's spec, from which more prompts can be drawn wherever one stands."""
    shown = dataset.model_dump(mode="json", exclude_unset=True)
    path = shown.get("path")
    if path is not None and "://" not in path and Path(path).expanduser().exists():
        shown["path"] = str(Path(path).expanduser().absolute())
    return {**shown, "name": dataset.name}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_state() -> dict[str, Any] | None:
    """Commit of the code and whether it has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(here, "status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
