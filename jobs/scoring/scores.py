"""Scores of a trial's outputs, made when read, and the table that `optrial score` prints.

Rows that failed while they were generated have no output, so no score; they are counted where the
table is printed. A scorer that raises on a row gives that row a null value and the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.plan import Configuration, Dataset, Plan
from cluster.results.results import Results
from jobs.formatting import NOTHING, interval_text, number_text, p_text
from jobs.queries.sql import connect
from jobs.scoring.binary import binary_difference, is_binary, with_wilson
from jobs.scoring.rows import (
    SCHEMA,
    SCORES,
    batches,
    likelihood_scores,
    output_scores,
)
from jobs.scoring.scorers import Scorer, scorer
from jobs.scoring.task_outcomes import TaskOutcomes, task_outcomes
from jobs.scoring.task_scores import aggregate_difference, aggregate_value, score_rows
from jobs.spec.score_names import BITS_PER_BYTE, LIKELIHOOD_SCORERS, MULTIPLE_CHOICE
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import mean_effect, score_effect
from jobs.stats.permutation.mcnemar import exact_difference
from optim.errors import InputError

__all__ = ["SCORES", "Collected", "collect", "score_statistics", "score_table", "scores"]


@dataclass(frozen=True)
class Collected:
    """All scores of a trial, and what they were made of."""

    plan: Plan
    table: pa.Table
    """Columns as in `SCORES`."""
    tasks: dict[str, TaskOutcomes] = field(default_factory=dict)
    """By data set."""
    clusters: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """(data set, prompt) -> its group of dependent prompts."""
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    """(data set, scorer) -> why nothing is scored by it there."""


def scores(results: Results, names: Sequence[str] | None = None) -> pa.Table:
    """One row per output with a target and scorer; columns as in `SCORES`.

    Without `names`: each dataset's own scorers, bits per byte where targets were scored by the
    model, and the metrics of tasks. With names: those, on every dataset that has targets and is no
    task.
    """
    return _collected(results, names).table


def _collected(results: Results, names: Sequence[str] | None) -> Collected:
    connection = connect(results)
    try:
        return collect(connection, results.plan(), names)
    finally:
        connection.close()


def collect(
    connection: duckdb.DuckDBPyConnection,
    plan: Plan,
    names: Sequence[str] | None = None,
    *,
    keeps_on: bool = False,
) -> Collected:
    """All scores, as `scores`.

    Raises InputError for a scorer that cannot be had here, and for a task that cannot be loaded or
    is not the one that was run; `keeps_on` leaves these out, and says why in `failures`.
    """
    failures: dict[tuple[str, str], str] = {}
    wanted = _wanted(plan, names)
    functions = _functions(wanted, failures if keeps_on else None)
    found = [*batches(output_scores(connection, wanted, functions))]
    found += batches(likelihood_scores(connection, wanted))
    prompts = [
        dict(zip(("dataset", "prompt_id", "cluster"), row, strict=True))
        for row in connection.execute("SELECT dataset, prompt_id, cluster FROM prompts").fetchall()
    ]
    tasks = {}
    for dataset in plan.datasets if names is None else ():
        if dataset.task is None:
            continue
        try:
            task, rows = _task_rows(connection, plan, dataset, prompts)
        except InputError as error:
            if not keeps_on:
                raise
            failures |= dict.fromkeys(((dataset.name, name) for name in dataset.scorers),
                                      str(error))  # fmt: skip
            continue
        tasks[dataset.name] = task
        found += rows
    clusters = {(p["dataset"], p["prompt_id"]): p["cluster"] for p in prompts}
    return Collected(plan, pa.Table.from_batches(found, SCHEMA), tasks, clusters, failures)


def _functions(
    wanted: dict[str, tuple[str, ...]], failures: dict[tuple[str, str], str] | None
) -> dict[str, Scorer]:
    """The functions that score outputs; those that cannot be had are noted as failures."""
    functions: dict[str, Scorer] = {}
    for dataset, names in wanted.items():
        for name in names:
            if name in LIKELIHOOD_SCORERS or name in functions:
                continue
            try:
                functions[name] = scorer(name)
            except InputError as error:
                if failures is None:
                    raise
                failures[dataset, name] = str(error)
    return functions


def _task_rows(
    connection: duckdb.DuckDBPyConnection,
    plan: Plan,
    dataset: Dataset,
    prompts: Sequence[dict[str, Any]],
) -> tuple[TaskOutcomes, list[pa.RecordBatch]]:
    alone = plan.model_copy(update={"datasets": (dataset,)})
    [task] = task_outcomes(connection, alone, prompts)
    return task, list(batches(score_rows(task)))


def _wanted(plan: Plan, names: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Dataset -> its scorers; datasets without targets have none."""
    found = {}
    for dataset in plan.datasets:
        if dataset.has_targets and dataset.task is None:
            own = (*dataset.scorers, BITS_PER_BYTE)
            found[dataset.name] = tuple(dict.fromkeys(own if names is None else names))
    if names and not found:
        mend = "Leave `--scorer` out" if any(d.task for d in plan.datasets) else None
        problem = "no dataset of this trial has targets that a scorer can be given"
        raise InputError(problem, source=plan.output, field="target", mend=mend)
    return found


