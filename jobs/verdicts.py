"""Verdicts: better, worse, equivalent within ±δ, or inconclusive, with error rates kept.

A difference is claimed where its p (by sign flips, or where these are too coarse by the interval's
t), adjusted over its family, is at most α; equivalence
where the p of two one-sided tests (TOST) at ±δ, adjusted over its family too, is. The primary
metrics of all comparisons are one family (Holm); the others are exploratory, and their rate of
false discoveries is kept (Benjamini-Hochberg). What is exactly equal in every pair needs no test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.analysis.effects import Effect
from jobs.analysis.equivalence import tost_p
from jobs.analysis.multiplicity import benjamini_hochberg, holm
from jobs.analysis.power import mde
from jobs.comparison import Comparison, MetricEffect
from jobs.judgement import Judgement
from jobs.looks import Look, Settled, Word, settled
from jobs.metrics import METRICS

Family = Literal["primary", "exploratory"]
ALARM_LEVEL = 0.01
"""Adjusted p of the A/A pair below which its difference of nothing is an alarm."""
MOST_APART = 0.5
"""Share of cells run apart from their reference's from which on times are not compared."""
ONE_PAIR = "equal in the one pair that there is, which shows no equality"
LENGTH_GUARD = (0.9, 1.1)
"""Of the reference's mean output length (MLPerf Inference's rule for language models)."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one metric in one comparison, and on what grounds."""

    word: Word
    family: Family
    margin: float
    """δ: a fraction for relative effects, else in the metric's own unit."""
    p: float | None = None
    """Adjusted p that there is no difference."""
    equivalence_p: float | None = None
    """Adjusted p that the difference is ±δ or more."""
    mde: float | None = None
    """The smallest difference that this many prompts and seeds find with the power asked for."""
    reason: str | None = None
    """Why there is none, or why it is withheld."""
    look: int | None = None
    """The earlier look that decided it; None where this one did."""

    @property
    def is_open(self) -> bool:
        """Whether more data could still give a verdict."""
        return self.word == "inconclusive"


