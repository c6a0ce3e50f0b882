"""Verdicts: better, worse, equivalent within ±δ, mixed or inconclusive, with error rates kept.

A difference is claimed where its p (by swapping the sides of clusters:
`jobs.stats.permutation.swaps`), adjusted over its family, is at most α; equivalence where the p of
two one-sided tests (TOST) at ±δ by the same swaps, adjusted over its family too, is. The primary
metrics of all comparisons are one family (Holm); the others are exploratory, and their rate of
false discoveries is kept (Benjamini-Hochberg). What is exactly equal in every pair needs no test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from jobs.analysis.comparison import Comparison, MetricEffect, main_effects
from jobs.analysis.guards.withholding import (
    alarms,
    faulty,
    guarded_length,
    trips_length_guard,
    why_withheld,
)
from jobs.analysis.looks import Look, Settled, Word, judged_anew, settled
from jobs.formatting import number_text, percent_text
from jobs.spec.analysis_plan import Judgement
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.swaps import MOST_SWAPS, NUM_SWAPS, fewest_clusters
from jobs.stats.power import mde
from jobs.stats.significance import benjamini_hochberg, holm

Family = Literal["primary", "exploratory"]
ONE_PAIR = "equal in the one pair that there is, which shows no equality"


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
    judged_anew: Word | None = None
    """What an earlier look had said of it by a test that is no longer trusted."""

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


def judge(
    comparisons: Sequence[Comparison],
    judgement: Judgement,
    looks: Sequence[Look] = (),
    *,
    copies: Mapping[str, str] | None = None,
    unfinished: Mapping[str, str] | None = None,
) -> list[Judged]:
    """Verdicts of all comparisons, A/A pairs without any; one call, as the families span them.

    What an earlier look decided stays so: only what it left open is judged again, at this look's
    share of α. `copies` are configurations whose outputs are by declaration those of another, which
    is tested for both; `unfinished` says why some have no verdict yet.
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
            if judgement.is_primary(effect.metric) == (family == "primary")
            if family != "primary" or (comparison.configuration, effect.metric.name) not in decided
        ]
        level = judgement.level(len(looks) + 1) if family == "primary" else judgement.alpha
        withheld = [
            (unfinished or {}).get(comparisons[index].configuration)
            or why_withheld(comparisons[index], effect, raised)
            for index, effect in found
        ]
        stated = _Stated(judgement, family, level, copies or {})
        for (index, effect), verdict in zip(
            found, _family(found, comparisons, withheld, stated), strict=True
        ):
            verdicts[index, effect.metric.name] = verdict
    for index, comparison in enumerate(comparisons):
        for effect in main_effects(comparison):
            before = decided.get((comparison.configuration, effect.metric.name))
            if before is not None and not comparison.is_duplicate:
                verdicts[index, effect.metric.name] = _kept(
                    before, effect, judgement, faulty(comparison, effect, raised)
                )
    again = judged_anew(looks)
    return [
        Judged(
            comparison,
            {
                metric: _marked(v, again.get((comparison.configuration, metric)))
                for (place, metric), v in verdicts.items()
                if place == index
            },
            _warnings(comparison),
        )
        for index, comparison in enumerate(comparisons)
    ]


def _marked(verdict: Verdict, before: Settled | None) -> Verdict:
    if before is None or verdict.look is not None:
        return verdict
    return replace(verdict, judged_anew=before.word)


class _Stated(NamedTuple):
    """What a family is judged by."""

    judgement: Judgement
    family: Family
    level: float
    copies: Mapping[str, str]


def _family(
    found: Sequence[tuple[int, MetricEffect]],
    comparisons: Sequence[Comparison],
    withheld: Sequence[str | None],
    stated: _Stated,
) -> list[Verdict]:
    judgement, level = stated.judgement, stated.level
    adjust = holm if stated.family == "primary" else benjamini_hochberg
    tested = [
        found[i][1] if reason is None and not found[i][1].effect.identical else None
        for i, reason in enumerate(withheld)
    ]
    first = _originals(found, tested, comparisons, stated.copies)
    own = [each if first[i] == i else None for i, each in enumerate(tested)]
    num_tests = sum(e is not None and e.effect.test is not None for e in own)
    has_sets = any(e is not None and len(e.effect.by_set or {}) > 1 for e in own)
    levels = _Levels(*judgement.shared(level, has_sets=has_sets), level)
    num_swaps = swaps_for(levels.differ, num_tests)
    p = adjust([None if e is None else _p(e.effect, num_swaps) for e in own])
    same = adjust([None if e is None else _tost(e, judgement, num_swaps) for e in own])
    apart = adjust([None if e is None else e.effect.interaction_p for e in own])
    return [
        _verdict(
            effect,
            _Grounds(
                p[first[i]],
                same[first[i]],
                apart[first[i]],
                withheld[i],
                trips_length_guard(comparisons[index]),
            ),
            stated.family,
            judgement,
            levels,
            num_tests,
        )
        for i, (index, effect) in enumerate(found)
    ]


