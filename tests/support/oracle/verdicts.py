"""The word of every comparison and metric, and the bounds within which its p must lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from oracle.effects import GEOMETRIC, Effect, effects_of
from oracle.metrics import ALWAYS_PRIMARY, METRICS, PRIMARY
from oracle.trial import Row, Trial
from oracle.units import cell_pairs, cut_by_budget, is_completed, row_pairs, texts_differ, units_of

PRODUCT_SWAPS = 4_999
"""Swaps that the product draws at the least."""
OWN_SWAPS, MORE_OWN_SWAPS = 4_000, 20_000
ERRORS = 4.0
"""Standard errors of two draws within which their shares must agree."""


@dataclass(frozen=True)
class P:
    """A p, and what another draw may make of it; exact where swaps are enumerated."""

    value: float
    low: float
    high: float

    def __contains__(self, other: float) -> bool:
        return self.low - 1e-9 <= other <= self.high + 1e-9

    def is_near(self, level: float) -> bool:
        return self.low < self.high and level in self


def p_of(value: float, is_exact: bool, num: int, num_product: int) -> P:
    if is_exact:
        return P(value, value, value)
    either = 1 / num + 1 / num_product
    room = ERRORS * math.sqrt(max(value, 1 / num) * (1 - value) * either) + either
    return P(value, max(0.0, value - room), min(1.0, value + room))


@dataclass(frozen=True)
class Judged:
    """What is said of a metric in a comparison."""

    effect: Effect
    word: str | None = None
    reason: str | None = None
    """Why a word is withheld, in one word of our own."""
    p: P | None = None
    same: P | None = None
    apart: P | None = None
    levels: tuple[float, float, float] = (0.05, 0.05, 0.0)
    """Of each p."""

    @property
    def is_near(self) -> bool:
        """Whether another draw of swaps could change the word."""
        found = (self.p, self.same, self.apart)
        pairs = zip(found, self.levels, strict=True)
        return any(each is not None and each.is_near(level) for each, level in pairs)


@dataclass(frozen=True)
class Comparison:
    trial: Trial
    configuration: str
    vs: str
    is_duplicate: bool
    effects: list[Effect] = field(default_factory=list)

    @property
    def main(self) -> dict[str, Effect]:
        return {e.metric.name: e for e in self.effects if e.statistic != GEOMETRIC}

    @cached_property
    def length_change(self) -> float:
        """Of the mean output in base tokens, which mean the same under every vocabulary."""
        return self.main["base_completion_tokens"].estimate or 0.0

    @cached_property
    def is_other_length(self) -> bool:
        """In the mean; and where data sets differ in it, in any of them."""
        effect = self.main["base_completion_tokens"]
        changes = [self.length_change]
        if effect.swaps is not None and effect.by_set and len(effect.by_set) > 1:
            p = effect.swaps.interaction_p(OWN_SWAPS)
            changes += effect.by_set.values() if p is not None and p <= 0.05 else []
        return not all(0.9 <= 1 + change <= 1.1 for change in changes)

    def withheld(self, effect: Effect, alarms: set[str]) -> str | None:
        metric = effect.metric
        if any(self.trial.num_missing(name) for name in (self.configuration, self.vs)):
            return "unfinished"
        if metric.is_failures:
            return None
        if reason := self._by_rows(effect):
            return reason
        if metric.is_memory:
            return "alarm" if metric.name in alarms else None
        if not metric.is_timed:
            return None
        if any(METRICS[name].is_timed and not METRICS[name].is_memory for name in alarms):
            return "alarm"
        if self._share_apart > 0.5:
            return "apart"
        return "length" if self.is_other_length else None

    def _by_rows(self, effect: Effect) -> str | None:
        pairs = row_pairs(self.trial, self.configuration, self.vs)
        sets = {key[0] for key in pairs}
        own = {name: [pair for key, pair in pairs.items() if key[0] == name] for name in sets}
        done = {name: [pair for pair in own[name] if is_completed(pair)] for name in sets}
        for name in sets:
            apart = sum((one["error"] is None) != (two["error"] is None) for one, two in own[name])
            if apart > (0.01 if apart > 1 else 0.05) * len(own[name]):
                return "failures"
        if any(done.values()) and not all(done.values()):
            return "empty sets"
        if effect.identical:
            if any((one["error"] is None) != (two["error"] is None) for one, two in pairs.values()):
                return "failures apart"
            if not any(done.values()):
                return "empty sets"
        is_cut = False
        for name in sets:
            cut = [sum(pair[i]["finish_reason"] == "length" for pair in done[name]) for i in (0, 1)]
            other = sum(texts_differ(pair) and cut_by_budget(pair) for pair in done[name])
            is_cut |= max(cut) > 0.1 * len(done[name]) and other > 0.01 * len(done[name])
        return "cut" if effect.metric.is_length and is_cut else None

    @cached_property
    def _share_apart(self) -> float:
        """Of paired cells, those that another execution ran than their reference's."""
        attempts = [
            (one.get("attempt"), other.get("attempt"))
            for one, other in cell_pairs(self.trial, self.configuration, self.vs).values()
        ]
        known = [one != other for one, other in attempts if None not in (one, other)]
        return sum(known) / len(known) if known else 0.0