@dataclass(frozen=True)
class Judged:
    comparison: Comparison
    verdicts: dict[str, Verdict]
    """By metric; of its main effect."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Alarm:
    """A difference between a configuration and itself that chance does not explain."""

    configuration: str
    metric: str
    p: float


def judge(
    comparisons: Sequence[Comparison],
    judgement: Judgement,
    looks: Sequence[Look] = (),
) -> list[Judged]:
    """Verdicts of all comparisons, A/A pairs without any; one call, as the families span them.

    What an earlier look decided stays so: only what it left open is judged again, at this look's
    share of α.
    """
    raised = alarms(comparisons)
    decided = settled(looks)
    verdicts: dict[tuple[int, str], Verdict] = {}
    for family in ("primary", "exploratory"):
        found = [
            (index, effect)
            for index, comparison in enumerate(comparisons)
            if not comparison.is_duplicate
            for effect in main_effects(comparison)
            if (effect.metric.name in judgement.primary) == (family == "primary")
            if family != "primary" or (comparison.configuration, effect.metric.name) not in decided
        ]
        level = judgement.level(len(looks) + 1) if family == "primary" else judgement.alpha
        withheld = [_withheld(comparisons[index], effect, raised) for index, effect in found]
        for (index, effect), verdict in zip(
            found, _family(found, withheld, family, judgement, level), strict=True
        ):
            verdicts[index, effect.metric.name] = verdict
    for index, comparison in enumerate(comparisons):
        for effect in main_effects(comparison):
            before = decided.get((comparison.configuration, effect.metric.name))
            if before is not None and not comparison.is_duplicate:
                verdicts[index, effect.metric.name] = _kept(before, effect, judgement)
    return [
        Judged(
            comparison,
            {metric: v for (place, metric), v in verdicts.items() if place == index},
            _warnings(comparison),
        )
        for index, comparison in enumerate(comparisons)
    ]


def main_effects(comparison: Comparison) -> list[MetricEffect]:
    """The effect that is judged of each metric: of totals (what people pay), or a difference."""
    return [e for e in comparison.effects if e.statistic != "geometric mean"]


def alarms(comparisons: Sequence[Comparison]) -> list[Alarm]:
    """Metrics of time and memory in which a duplicate differs from what it repeats (Holm)."""
    tested = [
        (comparison.configuration, effect.metric.name, effect.effect.p_of_verdict)
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


def _withheld(comparison: Comparison, found: MetricEffect, raised: Sequence[Alarm]) -> str | None:
    """Why a metric gets no verdict here, whatever its numbers."""
    metric = found.metric
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


def is_time(name: str) -> bool:
    return any(m.is_timed and not m.is_memory for m in METRICS if m.name == name)


def _family(
    found: Sequence[tuple[int, MetricEffect]],
    withheld: Sequence[str | None],
    family: Family,
    judgement: Judgement,
    level: float,
) -> list[Verdict]:
    adjust = holm if family == "primary" else benjamini_hochberg
    usable = [reason is None for reason in withheld]
    p = adjust(
        [e.effect.p_of_verdict if ok else None for (_, e), ok in zip(found, usable, strict=True)]
    )
    same = adjust(
        [_tost(e, judgement) if ok else None for (_, e), ok in zip(found, usable, strict=True)]
    )
    return [
        _verdict(effect, family, judgement, p[i], same[i], withheld[i], level)
        for i, (_, effect) in enumerate(found)
    ]


def _verdict(
    found: MetricEffect,
    family: Family,
    judgement: Judgement,
    p: float | None,
    same: float | None,
    withheld: str | None,
    level: float,
) -> Verdict:
    effect, margin = found.effect, judgement.margin(found.metric)
    if effect.identical and effect.num_units == 1:
        return Verdict("inconclusive", family, margin, reason=ONE_PAIR)
    if effect.identical:
        return Verdict("exactly equal", family, margin)
    smallest = _mde(found, judgement, level)
    if withheld is not None:
        return Verdict("withheld", family, margin, mde=smallest, reason=withheld)
    if p is None:
        return Verdict("inconclusive", family, margin, reason=effect.reason)
    word: Word = "inconclusive"
    if same is not None and same <= level:
        word = "equivalent"
    elif p <= level:
        word = _directed(judgement.direction(found.metric), (effect.estimate or 0) > 0)
    return Verdict(word, family, margin, p, same, smallest)


def _directed(direction: str, is_more: bool) -> Word:
    if direction == "neither":
        return "higher" if is_more else "lower"
    return "better" if is_more == (direction == "higher") else "worse"


def _tost(found: MetricEffect, judgement: Judgement) -> float | None:
    effect = found.effect
    bound = margin_on_scale(found, judgement.margin(found.metric))
    if effect.df is None or effect.log_estimate is None:
        return None
    if effect.se is None:  # The same change in every unit: one-sided sign flips about the nearer δ.
        return 0.5 ** (effect.df + 1) if abs(effect.log_estimate) < bound else 1.0
    return tost_p(effect.log_estimate, effect.se, effect.df, -bound, bound)


def margin_on_scale(found: MetricEffect, margin: float) -> float:
    """δ on the scale of the standard error: logs of a ratio, so that 1 + δ and 1 / (1 + δ) count
    alike."""
    return math.log1p(margin) if found.metric.is_relative else margin


def _kept(before: Settled, found: MetricEffect, judgement: Judgement) -> Verdict:
    level = judgement.level(before.look)
    return Verdict(
        before.word,
        "primary",
        judgement.margin(found.metric),
        before.p,
        before.equivalence_p,
        _mde(found, judgement, level),
        look=before.look,
    )


def _mde(found: MetricEffect, judgement: Judgement, level: float) -> float | None:
    effect: Effect = found.effect
    if effect.se is None or effect.df is None:
        return None
    smallest = mde(effect.se, effect.df, level, judgement.power)
    return math.expm1(smallest) if found.metric.is_relative else smallest


def _warnings(comparison: Comparison) -> tuple[str, ...]:
    lines = []
    if comparison.is_duplicate and comparison.texts.differing:
        lines.append("texts differ although nothing was changed: outputs are not reproducible here")
    if not comparison.is_duplicate and trips_length_guard(comparison):
        ratio = length_ratio(comparison) or 0.0
        lines.append(
            f"mean output length is {ratio * 100:.0f} % of the reference's (guard: 90 to 110 %), "
            "so its speed gets no verdict"
        )
    return tuple(lines)
