"""One row of a trial, made again under the circumstances of then, and set beside what is stored.

Outputs are deterministic given requests, batch size and threads on one type of machine with equal
versions. So the cell's other prompts run beside the row's as they did, and where it still comes out
otherwise, what is recorded of machine and software and differs here is named.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.plan import Block, Cell, Dataset, Kind, Plan
from cluster.results.results import Results
from cluster.results.schema import deterministic_columns
from jobs.spec.yaml_reader import nearest
from optim.errors import InputError

_IDENTITY = {"run_id", "dataset", "prompt_id", "seed", "shard", "cell", "candidate"}
_NEWER = {"is_greedy", "ends_in_loop"}
"""Columns that stored rows may be older than: null there says nothing."""


class Difference(NamedTuple):
    """Something that is not as it was."""

    what: str
    stored: Any
    now: Any


@dataclass(frozen=True)
class Row:
    """Which row: of `generations`, or with `seed` None all candidates of `likelihoods`."""

    configuration: str
    dataset: str
    prompt_id: str
    seed: int | None = None


@dataclass(frozen=True)
class Replay:
    """A row as stored and as made now."""

    row: Row
    stored: list[dict[str, Any]]
    made: list[dict[str, Any]]
    """One row, or one per candidate."""
    differences: list[Difference]
    """Of deterministic columns."""
    circumstances: list[Difference]
    """Of machine, software and model, as far as they are recorded."""

    @property
    def is_equal(self) -> bool:
        return not self.differences


def replay(results: Results, row: Row) -> Replay:
    """Make a row again with the trial's model, on this machine.

    Raises InputError where there is no such row, where it has not been run, and where the model or
    an artifact is no longer there.
    """
    manifest = results.manifest()
    whole = results.plan()
    dataset = _check_names(whole, row)
    number = _row_number(results, row)
    kind: Kind = "likelihoods" if row.seed is None else "generations"
    own = whole.configuration(row.configuration)
    # Only what the row needs is loaded; keys stay the same.
    plan = whole.model_copy(update={"configurations": (own,), "output": results.output})
    block, cell = _place(plan, kind, dataset, number, row.seed)
    stored = _stored(results, cell, row)

    from cluster.worker.worker import Worker

    # Another model is told of, not refused.
    here_model = plan.model.model_copy(update={"fingerprint": ""})
    worker = Worker(plan.model_copy(update={"model": here_model}).model_dump_json(), 0)
    here = worker.load()
    made = [dict(r) for r in worker.replay(block.model_dump_json(), cell.key, row.prompt_id)]
    return Replay(
        row=row,
        stored=stored,
        made=made,
        differences=_differences(kind, stored, made),
        circumstances=list(_circumstances(manifest, plan, stored, here)),
    )


def _check_names(plan: Plan, row: Row) -> Dataset:
    names = [configuration.name for configuration in plan.configurations]
    _require(row.configuration, names, "CONFIGURATION", plan.output)
    _require(row.dataset, [each.name for each in plan.datasets], "DATASET", plan.output)
    dataset = plan.dataset(row.dataset)
    if row.seed is not None:
        if not dataset.generates:
            mend = "Leave the seed out"
            problem = f"`{row.dataset}` has no completions, only likelihoods"
            raise InputError(problem, source=plan.output, field="SEED", mend=mend)
        _require(str(row.seed), [str(seed) for seed in plan.seeds], "SEED", plan.output)
    elif not (dataset.has_targets and plan.likelihoods):
        raise InputError(
            f"`{row.dataset}` has no likelihoods",
            source=plan.output,
            field="SEED",
            mend=f"Give a seed: {', '.join(map(str, plan.seeds[:10]))}",
        )
    return dataset


def _require(name: str, known: Sequence[str], field: str, source: str) -> None:
    if name not in known:
        close = nearest(name, known)
        shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
        mend = f"Did you mean `{close}`?" if close else f"There are: {shown}"
        raise InputError(f"there is no `{name}` in this trial", source=source, field=field,
                         mend=mend)  # fmt: skip


def _row_number(results: Results, row: Row) -> int:
    """The prompt's place in its dataset."""
    prompts = results.prompts().select(["dataset", "prompt_id", "row"]).to_pylist()
    own = {p["prompt_id"]: p["row"] for p in prompts if p["dataset"] == row.dataset}
    _require(row.prompt_id, list(own), "PROMPT_ID", results.output)
    return int(own[row.prompt_id])


def _place(
    plan: Plan, kind: Kind, dataset: Dataset, number: int, seed: int | None
) -> tuple[Block, Cell]:
    for block in plan.blocks():
        if block.kind == kind and block.dataset == dataset.name:
            for cell in block.cells:
                if cell.seed == seed and cell.start <= number < cell.stop:
                    return block, cell
    raise InputError("the trial does not run this row", source=plan.output, field="ROW")


def _stored(results: Results, cell: Cell, row: Row) -> list[dict[str, Any]]:
    for part in results.parts(cell.kind):
        if part.key == cell.key and part.configuration == cell.configuration:
            rows = results.read_part(part).to_pylist()
            found = [each for each in rows if each["prompt_id"] == row.prompt_id]
            if found:
                return found
            raise InputError(
                "there is nothing of this prompt to score", source=results.output, field="PROMPT_ID"
            )
    raise InputError(
        "the row has not been run yet",
        source=results.output,
        field="ROW",
        mend="Let `optrial evaluate` finish",
    )


def _differences(
    kind: Kind, stored: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    columns = [name for name in deterministic_columns(kind) if name not in _IDENTITY]
    before, now = ({row.get("candidate"): row for row in rows} for rows in (stored, made))
    found = []
    for candidate in dict.fromkeys([*before, *now]):
        place = "" if candidate is None else f"candidate {candidate}: "
        if candidate not in before or candidate not in now:
            texts = ["absent" if candidate not in rows else "present" for rows in (before, now)]
            found.append(Difference(f"{place}row", *texts))
            continue
        for name in columns:
            old, new = before[candidate].get(name), now[candidate].get(name)
            is_unknown = name in _NEWER and old is None
            if old != new and not is_unknown:
                found.append(Difference(place + name, old, new))
    return found


def _circumstances(
    manifest: Mapping[str, Any],
    plan: Plan,
    stored: Sequence[Mapping[str, Any]],
    here: Mapping[str, Any],
) -> Iterable[Difference]:
    from jobs.trial.evaluate import git_state, processor
    from optim.model import fingerprint

    hardware = manifest.get("hardware", {})
    workers = hardware.get("workers") or []
    threads = {each.get("threads") for each in workers if isinstance(each, dict)} - {None}
    pairs: list[Difference] = [
        Difference("device", stored[0].get("device") if stored else None, here["device"]),
        Difference("processor", hardware.get("processor"), processor()),
        Difference("threads", threads.pop() if len(threads) == 1 else None, here["threads"]),
        Difference("platform", manifest.get("platform"), platform.platform()),
        Difference("python", manifest.get("python"), platform.python_version()),
        *(Difference(f"version of {name}", old, _version(name)) for name, old in
          manifest.get("versions", {}).items()),
        Difference("code", manifest.get("git"), git_state()),
        Difference("model's files", plan.model.fingerprint or None,
                   fingerprint(plan.model.path, revision=plan.model.revision)),
    ]  # fmt: skip
    return [each for each in pairs if each.stored is not None and each.stored != each.now]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
