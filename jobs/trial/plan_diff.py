"""Is this spec the trial that lies in the output already, more of it, or another one?

More of it is: further seeds, prompts, datasets or configurations beside all that there is. Anything
else that decides outputs makes another trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.plan import Configuration, Dataset, Plan, origin
from cluster.results.results import Results
from jobs.provenance.code_version import Code, code_differences
from jobs.provenance.history import codes
from jobs.spec.trial_spec import TrialSpec
from jobs.trial.planning import decisive, difference_lines

Row = Mapping[str, Any]
"""Of `inputs/prompts.parquet`."""


@dataclass(frozen=True)
class Wanted:
    """What a spec asks for."""

    spec: TrialSpec
    plan: Plan
    prompts: list[dict[str, Any]]
    code: Code
    notes: tuple[str, ...] = ()
    """What whoever runs it and reads of it should know, one sentence each."""

    def rows(self, dataset: Dataset) -> list[dict[str, Any]]:
        return self.prompts[dataset.first_row : dataset.first_row + dataset.num_prompts]

    def at(self, output: str) -> Wanted:
        """The same in another place."""
        spec = self.spec.model_copy(update={"output": output})
        plan = self.plan.model_copy(update={"output": output})
        return replace(self, spec=spec, plan=plan)


@dataclass(frozen=True)
class Growth:
    """What a spec asks for beyond what was planned so far."""

    seeds: tuple[int, ...] = ()
    """New ones."""
    widened_seeds: tuple[int, ...] = ()
    """Seeds that only some configurations ran, and all are to run."""
    prompts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Dataset -> its rows that are new."""
    widened_datasets: tuple[str, ...] = ()
    """Added prompts that only some configurations ran, and all are to run."""
    datasets: tuple[str, ...] = ()
    configurations: tuple[str, ...] = ()

    @property
    def is_nothing(self) -> bool:
        return self == Growth()


@dataclass(frozen=True)
class Standing:
    """What a spec is to the trial that is there."""

    plan: Plan
    """That trial's, with the spec's places, workers and order of work."""
    changes: tuple[str, ...]
    """What makes it another trial, one line each."""
    code: tuple[str, ...]
    """What of the code is not as it was."""
    growth: Growth

    @property
    def is_same(self) -> bool:
        return not self.changes and not self.code and self.growth.is_nothing


def compare(results: Results, wanted: Wanted) -> Standing:
    """Set a spec beside the trial in an output that has a manifest."""
    stored = results.plan()
    changes = _changes(stored, _in_order(wanted, stored))
    growth = Growth()
    if not changes:
        more: dict[str, list[dict[str, Any]]] = {}
        widened: list[str] = []
        there = {origin(d.name): d for d in reversed(stored.datasets)}
        prompts: dict[str, list[dict[str, Any]]] | None = None
        for dataset in wanted.plan.datasets:
            if dataset.name in there and not _is_as_run(stored, dataset):
                prompts = prompts if prompts is not None else _by_dataset(results)
                found = _compare_rows(stored, dataset.name, wanted, prompts)
                changes += found.changes
                widened += found.widened
                if found.fresh:
                    more[dataset.name] = found.fresh
        changes += _seed_changes(stored, wanted.plan)
        growth = _growth(stored, wanted.plan, more, widened)
    return Standing(
        plan=_as_wanted(stored, wanted.plan),
        changes=tuple(changes),
        code=tuple(code_differences(codes(results)[-1][1], wanted.code)),
        growth=Growth() if changes else growth,
    )


def _in_order(wanted: Wanted, stored: Plan) -> Plan:
    """The plan of a spec that leaves the order of weights open: it is the one that there is.

    Else a larger batch could not be added to a trial of small ones.
    """
    if wanted.spec.weight_order != "auto":
        return wanted.plan
    return wanted.plan.model_copy(update={"weight_order": stored.weight_order})


def _changes(stored: Plan, wanted: Plan) -> list[str]:
    """Differences apart from seeds, prompts and what is only added."""
    old, new = (_comparable(plan) for plan in (stored, wanted))
    old["datasets"] = [d for d in old["datasets"] if "+" not in d["name"]]
    for part in ("configurations", "datasets"):
        names = {each["name"] for each in old[part]}
        new[part] = [each for each in new[part] if each["name"] in names]
    return difference_lines(old, new)


def _comparable(plan: Plan) -> dict[str, Any]:
    """What identifies a trial, but for its seeds, prompts and code, which are compared apart.

    The order of configurations and datasets decides nothing.
    """
    kept = decisive(plan.model_dump(mode="json"))
    for key in ("seeds", "seed_arms"):
        kept.pop(key, None)
    # Derived from all of it, the code among it.
    kept["configurations"] = [_without(c, "fingerprint") for c in kept["configurations"]]
    own = ("fingerprint", "num_prompts", "num_shards", "first_row", "has_targets", "arms")
    kept["datasets"] = [_without(d, *own) for d in kept["datasets"]]
    for part in ("configurations", "datasets"):
        kept[part].sort(key=lambda each: each["name"])
    return kept


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _seed_changes(stored: Plan, wanted: Plan) -> list[str]:
    """Seeds that `settle` added are in no spec, and may be left out."""
    given = [seed for seed in stored.seeds if seed not in stored.seed_arms]
    if set(given) <= set(wanted.seeds):
        return []
    return [f"seeds: {given} -> {list(wanted.seeds)}"]


