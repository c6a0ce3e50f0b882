"""Scores of tasks: each document's value, and metrics that are no mean of their documents.

A perplexity, an F1 or a BLEU belongs to all documents together. Its value is what lm-eval's own
aggregation makes of them, over all seeds; its interval is the delete-a-group jackknife's (Kott,
"The delete-a-group jackknife", Journal of Official Statistics 17, 2001): documents are dealt to at
most 30 groups, and each group's pseudo-value is what the metric changes by without it. A difference
is that of two such values on the documents that both configurations have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jobs.scoring.task_outcomes import Aggregation, TaskOutcomes, value_of
from jobs.stats.permutation.effect import IDENTICAL, NO_PAIRS, NONE, Effect
from jobs.stats.permutation.effects import mean_effect
from optim.errors import InputError

MAX_GROUPS = 30
"""A metric is computed so many times for an interval."""
_NO_VALUE = "the task's metric has no value on these documents"

_Statistic = Callable[[Sequence[int]], float]
"""From the documents to the metric, or to the difference of two."""
_Items = dict[int, list[Any]]
"""Document -> its items, one per seed."""


def score_rows(found: TaskOutcomes) -> Iterator[dict[str, Any]]:
    """Rows of `jobs.scoring.scores.SCORES`; the value is the metric's on that document alone."""
    for configuration, outcomes in found.by_configuration.items():
        for outcome in outcomes:
            aggregation = found.aggregations[outcome.scorer]
            yield {
                "configuration": configuration,
                "dataset": found.dataset.name,
                "prompt_id": str(outcome.doc_id),
                "seed": outcome.seed,
                "scorer": outcome.scorer,
                "value": None if outcome.error else value_of(outcome.item, aggregation),
                "error": outcome.error,
            }


def aggregate_value(found: TaskOutcomes, configuration: str, scorer: str) -> Effect:
    """A metric of all of a configuration's documents."""
    items = _items(found, configuration, scorer)
    aggregation = found.aggregations[scorer]
    return _jackknifed(sorted(items), lambda docs: _aggregate(aggregation, items, docs))


def aggregate_difference(
    found: TaskOutcomes, reference: str, configuration: str, scorer: str
) -> Effect:
    """How a metric differs from the reference's, on the documents that both have."""
    left, right = (_items(found, name, scorer) for name in (reference, configuration))
    docs = sorted(left.keys() & right.keys())
    if docs and all(_same(left[doc], right[doc]) for doc in docs):
        return Effect(0.0, 0.0, 0.0, len(docs), len(docs), IDENTICAL, identical=True)
    aggregation = found.aggregations[scorer]
    return _jackknifed(
        docs,
        lambda some: _aggregate(aggregation, right, some) - _aggregate(aggregation, left, some),
    )


def _items(found: TaskOutcomes, configuration: str, scorer: str) -> _Items:
    items: _Items = {}
    for outcome in found.by_configuration.get(configuration, []):
        if outcome.scorer == scorer and outcome.error is None:
            items.setdefault(outcome.doc_id, []).append(outcome.item)
    return items


def _same(left: list[Any], right: list[Any]) -> bool:
    # Items may hold arrays, whose equality is no truth value.
    return repr(left) == repr(right)


def _aggregate(aggregation: Aggregation, items: _Items, docs: Sequence[int]) -> float:
    try:
        return float(aggregation([item for doc in docs for item in items[doc]]))
    except InputError:
        raise
    except Exception:  # The task's own code, which may raise anything.
        return math.nan


def _jackknifed(docs: Sequence[int], statistic: _Statistic) -> Effect:
    """The statistic of all documents with the jackknife's interval around it."""
    if not docs:
        return Effect(None, None, None, 0, 0, NONE, NO_PAIRS)
    estimate = statistic(docs)
    if not math.isfinite(estimate):
        return Effect(None, None, None, len(docs), 0, NONE, _NO_VALUE)
    num_groups = min(MAX_GROUPS, len(docs))
    values = [
        num_groups * estimate
        - (num_groups - 1) * statistic([d for i, d in enumerate(docs) if i % num_groups != group])
        for group in range(num_groups if num_groups > 1 else 0)
    ] or [estimate]
    found = mean_effect(values)
    moved = replace(found, estimate=estimate, log_estimate=estimate, num_units=len(docs))
    if found.low is None or found.high is None or found.estimate is None:
        return moved
    shift = estimate - found.estimate
    return replace(moved, low=found.low + shift, high=found.high + shift)
