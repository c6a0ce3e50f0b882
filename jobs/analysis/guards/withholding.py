"""What gets no verdict, whatever its numbers: where something else than an effect decided them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.analysis.comparison import Comparison, MetricEffect, main_effects
from jobs.formatting import plural
from jobs.queries.row_pairs import RowComparison, RowCounts
from jobs.spec.metrics import METRICS
from jobs.stats.significance import holm

ALARM_LEVEL = 0.01
"""Adjusted p of the A/A pair below which its difference of nothing is an alarm."""
MOST_APART = 0.5
"""Share of cells run apart from their reference's from which on times are not compared."""
FAILURE_MARGIN = 0.01
"""Share of a data set's rows that may fail on one side only: beyond it what completed is not the
same prompts, and nothing compares."""
ONE_FAILURE = 0.05
"""The same of a data set in which a single row did, which is more than a hundredth of few."""
LENGTHS_DIFFER = 0.05
"""p below which data sets differ in how lengths change: then each of them is held to the guard."""
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
    """Mean output length over the reference's, in base tokens, all data sets alike."""
    effect = comparison.effect("base_completion_tokens")
    return None if effect is None or effect.estimate is None else 1 + effect.estimate


def guarded_length(comparison: Comparison) -> tuple[float, str | None] | None:
    """The ratio of lengths that the guard looks at, and whose it is; None of all data sets.

    Where data sets differ in it, it is that of the one in which it is furthest from 1: half as long
    in one and twice as long in another are alike only in their mean.
    """
    ratio, effect = length_ratio(comparison), comparison.effect("base_completion_tokens")
    if ratio is None or effect is None:
        return None
    found: list[tuple[float, str | None]] = [(ratio, None)]
    if effect.interaction_p is not None and effect.interaction_p <= LENGTHS_DIFFER:
        found += [(1 + each, name) for name, each in (effect.by_set or {}).items()]
    return max(found, key=lambda each: abs(math.log(max(each[0], 1e-9))))


def trips_length_guard(comparison: Comparison) -> bool:
    found = guarded_length(comparison)
    return found is not None and not LENGTH_GUARD[0] <= found[0] <= LENGTH_GUARD[1]


def why_withheld(
    comparison: Comparison, found: MetricEffect, raised: Sequence[Alarm]
) -> str | None:
    """Why a metric gets no verdict here, whatever its numbers."""
    metric, rows = found.metric, comparison.rows
    if found.withheld is not None:
        return found.withheld
    if metric.source == "failure":
        return None
    if reason := _by_failures(comparison, found):
        return reason
    if metric.grows_with_length and (cut := _cut_sets(comparison)):
        name, own = max(cut.items(), key=lambda each: each[1].num_cut_apart)
        shares = [n / own.num_completed * 100 for n in (own.num_cut_reference, own.num_cut)]
        return (
            f"the length budget ended {shares[0]:.0f} % and {shares[1]:.0f} % of the completions"
            f"{_of_set(name, rows)}, which makes other texts alike in length: raise "
            "`max_new_tokens`, or stop them earlier"
        )
    if reason := _by_alarm(found, raised):
        return reason
    if metric.is_memory:
        return None
    if metric.is_timed and comparison.share_apart > MOST_APART:
        return (
            f"{comparison.share_apart * 100:.0f} % of its cells were run apart from those of "
            f"{comparison.vs}: a drift of the machine in between would look like an effect"
        )
    if metric.is_timed and trips_length_guard(comparison):
        ratio, whose = guarded_length(comparison) or (1.0, None)
        word = "longer" if ratio > 1 else "shorter"
        of_set = "" if whose is None else f" of {whose}"
        return (
            f"outputs{of_set} are {abs(ratio - 1) * 100:.1f} % {word}, beyond the guard of 10 %: "
            "times of such different texts do not compare"
        )
    return None


def faulty(comparison: Comparison, found: MetricEffect, raised: Sequence[Alarm]) -> str | None:
    """Why not even what an earlier look decided can be said any more: rows that failed on one side
    only, or an alarm. Neither was part of what that look saw, or it had decided nothing."""
    if found.metric.source == "failure":
        return None
    return _by_failures(comparison, found) or _by_alarm(found, raised)


def _by_alarm(found: MetricEffect, raised: Sequence[Alarm]) -> str | None:
    metric = found.metric
    if metric.is_memory and any(alarm.metric == metric.name for alarm in raised):
        return "the same configuration run twice differs in this memory"
    if metric.is_timed and not metric.is_memory and any(is_time(a.metric) for a in raised):
        return "the same configuration run twice differs in time: this machine's times say nothing"
    return None


def _by_failures(comparison: Comparison, found: MetricEffect) -> str | None:
    """Why what completed does not compare, or is no equality of all."""
    unlike = why_unlike(comparison)
    return unlike or (why_not_all(comparison) if found.effect.identical else None)


def why_unlike(comparison: Comparison) -> str | None:
    """Where other prompts completed on one side than on the other, in any data set.

    Effects count data sets alike, so each has to compare on its own.
    """
    rows = comparison.rows
    for name, own in rows.sets.items():
        most = FAILURE_MARGIN if own.num_failed_apart > 1 else ONE_FAILURE
        if own.num_failed_apart > most * own.num_pairs:
            return (
                f"{own.num_failed:,} of {own.num_pairs:,} rows{_of_set(name, rows)} failed, and "
                f"{own.num_failed_reference:,} of {comparison.vs}'s: what completed does not "
                "compare"
            )
    empty = _empty_sets(rows)
    if empty and len(empty) < len(rows.sets):
        return f"no pair of {', '.join(empty)} completed, and effects are of all data sets"
    return None


def why_not_all(comparison: Comparison) -> str | None:
    """Why equal pairs of completed rows are no equality of all."""
    rows = comparison.rows
    if rows.num_failed_apart:
        return f"{plural(rows.num_failed_apart, 'row')} failed on one side only"
    return "no pair completed" if _empty_sets(rows) else None


def _empty_sets(rows: RowComparison) -> list[str]:
    return [n for n, own in rows.sets.items() if own.num_pairs and not own.num_completed]


def _of_set(name: str, rows: RowComparison) -> str:
    return f" of {name}" if len(rows.sets) > 1 else ""


def _cut_sets(comparison: Comparison) -> dict[str, RowCounts]:
    """Data sets in which budgets, and not texts, decided many lengths of one side or both."""
    return {
        name: own
        for name, own in comparison.rows.sets.items()
        if max(own.num_cut, own.num_cut_reference) > CUT_ABOVE * own.num_completed
        if own.num_cut_apart > CUT_ABOVE / 10 * own.num_completed
    }


def is_time(name: str) -> bool:
    return any(m.is_timed and not m.is_memory for m in METRICS if m.name == name)
