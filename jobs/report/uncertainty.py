"""What of an effect is chance, and what would settle an open verdict, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.analysis.comparison import MetricEffect, main_effects
from jobs.analysis.findings import Findings
from jobs.analysis.standing import Standing, standing, why_texts_are_not_equal
from jobs.analysis.verdicts import Verdict
from jobs.formatting import p_text, plural
from jobs.report.sentences import effect_phrase
from jobs.report.single_run import pilot_lines
from jobs.spec.metrics import Metric


def _repeats(found: Findings, metric: Metric) -> Iterator[str]:
    """What running one configuration twice changed: texts, or the time or memory asked for."""
    for judged in (j for j in found.judged if j.comparison.is_duplicate):
        comparison = judged.comparison
        start = f"{comparison.vs}, run a second time"
        if metric.is_timed or metric.is_memory:
            again = next(e for e in main_effects(comparison) if e.metric.name == metric.name)
            if again.effect.estimate is not None:
                yield f"{start}, gave {effect_phrase(again, standing(found, judged, again))}."
            continue
        texts = comparison.texts
        counted = f"{start}, gave {texts.differing:,} other texts of {texts.compared:,}"
        why = why_texts_are_not_equal(found, judged)
        if why is not None:
            counted += f" that completed ({why})"
        elif not texts.differing:
            counted += ": with equal seeds, nothing is left to chance but the seeds and the prompts"
        yield f"{counted}."


def chance_lines(found: Findings, effect: MetricEffect, stands: Standing) -> Iterator[str]:
    """What of an effect chance could have done."""
    verdict = stands.verdict
    if stands.is_equal:
        yield "Nothing: every pair is exactly equal."
        return
    if effect.effect.identical and effect.effect.num_units == 1:
        yield "One pair shows nothing."
        return
    yield from _repeats(found, effect.metric)
    if stands.why_withheld is not None:
        yield f"It cannot be told: {stands.why_withheld}."
        return
    chance = effect.effect.p
    if effect.effect.low is None:
        yield f"It cannot be told from chance: {effect.effect.reason}."
        if effect.effect.num_clusters <= 1:
            yield "A single run shows nothing: another seed or prompt could have said the opposite."
        return
    units = "shards" if effect.metric.is_timed or effect.metric.is_memory else "prompts"
    if verdict is not None and verdict.mde is not None:
        smallest = (
            f"{verdict.mde * 100:.2g} %" if effect.metric.is_relative else f"{verdict.mde:.2g}"
        )
        yield (
            f"The interval holds what chance can do over these {units}; differences below "
            f"{smallest} would mostly be missed here, and more so among many answers."
        )
    if verdict is not None and verdict.p is not None and chance is not None:
        among = "primary" if verdict.family == "primary" else "exploratory"
        yield (
            f"Chance alone would give as much in {_chance_text(chance)} of such trials (cluster "
            f"swaps); adjusted for all {among} answers of this trial, p is {p_text(verdict.p)}."
        )


def _chance_text(p: float) -> str:
    return "less than 1 in 1,000" if p < 0.001 else f"{p * 100:.1f} %"


def settling_lines(
    found: Findings, name: str, metric: Metric, effect: MetricEffect, verdict: Verdict | None
) -> Iterator[str]:
    """What would settle a verdict that is open; nothing where it is not."""
    if verdict is None or not verdict.is_open:
        return
    wanted = found.needs.get((name, metric.name))
    if wanted is None or (wanted.num_prompts is None and wanted.num_seeds is None):
        if effect.effect.num_units <= 1:
            yield from pilot_lines(metric.name, verdict.margin)
        elif wanted is not None and wanted.reason is not None:
            yield f"{wanted.reason[0].upper() + wanted.reason[1:]}."
        return
    ways = []
    if wanted.num_prompts:
        ways.append(f"{plural(wanted.num_prompts, 'more prompt')} at these seeds")
    if wanted.num_seeds:
        ways.append(f"{plural(wanted.num_seeds, 'more seed')} of these prompts")
    if ways:
        yield (
            f"{' or '.join(ways)} would settle it with a chance of "
            f"{found.judgement.power * 100:.0f} %, should the effect be what it now seems."
        )
        yield f"`optrial settle {found.plan.output}` runs them, within a budget that you give."
