"""The main job: spec -> plan -> prompts frozen -> scheduler -> summary and effects.

Nothing is written before the workers have loaded the model, so that what cannot run leaves nothing
behind. Running the same spec again resumes: committed cells are not run twice. A spec that asks for
more of the trial extends it (`jobs.trial.extension`); one of another trial is refused
(`jobs.trial.plan_diff`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cluster.block_index import Layout
from cluster.conformance.architecture import require_source
from cluster.plan import Plan
from cluster.ray_session import ray_session, terminated_as_interrupted
from cluster.results.results import MANIFEST, SUCCESS, Results
from cluster.scheduling.preflight import crowded
from cluster.scheduling.scheduler import Outcome, Scheduler, preflight
from cluster.storage.driver_lock import DriverLock, driving
from cluster.telemetry.logs import attach_run_log, run_logger
from cluster.telemetry.progress import Progress, ProgressFile
from cluster.telemetry.ray_metrics import RunMetrics
from jobs.analysis.tables import write_tables
from jobs.data.prompt_notes import prompt_notes
from jobs.provenance.code_version import present_code
from jobs.spec.trial_spec import TrialSpec, read_spec
from jobs.trial.manifest import PACKAGES, git_state, now, processor
from jobs.trial.output_folder import beside, left_as_found, require_place
from jobs.trial.plan_diff import Wanted, compare
from jobs.trial.planning import make_plan
from jobs.trial.resume import Freeze, await_manifest, begin, refuse_others, require_writable
from optim.errors import InputError

__all__ = ["PACKAGES", "evaluate", "git_state", "processor", "run_missing"]

OnProgress = Callable[[Progress], None]
OnStage = Callable[[str], None]

log = run_logger("driver")


class _RunLog(Protocol):
    def begin(self) -> None: ...


def evaluate(
    spec: TrialSpec | Path | str,
    *,
    output: str | None = None,
    address: str | None = None,
    join: bool = False,
    new_run: bool = False,
    accept_code_change: bool = False,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    remote_worker: Any = None,
) -> tuple[Results, Outcome]:
    """Run a trial, or what is missing of it; returns its results and what the run came to.

    `spec` is one, or the YAML file of one; `output` overrides the spec's; `address` is a running
    Ray cluster's, else RAY_ADDRESS, else Ray is started on this machine. `join` runs along with
    another driver, `new_run` writes what differs from the trial that is there beside it, and
    `accept_code_change` goes on with a trial that other code began. Raises InputError for what a
    person can mend, and LockedError where another driver runs the trial.
    """
    on_stage("reading the spec and the prompts")
    source = "the command line" if isinstance(spec, TrialSpec) else str(spec)
    spec = spec if isinstance(spec, TrialSpec) else read_spec(spec)
    if output is not None:
        spec = spec.model_copy(update={"output": output})
    plan, prompts = make_plan(spec, source)
    _say_author_settings(plan, spec.generation.from_model, on_stage)
    wanted = Wanted(spec, plan, prompts, present_code(plan), _prompt_notes(plan, prompts))
    for note in wanted.notes:
        on_stage(note)
    if new_run:
        wanted = beside(wanted, on_stage)
    results = Results(wanted.plan.output)
    require_place(results)
    if results.store.exists(MANIFEST):
        # Before anything is touched; and once more when nobody else can.
        refuse_others(results, compare(results, wanted), accept_code_change)
    with (
        terminated_as_interrupted(),
        left_as_found(results),
        driving(results.store, results.output, joins=join, on_stage=on_stage) as lock,
        attach_run_log(results.store, plan.run_id, held=True) as run_log,
    ):
        if join and lock is not None:
            await_manifest(results, lock, on_stage)
        begun = begin(results, wanted, accept_code_change, on_stage)
        outcome = _run(
            begun.plan,
            results,
            address=address,
            joins=join,
            on_stage=on_stage,
            on_progress=on_progress,
            remote_worker=remote_worker,
            freeze=begun.freeze,
            lock=lock,
            run_log=run_log,
        )
    return results, outcome


def _say_author_settings(plan: Plan, from_model: bool, on_stage: OnStage) -> None:
    from optim.author_settings import author_settings, said, said_taken

    settings = author_settings(plan.model.path, revision=plan.model.revision)
    generation = plan.generation.model_dump(mode="json")
    if from_model:
        on_stage(said_taken(settings, generation))
    text = said(settings, generation)
    if text is not None:
        on_stage(text)


def _prompt_notes(plan: Plan, prompts: list[dict[str, Any]]) -> tuple[str, ...]:
    from optim.model import load_tokenizer

    model = plan.model
    trust = model.trust_remote_code
    return prompt_notes(
        prompts,
        partial(load_tokenizer, model.path, revision=model.revision, trust_remote_code=trust),
    )


def run_missing(
    plan: Plan,
    results: Results,
    *,
    lock: DriverLock | None,
    freeze: Freeze | None = None,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    remote_worker: Any = None,
) -> Outcome:
    """Run the cells of a plan that are not committed, then bring the tables up to date.

    `lock` is what `cluster.storage.driver_lock.driving` gave to the caller, who extends under it as
    well; `freeze` is called before anything runs.
    """
    with attach_run_log(results.store, plan.run_id, held=True) as run_log:
        return _run(
            plan,
            results,
            address=address,
            joins=False,
            on_stage=on_stage,
            on_progress=on_progress,
            remote_worker=remote_worker,
            freeze=freeze,
            lock=lock,
            run_log=run_log,
        )


def _run(
    plan: Plan,
    results: Results,
    *,
    address: str | None,
    joins: bool,
    on_stage: OnStage,
    on_progress: OnProgress,
    remote_worker: Any,
    freeze: Freeze | None,
    lock: DriverLock | None,
    run_log: _RunLog,
) -> Outcome:
    options: dict[str, Any] = {"joins": True} if joins else {}
    if remote_worker is not None:
        options["remote_worker"] = remote_worker
    progress_file = ProgressFile(results.store)
    metrics = RunMetrics(plan.run_id)

    def note(progress: Progress) -> None:
        on_progress(progress)
        progress_file(progress)
        metrics.update(progress)
        if lock is not None and not scheduler.joins and lock.has_company():
            log.info("another driver runs along")
            scheduler.joins = True

    scheduler = Scheduler(plan, results, on_progress=note, **options)
    if scheduler.num_pending:
        on_stage("checking that the engine gives the outputs of models like this one")
        require_source(plan.model, plan.configurations)
        require_writable(results, lock)
        if results.store.exists(MANIFEST):
            done = scheduler.outcome.cells_done
            on_stage(f"resuming: {done} of {scheduler.outcome.cells_total} cells are there already")
            if freeze is None:
                run_log.begin()
        if lock is not None and lock.is_held:
            _sweep(results)
        with ray_session(address, on_stage), terminated_as_interrupted():
            try:
                _load(scheduler, plan, on_stage, freeze)
                run_log.begin()
                on_stage("running")
                _log_start(plan, scheduler)
                scheduler.run()
            except BaseException as error:
                log.warning("run cut short", extra={"reason": type(error).__name__})
                # Leaving the cluster takes its time, and whoever ends us gives us little.
                if lock is not None:
                    lock.release()
                raise
            finally:
                if results.store.exists(MANIFEST):
                    progress_file(scheduler.progress(), now=True)
                metrics.update(scheduler.progress())
        _log_end(scheduler.outcome)
    elif freeze is not None and lock is not None:
        freeze([])  # nothing is to be loaded
    if lock is None:
        return scheduler.outcome  # all of it is there, where nobody can write
    return _finish(results, scheduler.outcome, on_stage)


def _sweep(results: Results) -> None:
    try:
        num_files = results.sweep()
    except (OSError, InputError) as error:
        # Files of killed writers take room, and nothing else.
        log.warning("temporary files were not swept", extra={"reason": str(error)})
        return
    if num_files:
        log.info("temporary files swept", extra={"files": num_files})


def _load(scheduler: Scheduler, plan: Plan, on_stage: OnStage, freeze: Freeze | None) -> None:
    on_stage(preflight(plan))
    on_stage(f"loading the model ({plan.model.path})")
    scheduler.on_notice = on_stage
    hardware = scheduler.start()
    for note in crowded(plan, hardware):
        on_stage(note)
    if freeze is None:
        return
    try:
        freeze(hardware)
    except BaseException:
        scheduler.stop()
        raise


def _log_start(plan: Plan, scheduler: Scheduler) -> None:
    outcome = scheduler.outcome
    log.info(
        "run started",
        extra={
            "output": plan.output,
            "code": present_code(plan).name,
            "cells_total": outcome.cells_total,
            "cells_done": outcome.cells_done,
            "workers": plan.workers.count,
        },
    )


def _log_end(outcome: Outcome) -> None:
    level = logging.INFO if outcome.is_complete else logging.WARNING
    log.log(level, "run ended", extra=asdict(outcome))


def _finish(results: Results, outcome: Outcome, on_stage: OnStage) -> Outcome:
    is_done = outcome.is_complete and _num_marked(results) >= outcome.cells_total
    if outcome.cells_done and not is_done:
        on_stage("summarising")
        # Of what is there, also where that is only part of the trial: its report is shown now,
        # which is a look.
        write_tables(results)
        if outcome.is_complete:
            _mark(results, outcome, on_stage)
    return outcome


def _mark(results: Results, outcome: Outcome, on_stage: OnStage) -> None:
    """Write `_SUCCESS` where all of the trial is there now.

    Another driver may have made it larger since this run began, and a repair may have set parts of
    it aside.
    """
    plan = results.plan()
    sound = results.sound_keys()
    counts = [(num, missing.bit_count()) for _, num, missing in Layout(plan).missing(sound)]
    total, num_missing = sum(num for num, _ in counts), sum(missing for _, missing in counts)
    if num_missing:
        if total == outcome.cells_total:
            outcome.cells_done = total - num_missing
        why = f"{num_missing} of {total} cells are not there (any more, or yet): run it again"
        on_stage(f"the trial is not complete: {why}")
        log.warning("not marked complete", extra={"cells": total, "missing": num_missing})
        return
    mark = json.dumps({"cells": total, "completed_at": now()})
    results.store.replace(SUCCESS, mark.encode())
    if results.plan() != plan:
        # Extended at this very moment, and whoever did so may have deleted the mark before.
        results.store.delete(SUCCESS)


def _num_marked(results: Results) -> int:
    """Cells of the trial that has finished here before; 0 where none has."""
    try:
        return int(json.loads(results.store.read(SUCCESS)).get("cells", 0))
    except FileNotFoundError:
        return 0
