"""What a task says of a trial's answers: lm-eval's own filters and metrics, per document.

The task is loaded again and must ask what was asked: where its prompts, choices or documents are
others than those that were run, nothing is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from cluster.plan import Dataset, ModelSource, Plan
from jobs.tasks.dataset import task_fingerprint
from jobs.tasks.files import hub_code
from jobs.tasks.loading import LoadedTask, Sample, load_task, quiet, renderer, score_name
from jobs.tasks.requests import COMPLETION, Place, task_rows
from optim.errors import InputError

Aggregation = Callable[[Sequence[Any]], Any]
Answers = Mapping[tuple[str, int], Any]
"""(prompt id, candidate) -> what lm-eval wants as a response, or the reason why there is none."""


class NoAnswer(str):
    """The reason why a request has no answer."""


@dataclass(frozen=True)
class Outcome:
    """What one metric says of one document under one configuration."""

    doc_id: int
    seed: int | None
    """None where the document was not sampled, or all seeds are looked at together."""
    scorer: str
    item: Any
    """What the metric's aggregation is made of: a number, or something of the metric's own."""
    error: str | None = None


@dataclass
class TaskOutcomes:
    """Of one dataset: each configuration's outcomes, and how each metric aggregates them."""

    dataset: Dataset
    by_configuration: dict[str, list[Outcome]] = field(default_factory=dict)
    aggregations: dict[str, Aggregation] = field(default_factory=dict)
    """Scorer -> from the items of all documents to the metric's value."""
    means: set[str] = field(default_factory=set)
    """The scorers whose aggregation is the plain mean."""
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    """Of the scorers of which the task says which is better."""


def task_outcomes(
    connection: duckdb.DuckDBPyConnection, plan: Plan, prompts: Sequence[Mapping[str, Any]]
) -> list[TaskOutcomes]:
    """Of every dataset that is a task; `prompts` are the rows of `inputs/prompts.parquet`.

    Raises InputError where a task cannot be loaded, or is not the one that was run.
    """
    found = []
    for dataset in plan.datasets:
        if dataset.task is not None:
            own = [row for row in prompts if row["dataset"] == dataset.name]
            found.append(_dataset_outcomes(connection, plan, dataset, own))
    return found


def _dataset_outcomes(
    connection: duckdb.DuckDBPyConnection,
    plan: Plan,
    dataset: Dataset,
    prompts: Sequence[Mapping[str, Any]],
) -> TaskOutcomes:
    loaded, samples, places = _as_run(plan.model, dataset, prompts)
    found = TaskOutcomes(dataset)
    for configuration in plan.configurations:
        outcomes = found.by_configuration.setdefault(configuration.name, [])
        likelihoods = _likelihoods(connection, configuration.name, dataset.name)
        for seed, answers in _per_seed(connection, configuration.name, dataset, loaded):
            given = {**likelihoods, **answers}
            with hub_code(is_trusted=_is_trusted(dataset)):
                outcomes += _outcomes(loaded, samples, places, given, seed)
    _note_aggregations(found, loaded)
    return found


def _note_aggregations(found: TaskOutcomes, loaded: LoadedTask) -> None:
    """How each metric that there are outcomes of aggregates them: lm-eval's default is the mean."""
    from lm_eval.api.metrics import mean

    known = loaded.task.aggregation()  # after the outcomes, which may add metrics
    better = loaded.task.higher_is_better() or {}
    names = {each.scorer for outcomes in found.by_configuration.values() for each in outcomes}
    for name in names:
        aggregation = known.get(name.partition(",")[0], mean)
        found.aggregations[name] = _guarded(aggregation, _is_trusted(found.dataset))
        if aggregation is mean:
            found.means.add(name)
        if (is_better := better.get(name.partition(",")[0])) is not None:
            found.higher_is_better[name] = bool(is_better)


def _guarded(aggregation: Aggregation, is_trusted: bool) -> Aggregation:
    def guarded(items: Sequence[Any]) -> Any:
        with hub_code(is_trusted=is_trusted), quiet():
            return aggregation(items)

    return guarded


def _is_trusted(dataset: Dataset) -> bool:
    return dataset.task is not None and dataset.task.trust_remote_code


def _as_run(
    model: ModelSource, dataset: Dataset, prompts: Sequence[Mapping[str, Any]]
) -> tuple[LoadedTask, list[Sample], list[list[Place]]]:
    """The task, its samples that were run, and where their answers are."""
    assert dataset.task is not None
    source = dataset.task
    loaded = load_task(
        source.name,
        source.include_path,
        source.num_fewshot,
        chat=renderer(model) if source.is_chat else None,
        trust_remote_code=source.trust_remote_code,
    )
    ran = {int(str(row["prompt_id"]).partition(".")[0]) for row in prompts}
    samples = [sample for sample in loaded.samples if sample.doc_id in ran]
    rows, places = task_rows(dataset.name, samples, loaded.is_chat)
    doc_ids = [sample.doc_id for sample in samples]
    now = loaded.source(source.include_path, doc_ids, trust_remote_code=source.trust_remote_code)
    same_rows = task_fingerprint(rows, dataset.generation) == dataset.fingerprint
    if not same_rows or now.documents_sha256 != source.documents_sha256:
        version = source.lm_eval_version
        raise InputError(
            f"the task's {'documents' if same_rows else 'prompts'} are not those that were run",
            source=source.name,
            field=f"datasets.{dataset.name}",
            mend="Give back its files and its data"
            + (f", and lm-eval {version}" if version != now.lm_eval_version else ""),
        )
    return loaded, samples, places


