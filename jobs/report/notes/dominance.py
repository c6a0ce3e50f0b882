"""Where one prompt or shard carries so much of a total that an effect is mostly its own."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.analysis.comparison import MetricEffect, main_effects
from jobs.analysis.findings import Findings
from jobs.spec.metrics import change_of

DOMINANT = 0.25
"""Share of a data set's total from which on a cluster is named, and the geometric mean beside it:
no method that was tried covers the effect on totals where it grows with length
(`benchmarks/statistics/statistics.py`)."""


def dominance_notes(found: Findings) -> Iterator[str]:
    """One line per primary metric of a comparison in which some cluster dominates."""
    for judged in found.judged:
        comparison = judged.comparison
        if comparison.is_duplicate:
            continue
        for effect in main_effects(comparison):
            share = effect.effect.largest_share
            if share is None or share <= DOMINANT or not found.judgement.is_primary(effect.metric):
                continue
            text = (
                f"{comparison.configuration}: {effect.effect.largest} alone has "
                f"{share * 100:.0f} % of its {effect.metric.label.removeprefix('· ')}, and weighs "
                f"as much in the change of {change_of(effect.metric, effect.effect.estimate)}"
            )
            typical = _geometric(comparison.effects, effect)
            yield f"{text}; {typical}." if typical else f"{text}."


def _geometric(effects: tuple[MetricEffect, ...], of: MetricEffect) -> str | None:
    for each in effects:
        is_typical = each.metric.name == of.metric.name and each.statistic == "geometric mean"
        if is_typical and each.effect.estimate is not None:
            typical = change_of(each.metric, each.effect.estimate)
            return f"of the typical prompt (geometric mean) it is {typical}"
    return None
