"""Where a report says something else than the oracle.

Exact numbers agree to 1e-9, ends of intervals to 1e-8. Of what is drawn, a share of swaps agrees
within four standard errors of two draws, and an interval ends where the oracle's own p is 5 %
within that error, and beyond which it is no larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oracle.bounded import Bounds
from oracle.effects import GEOMETRIC, Effect
from oracle.swaps import ALPHA, Swaps
from oracle.trial import Trial
from oracle.verdicts import (
    OWN_SWAPS,
    PRODUCT_SWAPS,
    Comparison,
    Judged,
    P,
    comparisons_of,
    judged,
    p_of,
)

EXACT = 1e-9
END = 1e-8
"""Of itself or half the interval, for an end where swaps are enumerated. The product stops at 1e-11
of its step; its variances are differences of sums, which costs digits beside one large cluster."""
LIMIT = 1e-4
"""Of an end that bounds decide, which are looked for at many shares."""
END_SWAPS = 2_000
"""Drawn for what p is at an end."""
SIGNS = {"low": -1.0, "high": 1.0}
WITHHELD = {
    "unfinished": "cells are there",
    "failures": "what completed does not compare",
    "failures apart": "failed on one side only",
    "empty sets": "without a single completed pair",
    "cut": "the length budget ended",
    "alarm": "the same configuration run twice differs in",
    "apart": "of its cells were run apart",
    "length": "beyond the guard of 10 %",
}
"""What the report says for each reason."""


class Fault(NamedTuple):
    configuration: str
    metric: str
    """With its statistic."""
    problem: str


@dataclass
class Agreement:
    """What was compared, and what does not agree."""

    faults: list[Fault] = field(default_factory=list)
    num_effects: int = 0
    num_exact: int = 0
    """Effects whose swaps are enumerated."""
    num_words: int = 0
    words_near: list[Fault] = field(default_factory=list)
    """Words that differ, and would with another draw of swaps too."""


def agreement(trial: Trial, report: dict[str, Any]) -> Agreement:
    """The oracle's answers beside those of `optrial report --json`."""
    found = Agreement()
    comparisons = comparisons_of(trial)
    words = judged(trial, comparisons)
    reported = {each["configuration"]: each["effects"] for each in report["comparisons"]}
    if reported.keys() != {each.configuration for each in comparisons}:
        found.faults.append(Fault("", "", f"there are comparisons of {sorted(reported)}"))
    for comparison in comparisons:
        _compare(comparison, words, reported.get(comparison.configuration, []), found)
    return found


def _compare(
    comparison: Comparison,
    words: dict[tuple[str, str], Judged],
    reported: list[dict[str, Any]],
    found: Agreement,
) -> None:
    name = comparison.configuration
    rows = {
        (row["metric"], row["statistic"]): row
        for row in reported
        if row["statistic"] not in ("p95", "p99")  # of which nothing is judged
    }
    if rows.keys() != {(e.metric.name, e.statistic) for e in comparison.effects}:
        found.faults.append(Fault(name, "", f"there are {sorted(rows)}"))
        return
    for effect in comparison.effects:
        row = rows[effect.metric.name, effect.statistic]
        about = f"{effect.metric.name}, {effect.statistic}"
        found.num_effects += 1
        found.num_exact += effect.swaps is not None and effect.swaps.is_enumerated
        faults = [*_effect_faults(effect, row)]
        word = words.get((name, effect.metric.name))
        if effect.statistic != GEOMETRIC and word is not None:
            found.num_words += 1
            faults += _word_faults(word, row)
            if row["verdict"] != word.word:
                said = f"{row['verdict']} is {word.word}: {word.p}, {word.same}, {word.apart}"
                if word.is_near:
                    found.words_near.append(Fault(name, about, said))
                else:
                    faults.append(said)
        elif row["verdict"] is not None:
            faults.append(f"verdict {row['verdict']} is None")
        found.faults += [Fault(name, about, fault) for fault in faults]


def _effect_faults(effect: Effect, row: dict[str, Any]) -> Iterator[str]:
    for name in ("estimate", "reference_mean", "mean", "se"):
        yield from _unequal(name, getattr(effect, name), row[name])
    for name in ("num_units", "num_clusters", "num_left_out", "identical"):
        if getattr(effect, name) != row[name]:
            yield f"{name} {row[name]} is {getattr(effect, name)}"
    own, given = effect.by_set or {}, row["by_set"] or {}
    if own.keys() != given.keys():
        yield f"by_set {given} is {own}"
    for name in own.keys() & given.keys():
        yield from _unequal(f"by_set {name}", own[name], given[name])
    if effect.identical:
        yield from (f"{end} {row[end]} is 0" for end in ("low", "high") if row[end] != 0)
    elif effect.swaps is None:
        for name in ("low", "high", "p"):
            yield from _unequal(name, None, row[name])
    else:
        yield from _p_faults(effect.swaps, row)
        yield from _interval_faults(effect, effect.swaps, row)