def _originals(
    found: Sequence[tuple[int, MetricEffect]],
    tested: Sequence[MetricEffect | None],
    comparisons: Sequence[Comparison],
    copies: Mapping[str, str],
) -> list[int]:
    """Of each test the place of the one that it repeats; its own where it is one itself.

    A declared copy repeats what is of rows (not of time or memory), and only where every number of
    the two effects is the same.
    """
    places = {
        (comparisons[index].configuration, effect.metric.name): i
        for i, (index, effect) in enumerate(found)
    }
    first = []
    for i, (index, effect) in enumerate(found):
        other = copies.get(comparisons[index].configuration, "")
        place = places.get((other, effect.metric.name), i)
        is_of_rows = not (effect.metric.is_timed or effect.metric.is_memory)
        original = tested[place]
        is_copy = is_of_rows and original is not None and original.effect == effect.effect
        first.append(place if is_copy else i)
    return first


class _Levels(NamedTuple):
    """What each p of a family is held against."""

    differ: float
    apart: float
    """That data sets differ; it and `differ` are both errors of saying a difference."""
    same: float
    """Equality where there is none is an error of its own."""


class _Grounds(NamedTuple):
    """What a verdict is made of; every p is adjusted."""

    p: float | None
    same: float | None
    """Of equivalence."""
    apart: float | None
    """That the data sets have the same effect."""
    withheld: str | None
    is_other_length: bool
    """Whether outputs are so much shorter or longer that less memory is not better by itself."""


def swaps_for(level: float, num_tests: int) -> int:
    """So many that the least p of a draw, times the number of tests, is a tenth of the level."""
    return max(NUM_SWAPS, min(MOST_SWAPS, math.ceil(10 * num_tests / level)))


def _p(effect: Effect, num_swaps: int) -> float | None:
    """By more swaps where the usual draw ended at its floor, and so says too little."""
    if effect.test is None or effect.p is None or num_swaps <= NUM_SWAPS:
        return effect.p
    return effect.test.p(0.0, num_swaps) if effect.p <= 20 / NUM_SWAPS else effect.p


def _verdict(
    found: MetricEffect,
    grounds: _Grounds,
    family: Family,
    judgement: Judgement,
    levels: _Levels,
    num_tests: int,
) -> Verdict:
    effect, margin = found.effect, judgement.margin(found.metric)
    if effect.identical and grounds.withheld is None:
        if effect.num_units == 1:
            return Verdict("inconclusive", family, margin, reason=ONE_PAIR)
        return Verdict("exactly equal", family, margin)
    smallest = _mde(found, judgement, levels.differ)
    if grounds.withheld is not None:
        return Verdict("withheld", family, margin, mde=smallest, reason=grounds.withheld)
    if grounds.p is None:
        return Verdict("inconclusive", family, margin, reason=effect.reason)
    word, reason = _word(found, grounds, judgement, levels), None
    if word == "mixed":
        reason = f"the data sets differ: {_by_set_text(found)}"
    elif word == "inconclusive":
        reason = _too_few(effect, levels.differ, num_tests)
    return Verdict(word, family, margin, grounds.p, grounds.same, smallest, reason)


def _word(found: MetricEffect, grounds: _Grounds, judgement: Judgement, levels: _Levels) -> Word:
    is_same = grounds.same is not None and grounds.same <= levels.same
    are_apart = grounds.apart is not None and grounds.apart <= levels.apart
    if are_apart and _opposed(found, judgement):
        return "mixed"  # The mean of a gain and a loss is neither.
    if grounds.p is not None and grounds.p <= levels.differ and not is_same:
        direction = judgement.direction(found.metric)
        if found.metric.is_memory and grounds.is_other_length:
            direction = "neither"
        return _directed(direction, (found.effect.estimate or 0) > 0)
    if are_apart and _matters(found, judgement):
        return "mixed"
    return "equivalent" if is_same else "inconclusive"


def _opposed(found: MetricEffect, judgement: Judgement) -> bool:
    """Whether one data set gains, and another loses, more than what does not matter."""
    margin = judgement.margin(found.metric)
    own = (found.effect.by_set or {}).values()
    return max(own, default=0.0) > margin and min(own, default=0.0) < -margin


def _matters(found: MetricEffect, judgement: Judgement) -> bool:
    """Whether some data set's own effect is larger than what does not matter."""
    margin = judgement.margin(found.metric)
    return max(map(abs, (found.effect.by_set or {}).values()), default=0.0) > margin


def _by_set_text(found: MetricEffect) -> str:
    show = percent_text if found.metric.is_relative else partial(number_text, sign=True)
    return ", ".join(f"{name} {show(value)}" for name, value in (found.effect.by_set or {}).items())


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
    if num_swaps > NUM_SWAPS and p <= 20 / NUM_SWAPS:
        p = max(test.p_below(bound, num_swaps), test.p_above(-bound, num_swaps))
    return p


def margin_on_scale(found: MetricEffect, margin: float) -> float:
    """δ on the scale of the standard error: logs of a ratio, so that 1 + δ and 1 / (1 + δ) count
    alike."""
    return math.log1p(margin) if found.metric.is_relative else margin


def _kept(before: Settled, found: MetricEffect, judgement: Judgement, fault: str | None) -> Verdict:
    """What an earlier look decided, unless the data that have come since show a fault."""
    level = judgement.level(before.look)
    if fault is not None:
        margin, reason = judgement.margin(found.metric), f"{fault} (an earlier look: {before.word})"
        return Verdict("withheld", "primary", margin, reason=reason, look=before.look)
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
        ratio, name = guarded_length(comparison) or (1.0, None)
        of_set = "" if name is None else f" of {name}"
        lines.append(
            f"mean output length{of_set} is {ratio * 100:.0f} % of the reference's (guard: 90 to "
            "110 %), so its speed gets no verdict"
        )
    return tuple(lines)
