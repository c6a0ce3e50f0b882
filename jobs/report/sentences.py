"""What a comparison says, in words and short of a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.analysis.comparison import Comparison, MetricEffect, main_effects, metrics_of
from jobs.analysis.findings import Findings
from jobs.analysis.standing import DIRECTED, Standing, standing, why_texts_are_not_equal
from jobs.analysis.verdicts import Judged, Verdict
from jobs.formatting import in_pairs, interval_text, plural
from jobs.spec.metrics import Metric, change_of

NO_VERDICT = "There is no verdict yet: no configuration has a measured difference from a reference."


def headline(trial: dict[str, Any]) -> list[str]:
    """Model and devices, configurations, prompts and seeds, rows: of `report_data`'s trial."""
    devices = " and ".join(trial["devices"]) or "no device yet"
    return [
        f"{trial['model']} on {devices}",
        plural(trial["num_configurations"], "configuration"),
        f"{plural(trial['num_prompts'], 'prompt')} × {plural(trial['num_seeds'], 'seed')} "
        f"({', '.join(trial['datasets'])})",
        f"{plural(trial['rows'], 'row')}, {plural(trial['num_errors'], 'error')}",
    ]


def shortcomings(trial: dict[str, Any]) -> list[str]:
    """What is missing before the trial can say all that it is meant to; empty where nothing is."""
    done, planned = trial["cells_done"], trial["cells_planned"]
    lines = []
    if done < planned:
        lines.append(f"Not complete: {done:,} of {planned:,} planned cells are there.")
    if not trial["rows"]:
        lines.append("There are no rows yet.")
    elif trial["rows"] == trial["num_errors"]:
        lines.append("Every row has an error, so there is nothing to measure.")
    if trial["num_configurations"] == 1:
        lines.append("One configuration alone: there is nothing to compare it with.")
    return lines


@dataclass(frozen=True)
class Paragraph:
    heading: str
    lines: tuple[str, ...]


_REPEATED = ("completion_tokens", "e2e_s", "completion_bytes_per_s", "kv_committed_peak_bytes")
"""What is said of a configuration that ran twice."""
_MOST_NAMES = 3
"""Configurations that the one line names; of more it gives their number."""


def headline_answer(found: Findings) -> str:
    """Did anything change? What primary verdicts say; quality first where it is worse."""
    judged, judgement = found.judged, found.judgement
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
    primary = [v for j in arms for v in j.verdicts.values() if v.family == "primary"]
    open_ = Counter(str(verdict.word) for verdict in primary)
    others = [
        f"{plural(open_[word], 'verdict')} {noun}"
        for word, noun in (("mixed", "mixed"), ("inconclusive", "open"), ("withheld", "withheld"))
        if open_[word]
    ]
    text = "; ".join([*worse, _texts_of_all(found), *parts, *others])
    if not text.startswith(tuple(m.name for m in metrics if m.source == "score")):
        text = text[0].upper() + text[1:]  # a score's name is as it is written
    return f"Did anything change? {text}."


def _texts_of_all(found: Findings) -> str:
    """In which configurations texts differ; that none does only where all were compared."""
    texts = [(j.comparison.configuration, j.comparison.texts) for j in found.judged]
    differing = [name for name, each in texts if each.differing]
    if differing:
        return f"texts differ in {_named(differing)}"
    if all(why_texts_are_not_equal(found, judged) is None for judged in found.judged):
        return "no text differs"
    return _counted(0, sum(each.compared for _, each in texts), "completed text")


def _counted(differing: int, compared: int, noun: str = "text") -> str:
    verb = "differs" if compared == 1 else "differ"
    return f"{differing:,} of {plural(compared, noun)} {verb}"


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


def answer(found: Findings, judged: Judged) -> str:
    """The trial's question for this comparison, answered in a sentence or two.

    Of primary metrics, with changes only where a verdict says that there is one; of an A/A pair,
    which has no verdicts, what was measured.
    """
    comparison = judged.comparison
    parts = [_texts_sentence(found, judged)]
    if comparison.is_duplicate:
        start = f"{comparison.configuration} ({comparison.vs} run a second time): "
        names = list(_REPEATED)
    else:
        start = f"{comparison.configuration} against {comparison.vs}: "
        metrics = filter(found.judgement.is_primary, metrics_of([comparison]))
        primary = sorted(metrics, key=lambda m: not _is_first(m))
        names = [m.name for m in primary]
    for name in names:
        effect = next((e for e in main_effects(comparison) if e.metric.name == name), None)
        if effect is None or effect.effect.estimate is None or not effect.is_shown:
            continue
        stands = standing(found, judged, effect)
        # Equal texts already say that tokens are equal.
        if name == "completion_tokens" and stands.is_equal and not comparison.texts.differing:
            continue
        parts.append(f"{_noun(comparison, effect.metric)} {_said_of(effect, stands)}")
    return start + "; ".join(parts) + "."


def _said_of(found: MetricEffect, stands: Standing) -> str:
    verdict = stands.verdict
    if verdict is None:
        return effect_phrase(found, stands)
    if verdict.word in DIRECTED:
        return f"{verdict.word}, {effect_phrase(found, stands)}"
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


def _texts_sentence(found: Findings, judged: Judged) -> str:
    comparison = judged.comparison
    differing, compared = comparison.texts.differing, comparison.texts.compared
    if compared == 0:
        return "nothing to compare yet"
    if differing and comparison.is_duplicate:
        return (
            f"{_counted(differing, compared)}, although nothing was changed: outputs are not "
            "reproducible here"
        )
    why = why_texts_are_not_equal(found, judged)
    if why is not None:
        return f"{_counted(differing, compared, 'completed text')} ({why})"
    tokens = next(e for e in main_effects(comparison) if e.metric.name == "completion_tokens")
    if differing == 0 and standing(found, judged, tokens).is_equal:
        return f"{_counted(differing, compared)}: tokens are exactly the same"
    return _counted(differing, compared)


def effect_phrase(found: MetricEffect, stands: Standing) -> str:
    """A change with its interval, or why it has none; and that it is none where nothing says so."""
    effect = found.effect
    text = change_of(found.metric, effect.estimate)
    if effect.identical:
        return "exactly the same" if stands.is_equal else f"{text} {in_pairs(effect)}"
    is_shown = stands.is_directed if stands.verdict is not None else not effect.includes_zero
    shown = "" if is_shown else ", no difference shown"
    if stands.is_uniform:
        return f"{text} in every unit"
    if effect.low is None:
        return f"{text} (no interval: {effect.reason})"
    return f"{text} {interval_text(effect, relative=found.metric.is_relative)}{shown}"
