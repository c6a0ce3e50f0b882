"""What gets no verdict, whatever its numbers: where something else than an effect decided them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.analysis.multiplicity import holm
from jobs.comparison import Comparison, MetricEffect, main_effects
from jobs.metrics import METRICS
from jobs.wording import plural

ALARM_LEVEL = 0.01
"""Adjusted p of the A/A pair below which its difference of nothing is an alarm."""
MOST_APART = 0.5
"""Share of cells run apart from their reference's from which on times are not compared."""
FAILURE_MARGIN = 0.01
"""Share of rows by which two sides' failures may differ: beyond it what completed is not the same
prompts, and nothing compares."""
CUT_ABOVE = 0.1
"""Share of completions of a side that the length budget may end before lengths are no measure."""
LENGTH_GUARD = (0.9, 1.1)
"""Of the reference's mean output length (MLPerf Inference's rule for language models)."""


@dataclass(frozen=True)
class Alarm:
    """A difference between what should be the same that chance does not explain."""

    configuration: str
    metric: str
    p: float | None
    """Of a configuration run twice; None where not a single row may differ."""
    reason: str | None = None
    """What differs, where it is no p."""


def alarms(comparisons: Sequence[Comparison]) -> list[Alarm]:
    """Metrics of time and memory in which a duplicate differs from what it repeats (Holm)."""
    tested = [
        (comparison.configuration, effect.metric.name, effect.effect.p)
        for comparison in comparisons
        if comparison.is_duplicate
        for effect in main_effects(comparison)
        if effect.metric.is_timed or effect.metric.is_memory
    ]
    adjusted = holm([p for _, _, p in tested])
    return [
        Alarm(configuration, metric, p)
        for (configuration, metric, _), p in zip(tested, adjusted, strict=True)
        if p is not None and p < ALARM_LEVEL
    ]


def length_ratio(comparison: Comparison) -> float | None:
    """Mean output length over the reference's, in base tokens."""
    effect = comparison.effect("base_completion_tokens")
    return None if effect is None or effect.estimate is None else 1 + effect.estimate


def trips_length_guard(comparison: Comparison) -> bool:
    ratio = length_ratio(comparison)
    return ratio is not None and not LENGTH_GUARD[0] <= ratio <= LENGTH_GUARD[1]


def why_withheld(
    comparison: Comparison, found: MetricEffect, raised: Sequence[Alarm]
) -> str | None:
    """Why a metric gets no verdict here, whatever its numbers."""
    metric, rows = found.metric, comparison.rows
    if found.withheld is not None:
        return found.withheld
    if metric.source == "failure":
        return None
    if abs(rows.num_failed - rows.num_failed_reference) > FAILURE_MARGIN * rows.num_pairs:
        return (
            f"{rows.num_failed:,} of {rows.num_pairs:,} rows failed, and "
            f"{rows.num_failed_reference:,} of {comparison.vs}'s: what completed does not compare"
        )
    if found.effect.identical and rows.num_failed_apart:
        return f"{plural(rows.num_failed_apart, 'row')} failed on one side only"
    if found.effect.identical and rows.num_empty_sets:
        return f"{plural(rows.num_empty_sets, 'data set')} without a single completed pair"
    if metric.grows_with_length and _is_cut(comparison):
        shares = [
            n / comparison.texts.compared * 100 for n in (rows.num_cut_reference, rows.num_cut)
        ]
        return (
            f"the length budget ended {shares[0]:.0f} % and {shares[1]:.0f} % of the completions, "
            "which makes other texts alike in length: raise `max_new_tokens`, or stop them earlier"
        )
    if metric.is_memory:
        if any(alarm.metric == metric.name for alarm in raised):
            return "the same configuration run twice differs in this memory"
        return None
    if metric.is_timed and any(is_time(alarm.metric) for alarm in raised):
        return "the same configuration run twice differs in time: this machine's times say nothing"
    if metric.is_timed and comparison.share_apart > MOST_APART:
        return (
            f"{comparison.share_apart * 100:.0f} % of its cells were run apart from those of "
            f"{comparison.vs}: a drift of the machine in between would look like an effect"
        )
    if metric.is_timed and trips_length_guard(comparison):
        change = (length_ratio(comparison) or 0.0) - 1
        word = "longer" if change > 0 else "shorter"
        return (
            f"outputs are {abs(change) * 100:.1f} % {word}, beyond the guard of 10 %: times of "
            "such different texts do not compare"
        )
    return None


def _is_cut(comparison: Comparison) -> bool:
    """Whether budgets, and not texts, decided many lengths of one side or both."""
    rows, size = comparison.rows, comparison.texts.compared
    is_many = max(rows.num_cut, rows.num_cut_reference) > CUT_ABOVE * size
    return is_many and rows.num_cut_apart > CUT_ABOVE / 10 * size


def is_time(name: str) -> bool:
    return any(m.is_timed and not m.is_memory for m in METRICS if m.name == name)
