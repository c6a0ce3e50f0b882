"""Comparisons as reports judge them, of effects that were simulated."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.analysis.comparison import Comparison, MetricEffect
from jobs.analysis.looks import Word
from jobs.analysis.verdicts import judge
from jobs.queries.row_pairs import RowComparison, TextComparison
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import METRICS
from jobs.stats.permutation.effect import Effect

TOKENS = "completion_tokens"
DIRECTED = frozenset({"better", "worse", "higher", "lower"})
_METRICS = {metric.name: metric for metric in METRICS}


def comparison(
    name: str,
    effects: Mapping[str, Effect],
    rows: RowComparison | None = None,
    texts: TextComparison | None = None,
) -> Comparison:
    """Of one configuration against the baseline; `effects` by metric."""
    return Comparison(
        configuration=name,
        vs="baseline",
        is_duplicate=False,
        caches=("dynamic", "dynamic"),
        texts=texts or TextComparison(differing=0, compared=0),
        effects=tuple(
            MetricEffect(_METRICS[metric], "ratio of totals", None, None, effect)
            for metric, effect in effects.items()
        ),
        rows=rows or RowComparison(),
    )


def word_of(effect: Effect, metric: str = TOKENS) -> Word:
    """What is said of it, being all that the trial asks."""
    [judged] = judge([comparison("changed", {metric: effect})], Judgement())
    return judged.verdicts[metric].word
