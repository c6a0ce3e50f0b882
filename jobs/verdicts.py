"""Verdicts: better, worse, equivalent within ±δ, or inconclusive, with error rates kept.

A difference is claimed where its p (by swapping the sides of clusters: `jobs.analysis.swaps`),
adjusted over its family, is at most α; equivalence where the p of two one-sided tests (TOST) at ±δ
by the same swaps, adjusted over its family too, is. The primary metrics of all comparisons are one
family (Holm); the others are exploratory, and their rate of false discoveries is kept
(Benjamini-Hochberg). What is exactly equal in every pair needs no test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.analysis.effects import Effect
from jobs.analysis.multiplicity import benjamini_hochberg, holm
from jobs.analysis.power import mde
from jobs.analysis.swaps import NUM_SWAPS, fewest_clusters
from jobs.comparison import Comparison, MetricEffect
from jobs.judgement import Judgement
from jobs.looks import Look, Settled, Word, settled
from jobs.metrics import METRICS
from jobs.wording import plural

Family = Literal["primary", "exploratory"]
ALARM_LEVEL = 0.01
"""Adjusted p of the A/A pair below which its difference of nothing is an alarm."""
MOST_APART = 0.5
"""Share of cells run apart from their reference's from which on times are not compared."""
FAILURE_MARGIN = 0.01
"""Share of rows by which two sides' failures may differ: beyond it what completed is not the same
prompts, and nothing compares."""
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


def _withheld(comparison: Comparison, found: MetricEffect, raised: Sequence[Alarm]) -> str | None:
    """Why a metric gets no verdict here, whatever its numbers."""
    metric, rows = found.metric, comparison.rows
    if abs(rows.num_failed - rows.num_failed_reference) > FAILURE_MARGIN * rows.num_pairs:
        return (
            f"{rows.num_failed:,} of {rows.num_pairs:,} rows failed, and "
            f"{rows.num_failed_reference:,} of {comparison.vs}'s: what completed does not compare"
        )
    if found.effect.identical and rows.num_failed_apart:
        return f"{plural(rows.num_failed_apart, 'row')} failed on one side only"
    if found.effect.identical and rows.num_empty_sets:
        return f"{plural(rows.num_empty_sets, 'data set')} without a single completed pair"
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
    tested = [
        found[i][1] if reason is None and not found[i][1].effect.identical else None
        for i, reason in enumerate(withheld)
    ]
    num_tests = sum(e is not None and e.effect.test is not None for e in tested)
    num_swaps = swaps_for(level, num_tests)
    p = adjust([None if e is None else _p(e.effect, num_swaps) for e in tested])
    same = adjust([None if e is None else _tost(e, judgement, num_swaps) for e in tested])
    return [
        _verdict(effect, family, judgement, p[i], same[i], withheld[i], level, num_tests)
        for i, (_, effect) in enumerate(found)
    ]


def swaps_for(level: float, num_tests: int) -> int:
    """So many that the least p of a draw, times the number of tests, is a quarter of the level."""
    return max(NUM_SWAPS, math.ceil(4 * num_tests / level))


def _p(effect: Effect, num_swaps: int) -> float | None:
    """By more swaps where the usual draw ended at its floor, and so says too little."""
    if effect.test is None or effect.p is None or num_swaps <= NUM_SWAPS:
        return effect.p
    return effect.test.p(0.0, num_swaps) if effect.p <= 10 / NUM_SWAPS else effect.p


def _verdict(
    found: MetricEffect,
    family: Family,
    judgement: Judgement,
    p: float | None,
    same: float | None,
    withheld: str | None,
    level: float,
    num_tests: int,
) -> Verdict:
    effect, margin = found.effect, judgement.margin(found.metric)
    if effect.identical and withheld is None:
        if effect.num_units == 1:
            return Verdict("inconclusive", family, margin, reason=ONE_PAIR)
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
    few = _too_few(effect, level, num_tests) if word == "inconclusive" else None
    return Verdict(word, family, margin, p, same, smallest, few)


def _too_few(effect: Effect, level: float, num_tests: int) -> str | None:
    """Whether no difference could have been found here, however large."""
    fewest = fewest_clusters(level, num_tests)
    if effect.num_clusters >= fewest:
        return None
    return (
        f"{effect.num_clusters} units can show no difference among {num_tests} answers, however "
        f"large: at least {fewest} are needed"
    )


def _directed(direction: str, is_more: bool) -> Word:
    if direction == "neither":
        return "higher" if is_more else "lower"
    return "better" if is_more == (direction == "higher") else "worse"


def _tost(found: MetricEffect, judgement: Judgement, num_swaps: int = NUM_SWAPS) -> float | None:
    """The larger p of two one-sided tests: Schuirmann, J Pharmacokin Biopharm 15 (1987)."""
    test = found.effect.test
    if test is None:
        return None
    bound = margin_on_scale(found, judgement.margin(found.metric))
    p = max(test.p_below(bound), test.p_above(-bound))
    if num_swaps > NUM_SWAPS and p <= 10 / NUM_SWAPS:
        p = max(test.p_below(bound, num_swaps), test.p_above(-bound, num_swaps))
    return p


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
