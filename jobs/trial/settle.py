"""`optrial settle`: run what the open primary verdicts need, and look again.

The extended plan, with what was decided before it, is written before anything runs; running the
same command again goes on with what is missing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from cluster.plan import Dataset, Plan, origin
from cluster.ray_session import terminated_as_interrupted
from cluster.results.results import SUCCESS, Results
from cluster.scheduling.scheduler import Outcome
from cluster.storage.driver_lock import driving
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.looks import TEST, Look
from jobs.data.prompts import PromptRow, load
from jobs.provenance.code_version import present_code
from jobs.provenance.frozen_prompts import require_prompts_as_run
from jobs.provenance.history import dataset_specs
from jobs.queries.sql import connect
from jobs.spec.trial_spec import DatasetSpec
from jobs.spec.yaml_reader import validated
from jobs.trial.allocation import Addition, addition, rows_within
from jobs.trial.evaluate import OnProgress, run_missing
from jobs.trial.extension import more_of, settled_now
from jobs.trial.resume import (
    accepting,
    code_changes,
    extended_by_others,
    refuse_code,
    require_writable,
)
from optim.errors import InputError

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """At least one of both; the smaller one counts."""

    max_rows: int | None = None
    """Completions."""
    max_device_s: float | None = None

    def rows(self, s_per_row: float | None) -> int:
        limits = [] if self.max_rows is None else [self.max_rows]
        if self.max_device_s is not None:
            limits.append(rows_within(s_per_row, self.max_device_s))
        if not limits:
            raise InputError(
                "there is no budget",
                field="--max-rows, --max-device-minutes",
                mend="Give one of them, or both",
            )
        return min(limits)


@dataclass(frozen=True)
class Settlement:
    """What was added, and what became of it."""

    added: Addition | None
    """None where nothing was open, or where an interrupted addition was finished."""
    outcome: Outcome | None
    """None where nothing was run."""


def settle(
    results: Results,
    budget: Budget,
    *,
    is_rehearsal: bool = False,
    accept_code_change: bool = False,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
    remote_worker: Any = None,
) -> Settlement:
    """Add to a trial, and run it; a rehearsal only says what it would add.

    `accept_code_change` goes on with a trial that other code ran. InputError where the trial is not
    complete, keeps no error for another look, has no use for the budget, or is other code's;
    LockedError where another driver runs it.
    """
    before = plan = results.plan()
    prompts: list[PromptRow] = []
    added = None
    if _is_complete(results, plan):
        on_stage("judging what there is")
        plan, prompts, added = _extended(results, plan, budget)
        if added is None or is_rehearsal:
            return Settlement(added, None)
    else:
        _require_cut_short(results, plan, is_rehearsal)
    code = present_code(plan)
    changes = code_changes(results, code)
    refuse_code(results, changes, accept_code_change)
    with (
        terminated_as_interrupted(),
        driving(results.store, results.output, on_stage=on_stage) as lock,
    ):
        require_writable(results, lock)
        if results.plan() != before:
            raise extended_by_others(results)
        require_prompts_as_run(results)
        if added is not None:
            _write(results, plan, prompts)
        outcome = run_missing(
            plan,
            results,
            lock=lock,
            freeze=accepting(results, code) if changes else None,
            address=address,
            on_stage=on_stage,
            on_progress=on_progress,
            remote_worker=remote_worker,
        )
    return Settlement(added, outcome)


def _require_cut_short(results: Results, plan: Plan, is_rehearsal: bool) -> None:
    """InputError where a trial that is not complete is not one of an addition to be finished."""
    if not plan.looks:
        raise InputError(
            "the trial is not complete, so nothing can be said of what it needs",
            source=results.output,
            mend="Finish it first: `optrial evaluate` with its spec",
        )
    if is_rehearsal:
        raise InputError(
            "what was added last has not run to its end, so nothing can be said of what comes next",
            source=results.output,
            field="--dry-run",
            mend="Run the command without it: it finishes that first",
        )


def _write(results: Results, plan: Plan, prompts: Sequence[PromptRow]) -> None:
    """Let the trial be the larger one from now on."""
    if not results.extend(plan, [row.as_dict() for row in prompts]):
        raise extended_by_others(results)
    results.store.delete(SUCCESS)  # it stood for the smaller trial


def _is_complete(results: Results, plan: Plan) -> bool:
    planned = {cell.key for block in plan.blocks() for cell in block.cells}
    return planned <= results.committed_keys()


def _extended(
    results: Results, plan: Plan, budget: Budget
) -> tuple[Plan, list[PromptRow], Addition | None]:
    connection = connect(results)
    try:
        found = read_findings(connection, plan, primary_only=True)
        rows = budget.rows(_seconds_per_row(connection, found))
    finally:
        connection.close()
    if found.needs and found.judgement.reserve == 0:
        raise InputError(
            "this trial's first look spent all of α, so another one would raise its error rate",
            source=results.output,
            field="analysis.reserve",
            mend="Run a new trial of more prompts, with `reserve: 0.2`",
        )
    sources = _sources(results)
    added = addition(found, {name: s.num_available() for name, s in sources.items()}, rows)
    if added is None:
        return plan, [], None
    return *_plan_with(plan, found, added, sources), added


def _seconds_per_row(connection: duckdb.DuckDBPyConnection, found: Findings) -> float | None:
    """Engine time of a completion, over the configurations that have something open."""
    names = {name for name, _ in found.needs}
    names |= {found.of(name).comparison.vs for name in names}
    row = connection.execute(
        "SELECT sum(wall_s) / sum(rows) FROM cells WHERE kind = 'generations' "
        "AND configuration IN (SELECT unnest($names))",
        {"names": sorted(names)},
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


@dataclass(frozen=True)
class _Source:
    """Where more prompts of a dataset come from."""

    spec: DatasetSpec
    used: frozenset[str]
    """Ids of those that were run."""

    def rows(self, count: int | None) -> list[PromptRow]:
        """So many that were not run, in the order of the file; all for None.

        Draws are by hash, so that a larger draw holds the smaller one.
        """
        limit = None if count is None else len(self.used) + count
        drawn = load(self.spec.model_copy(update={"limit": limit}), _no_tokenizer)
        fresh = [row for row in drawn if row.prompt_id not in self.used and row.error is None]
        return fresh[:count]

    def num_available(self) -> int:
        """0 also where the file is gone, or where its prompts are chats."""
        try:
            return len(self.rows(None))
        except InputError:
            return 0


def _no_tokenizer() -> Any:
    raise InputError("prompts that are chats cannot be added", field="datasets")


def _sources(results: Results) -> dict[str, _Source]:
    """Datasets of which only a part was drawn, by name."""
    used: dict[str, set[str]] = {}
    for row in results.prompts().select(["dataset", "prompt_id"]).to_pylist():
        used.setdefault(origin(row["dataset"]), set()).add(row["prompt_id"])
    given = [validated(DatasetSpec, each, results.output) for each in dataset_specs(results)]
    return {
        spec.name: _Source(spec, frozenset(used.get(spec.name, ())))
        for spec in given
        if spec.task is None and spec.limit is not None
    }


def _plan_with(
    plan: Plan, found: Findings, added: Addition, sources: Mapping[str, _Source]
) -> tuple[Plan, list[PromptRow]]:
    number = len(plan.looks) + 1
    seeds = tuple(max(plan.seeds) + 1 + i for i in range(len(added.seeds)))
    datasets: list[Dataset] = []
    rows: list[PromptRow] = []
    first_row = sum(d.num_prompts for d in plan.datasets)
    for name, count in added.prompts.items():
        label = f"{name}+{number}"
        dataset, own = more_of(plan.dataset(name), sources[name].rows(count), label, first_row)
        datasets.append(dataset.model_copy(update={"arms": added.configurations}))
        rows.extend(own)
        first_row += len(own)
    look = Look(
        number=number,
        level=found.judgement.level(number),
        settled=tuple(settled_now(found, number)),
        open=added.settles + added.left_open,
        configurations=added.configurations,
        seeds=seeds,
        num_prompts=len(rows),
        num_rows=added.num_rows,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        test=TEST,
    )
    update = {
        "seeds": plan.seeds + seeds,
        "seed_arms": plan.seed_arms | dict(zip(seeds, added.seeds, strict=True)),
        "datasets": plan.datasets + tuple(datasets),
        "looks": (*plan.looks, look.model_dump(mode="json")),
    }
    return plan.model_copy(update=update), rows