def comparisons_of(trial: Trial) -> list[Comparison]:
    """Every configuration that has a reference."""
    return [
        Comparison(
            trial,
            each["name"],
            each["vs"],
            each.get("duplicate_of") is not None,
            [
                effect
                for metric in METRICS.values()
                for effect in effects_of(metric, units_of(trial, metric, each["name"], each["vs"]))
                if not (metric.is_failures and not effect.mean and not effect.reference_mean)
            ],
        )
        for each in trial.plan["configurations"]
        if each.get("vs") is not None
    ]


def level_of(analysis: Row, num_looks: int) -> float:
    """Of the look in force: what is kept for later ones is shared out again at each."""
    alpha, reserve = analysis.get("alpha", 0.05), analysis.get("reserve", 0.2)
    return float(alpha * (1 - reserve) * reserve**num_looks)


def alarms_of(comparisons: Sequence[Comparison]) -> set[str]:
    """Metrics of time and memory in which a configuration differs from itself."""
    found = [
        effect
        for each in comparisons
        if each.is_duplicate
        for effect in each.main.values()
        if effect.metric.is_timed or effect.metric.is_memory
    ]
    adjusted = holm([None if e.swaps is None else e.swaps.p(num=MORE_OWN_SWAPS) for e in found])
    pairs = zip(found, adjusted, strict=True)
    return {e.metric.name for e, p in pairs if p is not None and p < 0.01}


def judged(trial: Trial, comparisons: Sequence[Comparison]) -> dict[tuple[str, str], Judged]:
    """(configuration, metric) -> what is said of it; nothing of duplicates."""
    analysis = trial.plan.get("analysis") or {}
    primary = (*analysis.get("primary", PRIMARY), ALWAYS_PRIMARY)
    settled = {
        (each["configuration"], each["metric"]): each["word"]
        for look in trial.plan.get("looks") or ()
        for each in look["settled"]
    }
    alarms = alarms_of(comparisons)
    found: dict[tuple[str, str], Judged] = {}
    for is_primary in (True, False):
        family, kept = [], {}
        for comparison in comparisons:
            for name, effect in () if comparison.is_duplicate else comparison.main.items():
                key = comparison.configuration, name
                if (name in primary) == is_primary and key in settled and is_primary:
                    kept[key] = Judged(effect, settled[key])
                elif (name in primary) == is_primary:
                    family.append((comparison, effect))
        level = level_of(analysis, len(trial.plan.get("looks") or ()))
        level = level if is_primary else analysis.get("alpha", 0.05)
        found |= kept | _family(family, alarms, analysis, level, is_primary)
    return found


