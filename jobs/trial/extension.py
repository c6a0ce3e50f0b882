"""More of a trial through `evaluate`: its plan with what was added, and the look that it counts as.

Data that are added after somebody saw verdicts are judged at what that look left of α, as those of
`optrial settle` are: `jobs.analysis.looks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cluster.plan import Configuration, Dataset, Plan
from cluster.results.results import Results
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.looks import TEST, Look, Settled
from jobs.analysis.verdicts import Verdict
from jobs.data.prompts import PromptRow
from jobs.formatting import plural
from jobs.provenance.history import effects_sha256, entries
from jobs.queries.sql import connect
from jobs.trial.plan_diff import Growth, Standing, Wanted
from jobs.trial.planning import dataset_fingerprint
from optim.errors import InputError

_GIVEN = frozenset({"better", "worse", "higher", "lower", "equivalent"})
"""Words that a test gave, at the cost of some of α. `exactly equal` needs none, so it is looked at
anew each time."""


@dataclass(frozen=True)
class Extension:
    """A trial with what is added to it."""

    plan: Plan
    prompts: tuple[dict[str, Any], ...]
    """Rows that come after those that there are."""
    growth: Growth
    num_rows: int
    """Completions that are added."""
    look: Look | None
    """What was decided before; None where nobody has looked since the last extension."""
    level: float
    """α of the primary verdicts from now on."""
    effects_sha256: str | None

    @property
    def added(self) -> tuple[str, ...]:
        """What is added, in words."""
        return tuple(_added(self.growth))

    @property
    def lines(self) -> tuple[str, ...]:
        """What somebody who adds to a trial has to know."""
        return tuple(_lines(self))


def extend(results: Results, standing: Standing, wanted: Wanted) -> Extension:
    """The extension that a spec asks for; nothing is written.

    InputError where the trial keeps no error for another look, and there was one.
    """
    before = results.plan()
    seen = effects_sha256(results)
    found = _judged(results, before, seen)
    number = len(before.looks) + 1
    plan, rows = _larger(standing, wanted, len(before.looks) + (found is not None))
    num_rows = _num_rows(plan) - _num_rows(before)
    look = None
    level = 0.0
    if found is not None:
        if found.judgement.reserve == 0:
            raise InputError(
                "this trial's first look spent all of α, so more data would raise its error rate",
                source=results.output,
                field="analysis.reserve",
                mend="Run all of it as a new trial (`--new-run`), with `reserve: 0.2`",
            )
        look = Look(
            number=number,
            level=found.judgement.level(number),
            settled=tuple(settled_now(found, number)),
            open=tuple(found.needs),
            configurations=tuple(c.name for c in plan.configurations),
            seeds=standing.growth.seeds,
            num_prompts=len(rows),
            num_rows=num_rows,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            test=TEST,
        )
        plan = plan.model_copy(update={"looks": (*plan.looks, look.model_dump(mode="json"))})
        level = found.judgement.level(number + 1)
    return Extension(plan, tuple(rows), standing.growth, num_rows, look, level, seen)


def _judged(results: Results, plan: Plan, seen: str | None) -> Findings | None:
    """What there is to be decided by a look, where there was one since the trial was last extended.

    There was one where all of it has run, as `evaluate` then reports, and where a report has
    written tables that are not those of the last extension.
    """
    known = [e.effects_sha256 for e in entries(results) if e.event == "extended"]
    planned = {cell.key for block in plan.blocks() for cell in block.cells}
    is_complete = planned <= results.committed_keys()
    if not is_complete and (seen is None or seen in known[-1:]):
        return None
    connection = connect(results)
    try:
        found = read_findings(connection, plan, primary_only=True)
    finally:
        connection.close()
    return found if any(judged.verdicts for judged in found.judged) else None


def _larger(standing: Standing, wanted: Wanted, look: int) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan with all that is asked for, and the rows that it needs beyond those there are."""
    growth, plan = standing.growth, standing.plan
    datasets = [_widened(d, growth) for d in plan.datasets]
    rows: list[dict[str, Any]] = []
    first_row = sum(d.num_prompts for d in plan.datasets)
    for name, fresh in growth.prompts.items():
        label = _label(name, look, {d.name for d in datasets})
        given = [PromptRow(**row) for row in fresh]
        made, own = more_of(plan.dataset(name), given, label, first_row + len(rows))
        has_targets = any(row.target is not None or row.choices for row in own)
        datasets.append(made.model_copy(update={"has_targets": has_targets}))
        rows += [row.as_dict() for row in own]
    for name in growth.datasets:
        dataset = wanted.plan.dataset(name)
        datasets.append(dataset.model_copy(update={"first_row": first_row + len(rows)}))
        rows += wanted.rows(dataset)
    arms = {s: a for s, a in plan.seed_arms.items() if s not in growth.widened_seeds}
    update = {
        "configurations": _configurations(plan, wanted.plan),
        "seeds": plan.seeds + growth.seeds,
        "seed_arms": arms,
        "datasets": tuple(datasets),
    }
    return plan.model_copy(update=update), rows


