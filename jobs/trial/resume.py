"""How a run begins: with a new trial, with what is missing of one, or with more of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.plan import Plan
from cluster.results.results import MANIFEST, SUCCESS, Results
from cluster.storage.driver_lock import DriverLock
from cluster.telemetry.logs import run_logger
from jobs.provenance.artifact_notes import artifact_notes
from jobs.provenance.code_version import Code, code_differences
from jobs.provenance.frozen_prompts import require_prompts_as_run
from jobs.provenance.history import ArtifactNote, codes, entry, record
from jobs.trial.extension import Extension, extend
from jobs.trial.manifest import git_state, with_place, write_manifest
from jobs.trial.plan_diff import Standing, Wanted, compare
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
    require_prompts_as_run(results)
    standing = compare(results, wanted)
    refuse_others(results, standing, accept_code_change)
    accept = accepting(results, wanted.code) if standing.code else None
    if standing.growth.is_nothing:
        return Beginning(standing.plan, accept)
    extension = extend(results, standing, wanted)
    for line in extension.lines:
        on_stage(line)

    def freeze(hardware: list[dict[str, Any]]) -> None:
        _write_extension(results, wanted, extension, hardware)
        if accept is not None:
            accept(hardware)

    return Beginning(extension.plan, freeze)


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
    refuse_code(results, standing.code, accept_code_change)


def refuse_code(results: Results, changes: Sequence[str], accept_code_change: bool) -> None:
    """InputError, with the differences, where other code would go on with a trial unasked."""
    if changes and not accept_code_change:
        shown = "\n  ".join(changes)
        raise InputError(
            f"holds results that other code made, which differs in:\n  {shown}\n",
            source=results.output,
            field="output",
            mend="Let `evaluate --new-run` write a trial of this code beside it, or go on with "
            "`--accept-code-change`, which its report will say; `optrial report` shows what is "
            "there",
        )


def accepting(results: Results, code: Code) -> Freeze:
    """Records, once the workers have loaded, that this code goes on with what other code began."""

    def accept(hardware: list[dict[str, Any]]) -> None:
        changes = code_changes(results, code)
        if changes:  # else another driver of this code has said so meanwhile
            record(results, entry(results, "code accepted", code=code, git=git_state()))
            log.warning(
                "code change accepted", extra={"changes": changes, "workers": len(hardware)}
            )

    return accept


def code_changes(results: Results, code: Code) -> list[str]:
    """What differs from the code that ran last."""
    return code_differences(codes(results)[-1][1], code)


def require_writable(results: Results, lock: DriverLock | None) -> None:
    """InputError where not even the driver's lock could be written, before a model is loaded."""
    if lock is None:
        raise InputError(
            "cells are to be run, and nothing can be written there",
            source=results.output,
            field="output",
            mend="Get the right to write there, or choose another output",
        )


def extended_by_others(results: Results) -> InputError:
    return InputError(
        "somebody else has just extended this trial",
        source=results.output,
        mend="Run the command again when theirs has ended",
    )


def _notes(extension: Extension) -> tuple[ArtifactNote, ...]:
    return tuple(artifact_notes(extension.plan, extension.growth.configurations))


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
        notes=wanted.notes,
        artifact_notes=_notes(extension) or None,
        look=extension.look.number if extension.look else None,
        effects_sha256=extension.effects_sha256,
    )
    if not results.extend(extension.plan, extension.prompts):
        raise extended_by_others(results)
    record(results, happened)
    # It stood for the smaller trial.
    results.store.delete(SUCCESS)
    log.info("trial extended", extra={"added": list(extension.added), "workers": len(hardware)})