def _is_as_run(stored: Plan, dataset: Dataset) -> bool:
    """Whether a dataset is exactly what was planned, so that no prompt needs to be looked at."""
    own = [d for d in stored.datasets if origin(d.name) == dataset.name and d.arms is None]
    return [(d.fingerprint, d.num_shards) for d in own] == [
        (dataset.fingerprint, dataset.num_shards)
    ]


def _by_dataset(results: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results.prompts().to_pylist():
        found.setdefault(row["dataset"], []).append(row)
    return found


@dataclass(frozen=True)
class _Rows:
    changes: list[str]
    fresh: list[dict[str, Any]]
    widened: list[str]


def _compare_rows(
    stored: Plan, name: str, wanted: Wanted, prompts: Mapping[str, Sequence[Row]]
) -> _Rows:
    """A dataset's rows beside those that were planned, by their ids."""
    dataset = wanted.plan.dataset(name)
    spec = next(d for d in wanted.spec.datasets if d.name == name)
    place = f"datasets[{name}]"
    changes = []
    base = stored.dataset(name)
    # What the spec leaves open stays as it was planned, whatever would be chosen today.
    if spec.shards is not None and min(spec.shards, base.num_prompts) != base.num_shards:
        changes.append(f"{place}.shards: {base.num_shards} -> {spec.shards}")
    now = {row["prompt_id"]: row for row in wanted.rows(dataset)}
    planned: dict[str, Row] = {}
    others: dict[str, dict[str, Row]] = {}
    for piece in (d for d in stored.datasets if origin(d.name) == name):
        rows = {row["prompt_id"]: row for row in prompts.get(piece.name, ())}
        if piece.arms is None:
            planned |= rows
        else:
            others[piece.name] = rows
    there = planned | {key: row for rows in others.values() for key, row in rows.items()}
    gone = [key for key in planned if key not in now]
    altered = [key for key in now if key in there and not _is_equal(now[key], there[key])]
    fresh = [row for key, row in now.items() if key not in there]
    if gone or altered:
        changes.append(f"{place}: {_prompts_text(len(planned), gone, altered, fresh, spec.limit)}")
    elif fresh and dataset.task is not None:
        changes.append(f"{place}: prompts cannot be added to a task, which scores all of them")
    widened = []
    for piece_name, rows in others.items():
        shared = rows.keys() & now.keys()
        if shared and len(shared) == len(rows):
            widened.append(piece_name)
        elif shared:
            changes.append(
                f"{place}: it draws {len(shared)} of the {len(rows)} prompts that `settle` added "
                "for some configurations: draw all of those, or none"
            )
    return _Rows(changes, fresh, widened)


def _is_equal(now: Row, stored: Row) -> bool:
    """Whether a prompt is run the same; where it stands in its file decides nothing."""
    return all(
        value == stored.get(key) for key, value in now.items() if key not in {"row", "dataset"}
    )


def _prompts_text(
    num: int,
    gone: Sequence[str],
    altered: Sequence[str],
    fresh: Sequence[Row],
    limit: int | None,
) -> str:
    parts = []
    if gone:
        parts.append(f"{len(gone)} of {num} are gone ({_few(gone)})")
    if altered:
        parts.append(f"{len(altered)} differ ({_few(altered)})")
    if fresh:
        parts.append(f"{len(fresh)} are new")
    text = f"its prompts differ: {', '.join(parts)}"
    if gone and fresh and limit is not None:
        text += "; it is another draw, not a larger one that holds those that were run"
    return text


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def _growth(
    stored: Plan, wanted: Plan, prompts: dict[str, list[dict[str, Any]]], widened: Sequence[str]
) -> Growth:
    have = {c.name for c in stored.configurations}
    datasets = {d.name for d in stored.datasets}
    return Growth(
        seeds=tuple(s for s in wanted.seeds if s not in stored.seeds),
        widened_seeds=tuple(s for s in wanted.seeds if s in stored.seed_arms),
        prompts=prompts,
        widened_datasets=tuple(widened),
        datasets=tuple(d.name for d in wanted.datasets if d.name not in datasets),
        configurations=tuple(c.name for c in wanted.configurations if c.name not in have),
    )


def _as_wanted(stored: Plan, wanted: Plan) -> Plan:
    """The stored plan, to be run as the spec says: where things lie and by whom decides nothing.

    Fingerprints stay, and with them the keys of cells, whatever code runs them.
    """
    given = {c.name: c for c in wanted.configurations}
    places: list[Configuration] = []
    for old in stored.configurations:
        new = given.get(old.name)
        kept = {"fingerprint": old.fingerprint}
        places.append(old if new is None else new.model_copy(update=kept))
    return stored.model_copy(
        update={
            "output": wanted.output,
            "model": wanted.model,
            "configurations": tuple(places),
            "workers": wanted.workers,
            "shuffle_seed": wanted.shuffle_seed,
        }
    )
