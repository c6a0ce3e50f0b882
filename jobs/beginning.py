"""How a run begins: with a new trial, with what is missing of one, or with more of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.driver_lock import DriverLock
from cluster.logs import run_logger
from cluster.plan import Plan
from cluster.results import MANIFEST, SUCCESS, Results
from jobs.extension import Extension, extend
from jobs.history import entry, record
from jobs.identity import Standing, Wanted, compare
from jobs.manifest import git_state, with_place, write_manifest
from optim.errors import InputError

OnStage = Callable[[str], None]
Freeze = Callable[[list[dict[str, Any]]], None]
"""Called with the workers' hardware once they have loaded the model, before anything runs: writes
what makes the results a trial's, or a larger trial's."""

log = run_logger("driver")


@dataclass(frozen=True)
class Beginning:
    """What is to be run, and what is written before it is."""

    plan: Plan
    freeze: Freeze | None


def await_manifest(results: Results, lock: DriverLock, on_stage: OnStage) -> None:
    """Until whoever began a new trial has said what it is, or has ended."""
    if lock.is_held or results.store.exists(MANIFEST):
        return
    on_stage("waiting for the other driver to begin")
    while not (lock.is_held or results.store.exists(MANIFEST)):
        time.sleep(0.5)


def begin(
    results: Results, wanted: Wanted, accept_code_change: bool, on_stage: OnStage
) -> Beginning:
    """What there is to be run; InputError where another trial is there."""
    if not results.store.exists(MANIFEST):
        return Beginning(wanted.plan, partial(write_manifest, results, wanted))
    standing = compare(results, wanted)
    refuse_others(results, standing, accept_code_change)
    if standing.code:
        happened = entry(results, "code accepted", code=wanted.code, git=git_state())
        record(results, happened)
        log.warning("code change accepted", extra={"changes": list(standing.code)})
    if standing.growth.is_nothing:
        return Beginning(standing.plan, None)
    extension = extend(results, standing, wanted)
    for line in extension.lines:
        on_stage(line)
    return Beginning(extension.plan, partial(_write_extension, results, wanted, extension))


def refuse_others(results: Results, standing: Standing, accept_code_change: bool) -> None:
    """InputError, with the differences, where a spec is another trial or its code is other code."""
    if standing.changes:
        shown = "\n  ".join((*standing.changes[:20], *standing.code[:5]))
        raise InputError(
            f"holds the results of another trial, which differs in:\n  {shown}\n",
            source=results.output,
            field="output",
            mend="Choose another output, let `--new-run` write this trial beside it, or give back "
            "the spec that it was made with",
        )
    if standing.code and not accept_code_change:
        shown = "\n  ".join(standing.code)
        raise InputError(
            f"holds results that other code made, which differs in:\n  {shown}\n",
            source=results.output,
            field="output",
            mend="Let `--new-run` write a trial of this code beside it, or go on in it with "
            "`--accept-code-change`, which its report will say; `optrial report` shows what is "
            "there",
        )


def _write_extension(
    results: Results, wanted: Wanted, extension: Extension, hardware: list[dict[str, Any]]
) -> None:
    """Let the trial be the larger one from now on."""
    grown = {*extension.growth.prompts, *extension.growth.datasets}
    happened = entry(
        results,
        "extended",
        added=extension.added,
        configurations=extension.growth.configurations,
        datasets=tuple(with_place(d) for d in wanted.spec.datasets if d.name in grown),
        look=extension.look.number if extension.look else None,
        effects_sha256=extension.effects_sha256,
    )
    if not results.extend(extension.plan, extension.prompts):
        raise InputError(
            "somebody else has just extended this trial",
            source=results.output,
            mend="Run the command again when theirs has ended",
        )
    record(results, happened)
    # It stood for the smaller trial.
    results.store.delete(SUCCESS)
    log.info("trial extended", extra={"added": list(extension.added), "workers": len(hardware)})
