"""A dataset of a spec that is a task: what the plan says of it, and its rows."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.plan import Dataset, Generation, ModelSource, digest
from jobs.data.prompts import PromptRow
from jobs.spec.analysis_plan import MIN_SHARDS
from jobs.tasks.loading import LoadedTask, Sample, load_task, renderer
from jobs.tasks.requests import task_generation, task_rows
from optim.errors import InputError

if TYPE_CHECKING:
    from jobs.spec.trial_spec import DatasetSpec, TrialSpec


def task_dataset(
    wanted: DatasetSpec, spec: TrialSpec, model: ModelSource, first_row: int
) -> tuple[Dataset, list[PromptRow]]:
    """The dataset and its rows; `first_row` is where they start in the file of all prompts.

    Raises InputError for what `jobs.tasks.loading.load_task` refuses, and where the trial cannot
    give the task what it needs: likelihoods, or enough seeds for a task that samples several times.
    """
    assert wanted.task is not None
    folder = wanted.include_path
    include_path = None if folder is None else str(Path(folder).expanduser().absolute())
    trust = wanted.trust_remote_code
    loaded = load_task(
        wanted.task,
        include_path,
        wanted.num_fewshot,
        chat=renderer(model) if wanted.chat else None,
        trust_remote_code=trust,
    )
    _require_seeds(loaded, spec)
    samples = chosen(loaded.samples, wanted.limit, wanted.sample_seed)
    records = Generation(
        token_times=spec.generation.token_times, completion_ids=spec.generation.completion_ids
    )
    generation = task_generation(loaded.name, samples, records)
    rows, _ = task_rows(wanted.name, samples, loaded.is_chat)
    has_likelihoods = any(row.choices or row.target is not None for row in rows)
    if has_likelihoods and not spec.likelihoods:
        raise InputError(
            "the task compares likelihoods, and the trial wants none",
            source=loaded.name,
            field="likelihoods",
            mend="Leave `likelihoods: false` out",
        )
    dataset = Dataset(
        name=wanted.name,
        num_prompts=len(rows),
        first_row=first_row,
        num_shards=min(wanted.shards or MIN_SHARDS, len(rows)),
        fingerprint=task_fingerprint(rows, generation),
        scorers=loaded.metrics(),
        has_targets=has_likelihoods,
        generates=generation is not None,
        generation=generation,
        task=loaded.source(
            include_path, [sample.doc_id for sample in samples], trust_remote_code=trust
        ),
    )
    return dataset, rows


def chosen(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """The samples with the smallest hashes, in their order: a draw is part of a larger one."""
    if limit is None or limit >= len(samples):
        return list(samples)

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}|{sample.doc_id}".encode()).digest()

    kept = {sample.doc_id for sample in heapq.nsmallest(limit, samples, key=rank)}
    return [sample for sample in samples if sample.doc_id in kept]


def task_fingerprint(rows: Sequence[PromptRow], generation: Generation | None) -> str:
    """sha256 over the rows as run and how their completions are sampled."""
    total = hashlib.sha256()
    for row in rows:
        total.update(digest(row.as_dict()).encode())
    if generation is not None:
        total.update(digest(generation.identity()).encode())
    return total.hexdigest()


def _require_seeds(loaded: LoadedTask, spec: TrialSpec) -> None:
    repeats = loaded.task.config.repeats or 1
    if repeats > len(spec.seeds):
        raise InputError(
            f"the task looks at {repeats} completions of each prompt together, and there are "
            f"{len(spec.seeds)} seeds",
            source=loaded.name,
            field="seeds",
            mend=f"Set `seeds: {repeats}`",
        )
