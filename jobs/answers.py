"""What a comparison says, in words and short of a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.comparison import Comparison, MetricEffect
from jobs.verdicts import Judged
from jobs.wording import interval_text, number_text, percent_text, plural

_MOST_NAMES = 3
"""Configurations that the one line names; of more it gives their number."""


def headline_answer(judged: Sequence[Judged]) -> str:
    """Did anything change? Texts, then time, over all comparisons, in one line."""
    compared = [j.comparison for j in judged if j.comparison.texts.compared]
    if not compared:
        return "Did anything change? There is nothing to compare yet."
    differing = [c.configuration for c in compared if c.texts.differing]
    changed: dict[str, float] = {}
    others: dict[str, list[str]] = {}
    for each in judged:
        verdict, effect = each.verdicts.get("e2e_s"), each.comparison.effect("e2e_s")
        if each.comparison.is_duplicate or not each.comparison.texts.compared:
            continue
        if verdict is None or effect is None or effect.includes_zero is None:
            others.setdefault("time undecided for", []).append(each.comparison.configuration)
        elif verdict.word in ("better", "worse", "higher", "lower"):
            changed[each.comparison.configuration] = effect.estimate or 0.0
        else:
            said = _OTHERWISE.get(verdict.word, "no difference in time shown for")
            others.setdefault(said, []).append(each.comparison.configuration)
    parts = [f"texts differ in {_named(differing)}" if differing else "no text differs"]
    parts += [f"time per completion {_with_changes(changed)}"] if changed else []
    parts += [f"{said} {_named(names)}" for said, names in others.items()]
    return f"Did anything change? {parts[0][0].upper()}{'; '.join(parts)[1:]}."


_OTHERWISE = {
    "withheld": "times do not compare for",
    "equivalent": "time is equivalent for",
    "exactly equal": "time is exactly equal for",
}


def _named(names: Sequence[str]) -> str:
    """The names where a line holds them, else their number."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)} configurations"


def _with_changes(changed: dict[str, float]) -> str:
    if len(changed) <= _MOST_NAMES:
        return ", ".join(f"{name} {percent_text(change)}" for name, change in changed.items())
    least, most = (percent_text(pick(changed.values())) for pick in (min, max))
    return f"changed in {len(changed)} configurations, by {least} to {most}"


def statement(found: MetricEffect) -> str:
    """What the numbers say, short of a verdict."""
    effect = found.effect
    if effect.identical:
        return "exactly the same"
    if effect.reason is not None:
        return f"no interval: {effect.reason}"
    if effect.includes_zero:
        return "interval includes 0: no difference shown"
    return "higher" if (effect.estimate or 0) > 0 else "lower"


def answer(comparison: Comparison) -> str:
    """The trial's question for this comparison, answered in a sentence or two."""
    start = f"{comparison.configuration} against {comparison.vs}: "
    if comparison.is_duplicate:
        start = f"{comparison.configuration} ({comparison.vs} run a second time): "
    parts = [_texts_sentence(comparison)]
    for name, noun in (
        ("completion_tokens", "completion tokens"),
        ("e2e_s", "time per completion"),
        ("completion_bytes_per_s", "bytes/s"),
        ("kv_committed_peak_bytes", _memory_noun(comparison)),
    ):
        found = next((e for e in comparison.effects if e.metric.name == name), None)
        if found is None or found.effect.estimate is None:
            continue
        # Equal texts already say that tokens are equal.
        if not (name == "completion_tokens" and found.effect.identical):
            parts.append(f"{noun} {effect_phrase(found)}")
    return start + "; ".join(parts) + "."


def _memory_noun(comparison: Comparison) -> str:
    """What memory it is, and whose: a saving is nothing without the name of its rival."""
    own, rival = comparison.caches
    if own == rival:
        return f"KV memory held at the peak ({own} cache)"
    return f"KV memory held at the peak ({own} against a {rival} cache)"


def _texts_sentence(comparison: Comparison) -> str:
    differing, compared = comparison.texts.differing, comparison.texts.compared
    if compared == 0:
        return "nothing to compare yet"
    verb = "differs" if compared == 1 else "differ"
    counted = f"{differing:,} of {plural(compared, 'text')} {verb}"
    if differing and comparison.is_duplicate:
        return f"{counted}, although nothing was changed: outputs are not reproducible here"
    tokens = comparison.effect("completion_tokens")
    if differing == 0 and tokens is not None and tokens.identical:
        return f"{counted}: tokens are exactly the same"
    return counted


def effect_phrase(found: MetricEffect) -> str:
    """A change with its interval, or why it has none."""
    effect = found.effect
    if effect.identical:
        return "exactly the same"
    relative = found.metric.is_relative
    text = percent_text(effect.estimate) if relative else number_text(effect.estimate, sign=True)
    if effect.is_uniform:
        return f"{text} in every unit"
    if effect.low is None:
        return f"{text} (no interval: {effect.reason})"
    shown = ", no difference shown" if effect.includes_zero else ""
    return f"{text} {interval_text(effect, relative=relative)}{shown}"