def _likelihoods(
    connection: duckdb.DuckDBPyConnection, configuration: str, dataset: str
) -> dict[tuple[str, int], Any]:
    rows = connection.execute(
        "SELECT prompt_id, candidate, nats, is_greedy, error FROM likelihoods "
        "WHERE configuration = ? AND dataset = ?",
        [configuration, dataset],
    ).fetchall()
    return {
        (prompt, candidate): (-nats, bool(is_greedy)) if error is None else NoAnswer(error)
        for prompt, candidate, nats, is_greedy, error in rows
    }


def _per_seed(
    connection: duckdb.DuckDBPyConnection, configuration: str, dataset: Dataset, loaded: LoadedTask
) -> Iterator[tuple[int | None, dict[tuple[str, int], Any]]]:
    """The completions of each seed; of all together where the task repeats its requests."""
    if not dataset.generates:
        yield None, {}
        return
    rows = connection.execute(
        "SELECT seed, prompt_id, completion_text, error FROM generations "
        "WHERE configuration = ? AND dataset = ? ORDER BY seed",
        [configuration, dataset.name],
    ).fetchall()
    by_seed: dict[int, dict[tuple[str, int], Any]] = {}
    for seed, prompt, text, error in rows:
        answer = [text] if error is None else NoAnswer(error)
        by_seed.setdefault(seed, {})[prompt, COMPLETION] = answer
    repeats = loaded.task.config.repeats or 1
    if repeats == 1:
        yield from by_seed.items()
    elif len(by_seed) >= repeats:
        yield None, _together(list(by_seed.values())[:repeats])


def _together(several: Sequence[Mapping[tuple[str, int], Any]]) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    for key in several[0]:
        answers = [each[key] for each in several if key in each]
        if len(answers) == len(several):
            failed = [each for each in answers if isinstance(each, NoAnswer)]
            found[key] = failed[0] if failed else [text for each in answers for text in each]
    return found


def _outcomes(
    loaded: LoadedTask,
    samples: Sequence[Sample],
    places: Sequence[Sequence[Place]],
    answers: Answers,
    seed: int | None,
) -> Iterator[Outcome]:
    """Of the documents whose every request was run; those that failed have an error."""
    task, complete = loaded.task, []
    for sample, own in zip(samples, places, strict=True):
        responses = [_response(request, place, answers) for request, place in
                     zip(sample.requests, own, strict=True)]  # fmt: skip
        if any(response is None for response in responses):
            continue  # not run yet
        failed = [response for response in responses if isinstance(response, NoAnswer)]
        if failed:
            for name in loaded.metrics():
                yield Outcome(sample.doc_id, seed, name, None, str(failed[0]))
            continue
        for request, response in zip(sample.requests, responses, strict=True):
            request.resps, request.filtered_resps = response, {}
        complete.append(sample)
    if not complete:
        return
    with quiet():
        task._instances = [request for sample in complete for request in sample.requests]
        task.apply_filters()
        for sample in complete:
            for name in sample.requests[0].filtered_resps:
                yield from _judged(task, sample, name, seed)


def _response(request: Any, place: Place, answers: Answers) -> Any:
    """The responses to a request as lm-eval lists them; None where it was not run."""
    is_rolling = request.request_type == "loglikelihood_rolling"
    answer = (0.0, True) if place.is_empty else answers.get((place.prompt_id, place.candidate))
    if answer is None or isinstance(answer, NoAnswer) or place.candidate == COMPLETION:
        return answer
    return [answer[0] if is_rolling else answer]


def _judged(task: Any, sample: Sample, filter_name: str, seed: int | None) -> Iterator[Outcome]:
    responses = [request.filtered_resps[filter_name] for request in sample.requests]
    try:
        found = task.process_results(sample.doc, responses)
    except InputError:
        raise
    except Exception as error:  # The task's own code, which may raise anything on a document.
        reason = f"{type(error).__name__}: {error}"
        for metric in task.aggregation():
            yield Outcome(sample.doc_id, seed, score_name(metric, filter_name), None, reason)
        return
    for metric, item in found.items():
        yield Outcome(sample.doc_id, seed, score_name(metric, filter_name), item)


def value_of(item: Any, aggregation: Aggregation) -> float | None:
    """A document's own value: the metric's, as if there were no other document.

    None where the metric says nothing of one document.
    """
    try:
        value = float(aggregation([item]))
    except InputError:
        raise
    except Exception:  # The metric's own code: a correlation needs two documents, say.
        return None
    return value if math.isfinite(value) else None