def _widened(dataset: Dataset, growth: Growth) -> Dataset:
    is_widened = dataset.name in growth.widened_datasets
    return dataset.model_copy(update={"arms": None}) if is_widened else dataset


def _label(name: str, look: int, taken: set[str]) -> str:
    """`<name>+<look>`, numbered where a look is followed by several extensions."""
    label, count = f"{name}+{look}", 1
    while label in taken:
        count += 1
        label = f"{name}+{look}.{count}"
    return label


def _configurations(plan: Plan, wanted: Plan) -> tuple[Configuration, ...]:
    """In the order of the spec; those that there were keep their fingerprints."""
    kept = {c.name: c for c in plan.configurations}
    return tuple(kept.get(c.name, c) for c in wanted.configurations)


def _num_rows(plan: Plan) -> int:
    return sum(
        cell.stop - cell.start
        for block in plan.blocks()
        for cell in block.cells
        if cell.kind == "generations"
    )


def more_of(
    dataset: Dataset, rows: Sequence[PromptRow], name: str, first_row: int
) -> tuple[Dataset, list[PromptRow]]:
    """Added prompts as a dataset of their own, with shards of the same size."""
    own = [replace(row, dataset=name, row=i) for i, row in enumerate(rows)]
    size = max(1, dataset.num_prompts // dataset.num_shards)
    made = dataset.model_copy(
        update={
            "name": name,
            "num_prompts": len(own),
            "first_row": first_row,
            "num_shards": -(-len(own) // size),
            "fingerprint": dataset_fingerprint(own),
        }
    )
    return made, own


def settled_now(found: Findings, number: int) -> list[Settled]:
    """Primary verdicts that this look gives; those of earlier looks are in theirs."""
    return [
        Settled(
            configuration=judged.comparison.configuration,
            metric=metric,
            word=verdict.word,
            look=number,
            p=verdict.p,
            equivalence_p=verdict.equivalence_p,
        )
        for judged in found.judged
        for metric, verdict in judged.verdicts.items()
        if _is_given(verdict)
    ]


def _is_given(verdict: Verdict) -> bool:
    return verdict.family == "primary" and verdict.look is None and verdict.word in _GIVEN


def _added(growth: Growth) -> Iterator[str]:
    if growth.seeds:
        shown = ", ".join(map(str, growth.seeds))
        yield f"{plural(len(growth.seeds), 'more seed')} ({shown})"
    for name, rows in growth.prompts.items():
        yield f"{plural(len(rows), 'more prompt')} of {name}"
    for what, names in (("dataset", growth.datasets), ("configuration", growth.configurations)):
        if names:
            yield f"{plural(len(names), f'more {what}')} ({', '.join(names)})"
    if growth.widened_seeds or growth.widened_datasets:
        yield "for all configurations what `settle` had added for some"


def _lines(extension: Extension) -> Iterator[str]:
    rows = plural(extension.num_rows, "completion")
    yield f"adding {'; '.join(extension.added)}: {rows}. What is there is kept"
    look = extension.look
    if look is None:
        yield "nobody has seen a verdict of it since it last grew, so no look is counted"
        return
    yield (
        f"this counts as look {look.number} at the trial: the "
        f"{plural(len(look.settled), 'primary verdict')} given at {look.level * 100:.2g} % stay, "
        f"and all others are judged at {extension.level * 100:.2g} % from now on (Holm)"
    )
    growth = extension.growth
    if growth.configurations or growth.datasets:
        what = "configurations" if growth.configurations else "datasets"
        yield (
            f"{what} that are added after a look change the family of verdicts: theirs are judged "
            "with those that were left open, at that level; a new trial of all of them "
            "(--new-run) would judge all alike"
        )