def _p_faults(swaps: Swaps, row: dict[str, Any]) -> Iterator[str]:
    found = {"p": swaps.p(num=OWN_SWAPS), "interaction_p": swaps.interaction_p(OWN_SWAPS)}
    for name, value in found.items():
        if value is None or row[name] is None:
            yield from _unequal(name, value, row[name])
        elif row[name] not in _p(swaps, value):
            yield f"{name} {row[name]} is {_p(swaps, value)}"


def _interval_faults(effect: Effect, swaps: Swaps, row: dict[str, Any]) -> Iterator[str]:
    """Exactly where every swap is tried; else by what p is at, and beyond, the ends."""
    if row["low"] is None or row["high"] is None:
        if not any(map(swaps.is_unbounded, SIGNS.values())):
            yield f"low {row['low']} and high {row['high']} are {_ends(effect, swaps)}"
        return
    middle, usual = swaps.estimate(), p_of(ALPHA, False, END_SWAPS, PRODUCT_SWAPS)
    for name, sign in SIGNS.items():
        end = effect.tested(row[name])
        half = abs(end - middle)
        if effect.bounds is not None:
            is_near = row["p"] <= ALPHA and sign * middle < 0
            limit = _limit(effect.bounds, swaps, sign, is_near)
            if abs(end - limit) <= LIMIT:
                beyond = swaps.p(end + sign * 2 * LIMIT, END_SWAPS)
                if beyond > (ALPHA if swaps.is_enumerated else usual.high) and not is_near:
                    yield f"{name} {row[name]}: p is {beyond} beyond"
                continue
            if sign * (end - limit) < 0:
                yield f"{name} {row[name]} is {limit}, or farther"
                continue
        if swaps.is_enumerated:
            if not swaps.is_end(sign, end, END * max(abs(end), half, 1e-3 * END)):
                yield f"{name} {row[name]!r} is one of {_ends(effect, swaps)}"
            continue
        at, farther = (
            swaps.p(place, END_SWAPS) for place in (end, end + sign * max(1e-6, 0.5 * half))
        )
        if at < usual.low or (at > usual.high and not _jumps(swaps, end, sign)):
            yield f"{name} {row[name]}: p is {at} there"
        if farther > usual.high:
            yield f"{name} {row[name]}: p is {farther} half an interval farther"


def _limit(bounds: Bounds, swaps: Swaps, sign: float, is_near: bool) -> float:
    """Where bounds have an end; one that swaps have on the effect's side of 0 stays there."""
    if not is_near:
        return bounds.end(sign)
    return sign * min(sign * bounds.near(sign), -1e-6)


def _ends(effect: Effect, swaps: Swaps) -> list[float]:
    return [effect.shown(swaps.end(sign)) for sign in SIGNS.values()]


def _jumps(swaps: Swaps, end: float, sign: float) -> bool:
    """Whether p falls below 5 % right there, as where every cluster has the same change."""
    return swaps.p(end + sign * 1e-7, END_SWAPS) < ALPHA


def _word_faults(word: Judged, row: dict[str, Any]) -> Iterator[str]:
    for name, own in (("p_adjusted", word.p), ("equivalence_p_adjusted", word.same)):
        given = row[name]
        if row["look"] is not None:
            continue  # of an earlier look, at its data
        if own is None or given is None:
            if own is not None or given is not None:
                yield f"{name} {given} is {own}"
        elif given not in own:
            yield f"{name} {given} is {own}"
    if word.reason is not None and WITHHELD[word.reason] not in (row["verdict_reason"] or ""):
        yield f"withheld for {row['verdict_reason']!r}, and not for {word.reason}"


def _p(swaps: Swaps, value: float) -> P:
    return p_of(value, swaps.is_enumerated, OWN_SWAPS, PRODUCT_SWAPS)


def _unequal(name: str, own: float | None, given: float | None) -> Iterator[str]:
    if own is None or given is None:
        if own is not None or given is not None:
            yield f"{name} {given} is {own}"
    elif not math.isclose(own, given, rel_tol=EXACT, abs_tol=EXACT * 1e-3):
        yield f"{name} {given!r} is {own!r}"