def score_statistics(results: Results, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Per configuration, dataset and scorer: n, mean with interval, and the paired difference.

    Values are averaged over seeds first; the unit is the prompt, clustered where the dataset names
    a column. The difference is against the configuration's reference, on prompts that both have.
    Metrics of tasks that are no means are aggregated by the task: `jobs.scoring.task_scores`.
    """
    return statistics_of(_collected(results, names))


def statistics_of(collected: Collected) -> list[dict[str, Any]]:
    """The same of scores that are there."""
    plan = collected.plan
    means, errors = _prompt_means(collected.table)
    found = []
    for configuration in plan.configurations:
        for dataset in plan.datasets:
            for name in sorted({key[2] for key in means if key[1] == dataset.name}):
                own = means.get((configuration.name, dataset.name, name), {})
                reference = means.get((configuration.vs or "", dataset.name, name), {})
                row = _row(configuration, dataset, name, own, reference, collected)
                row["num_errors"] = errors.get((configuration.name, dataset.name, name), 0)
                task = collected.tasks.get(dataset.name)
                if task is not None and name not in task.means:
                    row |= _aggregated(task, configuration, name)
                elif len(plan.seeds) == 1 or not dataset.generates or name in MULTIPLE_CHOICE:
                    row |= _exact(row, reference, own, collected.clusters, dataset.name)
                found.append(row)
    return found


def _row(
    configuration: Configuration,
    dataset: Dataset,
    name: str,
    own: dict[str, float],
    reference: dict[str, float],
    collected: Collected,
) -> dict[str, Any]:
    """Of prompts' means."""
    both = [prompt for prompt in own if prompt in reference]
    clusters = collected.clusters
    return {
        "configuration": configuration.name,
        "vs": configuration.vs,
        "dataset": dataset.name,
        "scorer": name,
        "binary": None,
        "num_errors": 0,
        "mean": mean_effect(list(own.values()), _groups(dataset.name, own, clusters)),
        "difference": score_effect(
            [reference[prompt] for prompt in both],
            [own[prompt] for prompt in both],
            _groups(dataset.name, both, clusters),
        )
        if configuration.vs
        else None,
    }


def _exact(
    row: dict[str, Any],
    reference: dict[str, float],
    own: dict[str, float],
    clusters: dict[Any, Any],
    dataset: str,
) -> dict[str, Any]:
    """What is exact for zeros and ones of independent prompts; nothing for other scores."""
    groups = _groups(dataset, own, clusters)
    if not is_binary(own) or len(set(groups)) < len(groups):
        return {}
    difference: Effect | None = row["difference"]
    tested = binary_difference(reference, own)
    if difference is not None and tested is not None:
        both = [prompt for prompt in own if prompt in reference]
        a, b = (np.array([side[prompt] for prompt in both]) for side in (reference, own))
        difference = exact_difference(a, b)
    return {"mean": with_wilson(row["mean"], own), "difference": difference, "binary": tested}


def _aggregated(task: TaskOutcomes, configuration: Configuration, name: str) -> dict[str, Any]:
    """Of a metric that is no mean of its documents: the value of all, and how that differs."""
    vs = configuration.vs
    return {
        "mean": aggregate_value(task, configuration.name, name),
        "difference": aggregate_difference(task, vs, configuration.name, name) if vs else None,
    }


_Key = tuple[str, str, str]


def _prompt_means(table: pa.Table) -> tuple[dict[_Key, dict[str, float]], dict[_Key, int]]:
    """(configuration, dataset, scorer) -> prompt -> mean over seeds; and -> rows that failed."""
    grouped = table.group_by(["configuration", "dataset", "scorer", "prompt_id"]).aggregate(
        [("value", "mean"), ("error", "count")]
    )
    means: dict[_Key, dict[str, float]] = {}
    errors: dict[_Key, int] = {}
    for row in sorted(grouped.to_pylist(), key=lambda row: str(row["prompt_id"])):
        key = (row["configuration"], row["dataset"], row["scorer"])
        errors[key] = errors.get(key, 0) + row["error_count"]
        prompts = means.setdefault(key, {})
        if row["value_mean"] is not None:
            prompts[row["prompt_id"]] = row["value_mean"]
    return means, errors


def _groups(
    dataset: str, prompts: Sequence[str] | dict[str, float], clusters: dict[Any, str | None]
) -> list[tuple[str, str]]:
    """Each prompt's cluster, or the prompt itself where there is none."""
    found = [clusters.get((dataset, prompt)) for prompt in prompts]
    return [
        ("prompt", prompt) if cluster is None else ("cluster", cluster)
        for prompt, cluster in zip(prompts, found, strict=True)
    ]


def score_table(results: Results, names: Sequence[str] | None = None) -> Table:
    """What `optrial score` prints."""
    table = Table(
        title="Scores: means over prompts with 95 % intervals", title_justify="left", box=box.SIMPLE
    )
    for heading in ("configuration", "dataset", "scorer"):
        table.add_column(heading, overflow="fold")
    for heading in ("prompts", "errors", "mean", "against the reference", "p"):
        table.add_column(heading, justify="right")
    for row in score_statistics(results, names):
        own: Effect = row["mean"]
        difference: Effect | None = row["difference"]
        table.add_row(
            row["configuration"],
            row["dataset"],
            row["scorer"],
            str(own.num_units),
            str(row["num_errors"]),
            _with_interval(number_text(own.estimate), own, sign=False),
            "reference"
            if difference is None
            else _with_interval(number_text(difference.estimate, sign=True), difference),
            p_text(difference.p if difference else None),
        )
    return table


def _with_interval(estimate: str, effect: Effect, *, sign: bool = True) -> Text:
    bounds = interval_text(effect, sign=sign)
    return Text(estimate if bounds == NOTHING else f"{estimate} {bounds}")
