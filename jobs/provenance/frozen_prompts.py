"""Whether the prompts that a trial has are those that it was planned with."""

from __future__ import annotations

from cluster.plan import Plan
from cluster.results.files import FROM_A_COPY
from cluster.results.results import Results
from jobs.data.prompts import PromptRow
from jobs.tasks.dataset import task_fingerprint
from optim.errors import InputError

_BATCH_ROWS = 10_000


def require_prompts_as_run(results: Results) -> None:
    """InputError where rows of a dataset do not give the fingerprint that the plan has of it.

    Reads and hashes all prompts once. Holds for every kind of dataset: files, tasks (whose
    fingerprint is also of how their completions are sampled), and what was added later.
    """
    plan = results.plan()
    wanted = {dataset.name: dataset for dataset in plan.datasets}
    seen: set[str] = set()
    for name in results.prompt_files():
        for dataset, rows in _by_dataset(results, name).items():
            # A dataset's rows lie in one file; others of its name would be run as well.
            known = wanted.get(dataset)
            is_right = known is not None and dataset not in seen
            if known is not None and is_right:
                is_right = task_fingerprint(rows, known.generation) == known.fingerprint
            if not is_right:
                raise _differ(results, name, dataset)
            seen.add(dataset)
    _require_all(results, plan, seen)


def _by_dataset(results: Results, name: str) -> dict[str, list[PromptRow]]:
    found: dict[str, list[PromptRow]] = {}
    for batch in results.prompts_in(name).to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            found.setdefault(row["dataset"], []).append(PromptRow(**row))
    return found


def _require_all(results: Results, plan: Plan, seen: set[str]) -> None:
    for dataset in plan.datasets:
        if dataset.name not in seen:
            raise _differ(results, results.prompt_files()[-1], dataset.name)


def _differ(results: Results, name: str, dataset: str) -> InputError:
    return InputError(
        f"the rows of `{dataset}` are not the prompts that the trial was planned with",
        source=results.store.path(name),
        field="output",
        mend=FROM_A_COPY,
    )