def _family(
    family: Sequence[tuple[Comparison, Effect]],
    alarms: set[str],
    analysis: Row,
    level: float,
    is_primary: bool,
) -> dict[tuple[str, str], Judged]:
    reasons = [comparison.withheld(effect, alarms) for comparison, effect in family]
    tested = [
        effect if reason is None and effect.swaps is not None else None
        for (_, effect), reason in zip(family, reasons, strict=True)
    ]
    num_tests = sum(each is not None for each in tested)
    several = any(each is not None and len(each.by_set or {}) > 1 for each in tested)
    levels = (level * 0.8, level * 0.2) if several else (level, 0.0)
    num_product = max(PRODUCT_SWAPS, math.ceil(10 * num_tests / levels[0]))
    adjust = holm if is_primary else benjamini_hochberg
    margins = analysis.get("margins", {})
    p, same, apart = [], [], []
    for effect in tested:
        if effect is None or effect.swaps is None:
            p, same, apart = [*p, None], [*same, None], [*apart, None]
            continue
        swaps, margin = effect.swaps, margins.get(effect.metric.name, effect.metric.margin)
        bound = effect.tested(margin)
        p.append(_drawn(swaps.p, swaps.is_enumerated, num_product))
        both = _drawn(
            lambda num, swaps=swaps, bound=bound: swaps.tost_p(bound, num),
            swaps.is_enumerated,
            num_product,
        )
        least = effect.bounds.tost_p(bound) if effect.bounds else 0.0
        # Shares of the other side are tried one by one, which is not exact to the last digit.
        room = 1e-3 * least
        same.append(
            P(
                max(both.value, least),
                max(both.low, least - room),
                max(both.high, min(1.0, least + room)),
            )
        )
        interaction = swaps.interaction_p(OWN_SWAPS)
        apart.append(
            None
            if interaction is None
            else p_of(interaction, swaps.is_enumerated, OWN_SWAPS, PRODUCT_SWAPS)
        )
    adjusted = [_adjusted(each, adjust) for each in (p, same, apart)]
    found = {}
    for i, (comparison, effect) in enumerate(family):
        given = [each[i] for each in adjusted]
        word = _word(comparison, effect, reasons[i], given, analysis, (*levels, level))
        found[comparison.configuration, effect.metric.name] = Judged(
            effect, word, reasons[i], *given, levels=(levels[0], level, levels[1])
        )
    return found


def _drawn(test: Callable[..., float], is_exact: bool, num_product: int) -> P:
    """By more swaps where few are as extreme, as the product does."""
    value = test(num=OWN_SWAPS)
    if is_exact or value > 30 / OWN_SWAPS:
        return p_of(value, is_exact, OWN_SWAPS, PRODUCT_SWAPS)
    value = test(num=MORE_OWN_SWAPS)
    return p_of(value, False, MORE_OWN_SWAPS, num_product if value < 15 / 4999 else PRODUCT_SWAPS)


def _word(
    comparison: Comparison,
    effect: Effect,
    reason: str | None,
    given: Sequence[P | None],
    analysis: Row,
    levels: tuple[float, float, float],
) -> str:
    p, same, apart = given
    if reason is not None:
        return "withheld"
    if effect.identical:
        return "exactly equal" if effect.num_units > 1 else "inconclusive"
    if p is None or same is None:
        return "inconclusive"
    metric = effect.metric
    differ, of_sets, equal = levels
    margin = analysis.get("margins", {}).get(metric.name, metric.margin)
    own = list((effect.by_set or {}).values())
    are_apart = apart is not None and apart.value <= of_sets
    if are_apart and own and max(own) > margin and min(own) < -margin:
        return "mixed"
    is_same = same.value <= equal
    if p.value <= differ and not is_same:
        better = analysis.get("directions", {}).get(metric.name, metric.better)
        is_more = (effect.estimate or 0.0) > 0
        if better == "neither" or (metric.is_memory and comparison.is_other_length):
            return "higher" if is_more else "lower"
        return "better" if is_more == (better == "higher") else "worse"
    if are_apart and max(map(abs, own), default=0.0) > margin:
        return "mixed"
    return "equivalent" if is_same else "inconclusive"


# --- several tests at once -----------------------------------------------------------------------


def _adjusted(
    found: Sequence[P | None], adjust: Callable[..., list[float | None]]
) -> list[P | None]:
    """A family's p, and their bounds: to adjust keeps the order of what is adjusted."""
    values, lows, highs = (
        adjust([None if p is None else getattr(p, name) for p in found])
        for name in ("value", "low", "high")
    )
    return [
        None if v is None or low is None or high is None else P(v, low, high)
        for v, low, high in zip(values, lows, highs, strict=True)
    ]


def holm(found: Sequence[float | None]) -> list[float | None]:
    """Of p in rising order: the largest so far of p times the number of those not yet passed."""
    adjusted: list[float | None] = [None] * len(found)
    order = _rising(found)
    so_far = 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * (found[place] or 0.0)))
        adjusted[place] = so_far
    return adjusted


def benjamini_hochberg(found: Sequence[float | None]) -> list[float | None]:
    """Of p in rising order: the smallest from here on of p times all of them over its rank."""
    adjusted: list[float | None] = [None] * len(found)
    order = _rising(found)
    so_far = 1.0
    for rank, place in reversed(list(enumerate(order, 1))):
        so_far = min(so_far, len(order) * (found[place] or 0.0) / rank)
        adjusted[place] = so_far
    return adjusted


def _rising(found: Sequence[float | None]) -> list[int]:
    known = [place for place, p in enumerate(found) if p is not None]
    return sorted(known, key=lambda place: found[place] or 0.0)
