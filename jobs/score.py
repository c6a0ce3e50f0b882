"""Scores of a trial's outputs, made when read, and the table that `optrial score` prints.

Rows that failed while they were generated have no output, so no score; they are counted where the
table is printed. A scorer that raises on a row gives that row a null value and the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.plan import Configuration, Plan
from cluster.results import PROMPTS_FILE, Results
from cluster.schema import FLOAT, INT, TEXT, Column
from jobs.analysis.effects import Effect, difference_effect, mean_effect
from jobs.binary_scores import binary_difference, is_binary, with_wilson
from jobs.query import connect
from jobs.scorers import Scorer, answer_index, bits_per_byte, multiple_choice, scorer
from jobs.task_outcomes import TaskOutcomes, task_outcomes
from jobs.task_scores import aggregate_difference, aggregate_value, score_rows
from jobs.wording import NOTHING, interval_text, number_text, p_text
from optim.errors import InputError

BITS_PER_BYTE = "bits_per_byte"
MULTIPLE_CHOICE = {"multiple_choice": True, "multiple_choice_unnormalised": False}
"""Name -> whether the nats of a choice are divided by its bytes."""
LIKELIHOOD_SCORERS = (BITS_PER_BYTE, *MULTIPLE_CHOICE)
_ROWS_AT_ONCE = 2048

SCORES = [
    Column("configuration", TEXT, "name of the configuration in the spec", True),
    Column("dataset", TEXT, "name of the dataset in the spec", True),
    Column("prompt_id", TEXT, "stable id of the prompt within its dataset", True),
    Column("seed", INT, "sampling seed; null for scores by likelihood", True),
    Column("scorer", TEXT, "name of the scorer", True),
    Column("value", FLOAT, "the score; null where it has none", True),
    Column("error", TEXT, "why the scorer failed on this row", True),
]
SCHEMA = pa.schema(
    [pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in SCORES]
)  # fmt: skip


def scores(results: Results, names: Sequence[str] | None = None) -> pa.Table:
    """One row per output with a target and scorer; columns as in `SCORES`.

    Without `names`: each dataset's own scorers, bits per byte where targets were scored by the
    model, and the metrics of tasks. With names: those, on every dataset that has targets and is no
    task.
    """
    return _collect(results, names)[0]


def _collect(
    results: Results, names: Sequence[str] | None
) -> tuple[pa.Table, dict[str, TaskOutcomes]]:
    """All scores, and what those of tasks were made of."""
    plan = results.plan()
    wanted = _wanted(plan, names)
    functions = {
        name: scorer(name)
        for found in wanted.values()
        for name in found
        if name not in LIKELIHOOD_SCORERS
    }
    connection = connect(results)
    try:
        batches = [pa.RecordBatch.from_pylist(rows, SCHEMA) for rows in _batches(
            _output_scores(connection, wanted, functions))]  # fmt: skip
        batches += [pa.RecordBatch.from_pylist(rows, SCHEMA) for rows in _batches(
            _likelihood_scores(connection, wanted))]  # fmt: skip
        tasks = [] if names else task_outcomes(connection, plan, _prompts(results))
    finally:
        connection.close()
    for task in tasks:
        batches += [pa.RecordBatch.from_pylist(r, SCHEMA) for r in _batches(score_rows(task))]
    return pa.Table.from_batches(batches, SCHEMA), {task.dataset.name: task for task in tasks}


def _prompts(results: Results) -> list[dict[str, Any]]:
    has_prompts = results.store.exists(PROMPTS_FILE)
    return results.prompts().to_pylist() if has_prompts else []


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


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    yield batch


def _row(identity: Sequence[Any], name: str, value: float | None, error: str | None = None) -> Any:
    return dict(zip(SCHEMA.names, (*identity, name, value, error), strict=True))


def _output_scores(
    connection: duckdb.DuckDBPyConnection,
    wanted: dict[str, tuple[str, ...]],
    functions: dict[str, Scorer],
) -> Iterator[dict[str, Any]]:
    if not functions:
        return
    found = connection.execute(
        """
        SELECT g.configuration, g.dataset, g.prompt_id, g.seed, g.completion_text, p.target
        FROM generations g JOIN prompts p USING (dataset, prompt_id)
        WHERE g.error IS NULL AND g.completion_text IS NOT NULL AND p.target IS NOT NULL
        ORDER BY ALL
        """
    )
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for *identity, output, target in rows:
            for name in wanted.get(identity[1], ()):
                if name in functions:
                    yield _scored(identity, name, functions[name], output, target)


def _scored(identity: Sequence[Any], name: str, function: Scorer, output: str, target: str) -> Any:
    try:
        return _row(identity, name, function(output, target))
    except Exception as error:  # A user's scorer may fail in any way on one row.
        return _row(identity, name, None, f"{type(error).__name__}: {error}")


def _likelihood_scores(
    connection: duckdb.DuckDBPyConnection, wanted: dict[str, tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    found = connection.execute(
        """
        SELECT l.configuration, l.dataset, l.prompt_id,
            list(l.candidate ORDER BY l.candidate), list(l.nats ORDER BY l.candidate),
            list(l.num_bytes ORDER BY l.candidate), any_value(p.target), any_value(p.choices)
        FROM likelihoods l JOIN prompts p USING (dataset, prompt_id)
        WHERE l.error IS NULL AND l.nats IS NOT NULL
        GROUP BY l.configuration, l.dataset, l.prompt_id
        ORDER BY l.configuration, l.dataset, l.prompt_id
        """
    )
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for configuration, dataset, prompt_id, candidates, nats, sizes, target, choices in rows:
            identity = (configuration, dataset, prompt_id, None)
            by_candidate = dict(zip(candidates, zip(nats, sizes, strict=True), strict=True))
            names = wanted.get(dataset, ())
            if BITS_PER_BYTE in names and -1 in by_candidate:
                yield _row(identity, BITS_PER_BYTE, bits_per_byte(*by_candidate[-1]))
            for name in MULTIPLE_CHOICE.keys() & set(names):
                if choices:
                    yield _choice(identity, name, by_candidate, target, choices)


def _choice(
    identity: Sequence[Any],
    name: str,
    by_candidate: dict[int, tuple[float, int]],
    target: str | None,
    choices: list[str],
) -> Any:
    answer = answer_index(target or "", choices)
    if answer is None:
        return _row(identity, name, None, "the target is none of the choices")
    try:
        nats, sizes = zip(*(by_candidate[i] for i in range(len(choices))), strict=True)
    except KeyError as missing:
        return _row(identity, name, None, f"choice {missing} has no likelihood")
    value = multiple_choice(nats, sizes, answer, per_byte=MULTIPLE_CHOICE[name])
    return _row(identity, name, value)


def score_statistics(results: Results, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Per configuration, dataset and scorer: n, mean with interval, and the paired difference.

    Values are averaged over seeds first; the unit is the prompt, clustered where the dataset names
    a column. The difference is against the configuration's reference, on prompts that both have.
    Metrics of tasks that are no means are aggregated by the task: `jobs.task_scores`.
    """
    plan = results.plan()
    table, tasks = _collect(results, names)
    clusters = {(p["dataset"], p["prompt_id"]): p["cluster"] for p in _prompts(results)}
    means, errors = _prompt_means(table)
    found = []
    for configuration in plan.configurations:
        for dataset in plan.datasets:
            for name in sorted({key[2] for key in means if key[1] == dataset.name}):
                own = means.get((configuration.name, dataset.name, name), {})
                reference = means.get((configuration.vs or "", dataset.name, name), {})
                both = [prompt for prompt in own if prompt in reference]
                found.append(
                    {
                        "configuration": configuration.name,
                        "vs": configuration.vs,
                        "dataset": dataset.name,
                        "scorer": name,
                        "binary": None,
                        "num_errors": errors.get((configuration.name, dataset.name, name), 0),
                        "mean": mean_effect(
                            list(own.values()), _groups(dataset.name, own, clusters)
                        ),
                        "difference": difference_effect(
                            [reference[prompt] for prompt in both],
                            [own[prompt] for prompt in both],
                            _groups(dataset.name, both, clusters),
                        )
                        if configuration.vs
                        else None,
                    }
                )
                task = tasks.get(dataset.name)
                if task is not None and name not in task.means:
                    found[-1] |= _aggregated(task, configuration, name)
                elif len(plan.seeds) == 1 or not dataset.generates:
                    found[-1] |= _exact(found[-1], reference, own, clusters, dataset.name)
    return found


def _exact(
    row: dict[str, Any],
    reference: dict[str, float],
    own: dict[str, float],
    clusters: dict[Any, Any],
    dataset: str,
) -> dict[str, Any]:
    """What is exact for zeros and ones of independent prompts; nothing for other scores."""
    if not is_binary(own) or any(clusters.get((dataset, prompt)) for prompt in own):
        return {}
    difference: Effect | None = row["difference"]
    tested = binary_difference(reference, own)
    if difference is not None and tested is not None:
        difference = replace(difference, p=tested.p)
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
