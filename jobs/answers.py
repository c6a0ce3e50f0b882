"""What a comparison says, in words and short of a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jobs.comparison import Comparison, MetricEffect, main_effects, metrics_of
from jobs.judgement import Judgement
from jobs.metrics import Metric, change_of
from jobs.verdicts import Judged, Verdict
from jobs.wording import interval_text, plural

DIRECTED = frozenset({"better", "worse", "higher", "lower"})
"""Verdicts that say that there is a difference."""
_REPEATED = ("completion_tokens", "e2e_s", "completion_bytes_per_s", "kv_committed_peak_bytes")
"""What is said of a configuration that ran twice."""
_MOST_NAMES = 3
"""Configurations that the one line names; of more it gives their number."""


def headline_answer(judged: Sequence[Judged], judgement: Judgement) -> str:
    """Did anything change? What primary verdicts say; quality first where it is worse."""
    arms = [j for j in judged if not j.comparison.is_duplicate and j.comparison.texts.compared]
    if not arms:
        return "Did anything change? There is nothing to compare yet."
    worse, parts = [], []
    metrics = metrics_of(each.comparison for each in arms)
    for metric in filter(judgement.is_primary, metrics):
        for word in sorted(DIRECTED):
            said = _said(arms, metric, word)
            if said and _is_first(metric) and word == "worse":
                worse.append(said)
            elif said:
                parts.append(said)
    compared = [j.comparison for j in judged if j.comparison.texts.compared]
    differing = [c.configuration for c in compared if c.texts.differing]
    texts = f"texts differ in {_named(differing)}" if differing else "no text differs"
    primary = [v for j in arms for v in j.verdicts.values() if v.family == "primary"]
    open_ = Counter(str(verdict.word) for verdict in primary)
    others = [
        f"{plural(open_[word], 'verdict')} {noun}"
        for word, noun in (("mixed", "mixed"), ("inconclusive", "open"), ("withheld", "withheld"))
        if open_[word]
    ]
    text = "; ".join([*worse, texts, *parts, *others])
    if not text.startswith(tuple(m.name for m in metrics if m.source == "score")):
        text = text[0].upper() + text[1:]  # a score's name is as it is written
    return f"Did anything change? {text}."


def _is_first(metric: Metric) -> bool:
    """Whether nothing else matters where this is worse: what is written, or that it is at all."""
    return metric.is_quality or metric.source == "failure"


def _said(judged: Sequence[Judged], metric: Metric, word: str) -> str | None:
    """The configurations of which a verdict says this of a metric, with their changes."""
    changed = {}
    for each in judged:
        verdict, effect = each.verdicts.get(metric.name), each.comparison.effect(metric.name)
        if verdict is not None and verdict.word == word and effect is not None:
            changed[each.comparison.configuration] = effect.estimate or 0.0
    label = metric.label.removeprefix("· ")
    return f"{label} {word}: {_with_changes(changed, metric)}" if changed else None


def _named(names: Sequence[str]) -> str:
    """The names where a line holds them, else their number."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)} configurations"


def _with_changes(changed: dict[str, float], metric: Metric) -> str:
    if len(changed) <= _MOST_NAMES:
        return ", ".join(f"{name} {change_of(metric, each)}" for name, each in changed.items())
    least, most = (change_of(metric, pick(changed.values())) for pick in (min, max))
    return f"{len(changed)} configurations, by {least} to {most}"


def answer(judged: Judged, judgement: Judgement) -> str:
    """The trial's question for this comparison, answered in a sentence or two.

    Of primary metrics, with changes only where a verdict says that there is one; of an A/A pair,
    which has no verdicts, what was measured.
    """
    comparison = judged.comparison
    parts = [_texts_sentence(comparison)]
    if comparison.is_duplicate:
        start = f"{comparison.configuration} ({comparison.vs} run a second time): "
        names = list(_REPEATED)
    else:
        start = f"{comparison.configuration} against {comparison.vs}: "
        metrics = filter(judgement.is_primary, metrics_of([comparison]))
        primary = sorted(metrics, key=lambda m: not _is_first(m))
        names = [m.name for m in primary]
    for name in names:
        found = next((e for e in main_effects(comparison) if e.metric.name == name), None)
        if found is None or found.effect.estimate is None or not found.is_shown:
            continue
        # Equal texts already say that tokens are equal.
        if name == "completion_tokens" and found.effect.identical:
            continue
        noun = _noun(comparison, found.metric)
        parts.append(f"{noun} {_said_of(found, judged.verdicts.get(name))}")
    return start + "; ".join(parts) + "."


def _said_of(found: MetricEffect, verdict: Verdict | None) -> str:
    if verdict is None:
        return effect_phrase(found)
    if verdict.word in DIRECTED:
        return f"{verdict.word}, {effect_phrase(found, verdict)}"
    if verdict.word == "exactly equal":
        return "exactly the same"
    if verdict.word in ("withheld", "mixed"):
        return verdict.word
    if verdict.word == "equivalent":
        return verdict_text(found.metric, verdict)
    return "no difference shown"


def _noun(comparison: Comparison, metric: Metric) -> str:
    if metric.name == "kv_committed_peak_bytes":
        return _memory_noun(comparison)
    return metric.label.removeprefix("· ")


def verdict_text(metric: Metric, verdict: Verdict) -> str:
    """A verdict with its margin or its reason."""
    margin = f"±{verdict.margin:.2g}" if not metric.is_relative else f"±{verdict.margin * 100:g} %"
    if verdict.word == "equivalent":
        return f"equivalent within {margin}"
    if verdict.word == "withheld":
        return f"withheld, because {verdict.reason}"
    if verdict.word == "mixed":
        return f"mixed: {verdict.reason}"
    if verdict.word == "inconclusive":
        if verdict.reason is not None:
            return f"inconclusive: {verdict.reason}"
        return f"inconclusive: neither a difference nor equality within {margin} is shown"
    return verdict.word


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


def effect_phrase(found: MetricEffect, verdict: Verdict | None = None) -> str:
    """A change with its interval, or why it has none; and that it is none where nothing says so."""
    effect = found.effect
    if effect.identical:
        return "exactly the same"
    relative = found.metric.is_relative
    text = change_of(found.metric, effect.estimate)
    is_shown = not effect.includes_zero
    if verdict is not None:
        is_shown = verdict.word in DIRECTED
    shown = "" if is_shown else ", no difference shown"
    if effect.is_uniform:
        return f"{text} in every unit"
    if effect.low is None:
        return f"{text} (no interval: {effect.reason})"
    return f"{text} {interval_text(effect, relative=relative)}{shown}"
