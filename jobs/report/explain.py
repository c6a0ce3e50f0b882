"""`optrial explain`: why a configuration's tokens (or another metric) differ, in plain words.

Built from a trial's numbers alone: what was measured, what could not have changed it and why, what
did, how much is chance, and what would settle the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cluster.plan import Configuration
from cluster.results.results import Results
from jobs.analysis.attribution import Attribution
from jobs.analysis.comparison import Comparison, MetricEffect, main_effects
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.standing import Standing, standing, why_texts_are_not_equal
from jobs.analysis.verdicts import Judged
from jobs.formatting import number_text, percent_text, plural, relative_bounds
from jobs.queries.sql import connect
from jobs.report.sentences import Paragraph, effect_phrase, verdict_text
from jobs.report.uncertainty import chance_lines, settling_lines
from jobs.spec.metrics import Metric, change_of
from jobs.stats.factorial import Contrast
from jobs.stats.permutation.effect import Effect
from optim.errors import InputError
from optim.names import stage_of

TOKEN_METRICS = ("prompt_tokens", "completion_tokens", "tokens_per_base_token",
                 "base_completion_tokens")  # fmt: skip


def explain_results(results: Results, configuration: str | None, metric: str) -> list[Paragraph]:
    """The same, of results that are read first."""
    # Where it lies now: results may have been copied from where they were made.
    plan = results.plan().model_copy(update={"output": results.output})
    connection = connect(results)
    try:
        found = read_findings(connection, plan)
    finally:
        connection.close()
    return explain(found, configuration, metric)


def explain(found: Findings, configuration: str | None, metric_name: str) -> list[Paragraph]:
    """The answer of one configuration, or of every one that has a reference.

    InputError for an unknown configuration or metric, and where there is nothing to compare.
    """
    metric = _metric(found, metric_name)
    paragraphs: list[Paragraph] = []
    for name in _names(found, configuration):
        paragraphs.extend(_explained(found, name, metric))
    return paragraphs


def _metric(found: Findings, name: str) -> Metric:
    for metric in found.metrics:
        if metric.name == name:
            return metric
    raise InputError(
        f"there is no metric `{name}`",
        field="--metric",
        mend=f"There are: {', '.join(m.name for m in found.metrics)}",
    )


def _names(found: Findings, configuration: str | None) -> list[str]:
    comparable = [j.comparison.configuration for j in found.judged if not j.comparison.is_duplicate]
    if configuration is None:
        if not comparable:
            raise InputError(
                "no configuration has a reference, so there is no difference to explain",
                source=found.plan.output,
            )
        return comparable
    if configuration in comparable:
        return [configuration]
    known = any(c.name == configuration for c in found.plan.configurations)
    problem = "is a reference or a repeat" if known else "is not a configuration of this trial"
    raise InputError(
        f"`{configuration}` {problem}",
        source=found.plan.output,
        field="CONFIGURATION",
        mend=f"There are: {', '.join(comparable) or 'none'}",
    )


def _explained(found: Findings, name: str, metric: Metric) -> Iterator[Paragraph]:
    judged = found.of(name)
    comparison = judged.comparison
    effect = next(e for e in main_effects(comparison) if e.metric.name == metric.name)
    stands = standing(found, judged, effect)
    yield Paragraph(_question(comparison, effect, stands), tuple(_measured(found, effect, stands)))
    if effect.effect.estimate is None:
        return
    own = found.plan.configuration(name)
    reference = found.plan.configuration(comparison.vs)
    unchanged = list(_could_not(found, own, reference, metric))
    if unchanged:
        yield Paragraph("What could not have changed it", tuple(unchanged))
    did = [*_tokens(found, judged, metric), *_by_factor(found, own, metric)]
    if did:
        yield Paragraph("What did" if stands.is_directed else "What it is made of", tuple(did))
    yield Paragraph("How much is chance", tuple(chance_lines(found, effect, stands)))
    settle = list(settling_lines(found, name, metric, effect, stands.verdict))
    if settle:
        yield Paragraph("What would settle it", tuple(settle))


def _question(comparison: Comparison, found: MetricEffect, stands: Standing) -> str:
    label = found.metric.label.removeprefix("· ")
    start = f"{comparison.configuration} against {comparison.vs}"
    if not stands.is_directed:
        return f"{start}: does it change {label}?"
    if found.metric.source == "score":
        word = "higher" if (found.effect.estimate or 0) > 0 else "lower"
        return f"{start}: why is {label} {word}?"
    fewer = "fewer" if label.endswith("tokens") else "less"
    return f"{start}: why {'more' if (found.effect.estimate or 0) > 0 else fewer} {label}?"


def _measured(found: Findings, effect: MetricEffect, stands: Standing) -> Iterator[str]:
    show = effect.metric.show
    if effect.effect.estimate is None:
        yield f"Nothing can be said: {effect.effect.reason}."
        return
    units = plural(effect.effect.num_units, "pair")
    if effect.metric.source in ("rate", "peak"):
        units += " of shards"
    said = effect_phrase(effect, stands)
    if effect.effect.identical and not stands.is_equal:
        said = change_of(effect.metric, effect.effect.estimate)  # the pairs are counted here
    yield (
        f"{effect.metric.heading}: {show(effect.reference_mean)} became "
        f"{show(effect.mean)}, {said}, over {units} of equal prompts and "
        f"{plural(len(found.plan.seeds), 'seed')}."
    )
    if stands.verdict is not None:
        yield f"Verdict: {verdict_text(effect.metric, stands.verdict)}."


def _could_not(
    found: Findings, own: Configuration, reference: Configuration, metric: Metric
) -> Iterator[str]:
    if metric.name not in TOKEN_METRICS:
        return
    theirs = {o.name for o in reference.optimizations}
    for chosen in own.optimizations:
        if chosen.name in theirs:
            yield f"{chosen.name}: it is on in both."
            continue
        stage = stage_of(chosen.name)
        if stage == "cache":
            yield f"{chosen.name}: {_cache_reason(found, chosen.name)}"
        elif stage == "weights" and metric.name in ("prompt_tokens", "tokens_per_base_token"):
            yield (
                f"{chosen.name}: it keeps the vocabulary, so equal text has equal tokens; only "
                "what the model writes can change."
            )
    if own.batch_size != reference.batch_size:
        yield (
            "Batch size: it decides when a token is computed, not which one is chosen, unless "
            "kernels round differently by batch."
        )


def _cache_reason(found: Findings, name: str) -> str:
    """Why a cache changes no token, and what of the trial shows that it did not."""
    text = "it only keeps keys and values in other memory; the numbers that tokens are chosen by "
    text += "are the same."
    for judged in found.judged:
        comparison = judged.comparison
        own = found.plan.configuration(comparison.configuration)
        reference = found.plan.configuration(comparison.vs)
        extra = {o.name for o in own.optimizations} ^ {o.name for o in reference.optimizations}
        if extra == {name} and comparison.texts.compared:
            texts, why = comparison.texts, why_texts_are_not_equal(found, judged)
            kind = "texts" if why is None else "completed texts"
            counted = f"{texts.differing:,} of {texts.compared:,} {kind} differ with it"
            counted += "." if why is None else f" ({why})."
            if texts.differing:
                return f"it is meant to change none, but here {counted}"
            return f"{text} Here {counted}"
    for each in found.attributions:
        if each.metric.name != "completion_tokens":
            continue
        for contrast in each.contrasts:
            if len(contrast.factors) == 1 and _means(found, contrast.factors[0], name):
                return f"{text} Its main effect here is {contrast_text(found, each, contrast)}."
    return text


def _means(found: Findings, factor: str, name: str) -> bool:
    """Whether switching a factor on adds exactly this optimisation."""
    cells = found.design.cells
    off, on = cells.get(frozenset()), cells.get(frozenset({factor}))
    if off is None or on is None:
        return False
    before, after = ({o.name for o in found.plan.configuration(c).optimizations} for c in (off, on))
    return before ^ after == {name}


def contrast_text(found: Findings, attribution: Attribution, contrast: Contrast) -> str:
    """A main effect or an interaction with its interval."""
    values = (contrast.estimate, contrast.low, contrast.high)
    relative = attribution.metric.is_relative
    if not any(values):
        return "exactly 0" if _is_whole(found, attribution.metric) else "0 in what completed"
    shown = [None if v is None else math.expm1(v) if relative else v for v in values]
    return relative_bounds(*shown, relative=relative)


def _is_whole(found: Findings, metric: Metric) -> bool:
    """Whether no verdict on the metric is withheld for a configuration that factors make."""
    for judged in found.judged:
        comparison = judged.comparison
        if comparison.configuration not in found.design.cells.values():
            continue
        effect = next(e for e in main_effects(comparison) if e.metric.name == metric.name)
        if standing(found, judged, effect).why_withheld or comparison.rows.num_failed_apart:
            return False
    return True


def _tokens(found: Findings, judged: Judged, metric: Metric) -> Iterator[str]:
    comparison = judged.comparison
    account = found.accounts[comparison.configuration]
    is_equal = any(
        standing(found, judged, effect).is_equal
        for effect in main_effects(comparison)
        if effect.metric.name == "prompt_tokens"
    )
    if metric.name == "prompt_tokens" and account.prompt is not None:
        if account.prompt.identical:
            if not is_equal:
                return
            yield "Nothing: both encode every prompt in exactly the same number of tokens."
        else:
            yield (
                f"The vocabulary alone: the prompts are the same text, and take "
                f"{percent_text(account.prompt.estimate)} tokens. This part is exact."
            )
        return
    if metric.name != "completion_tokens" or account.total is None or account.total.identical:
        return
    divergence = account.divergence
    if account.encoding is not None and account.encoding.estimate is not None:
        if is_equal:
            yield (
                "Not the vocabulary: prompts take exactly the same tokens. (What is sampled can be "
                f"spelt in other tokens than text is: {_phrase(account.encoding)}.)"
            )
        else:
            yield (f"The vocabulary (same text, other tokens): {_phrase(account.encoding)}.")
    if account.length is not None and account.length.estimate is not None:
        yield f"Another text (counted by one tokenizer): {_phrase(account.length)}."
    if account.is_censored:
        shares = " and ".join(f"{s * 100:.0f} %" for s in account.length_stops if s is not None)
        yield (
            f"The length budget ended {shares} of the completions (reference, then this one), so "
            "lengths are cut short, and the effect of length is probably larger than this."
        )
    if divergence.num_compared:
        text = f"{divergence.num_identical:,} of {divergence.num_compared:,} texts are identical"
        if divergence.median_chars is not None:
            text += f"; the others part after {number_text(divergence.median_chars)} characters "
            text += "(median)"
        yield text + "."


def _phrase(effect: Effect) -> str:
    return relative_bounds(effect.estimate, effect.low, effect.high, relative=True)


def _by_factor(found: Findings, own: Configuration, metric: Metric) -> Iterator[str]:
    for each in found.attributions:
        if each.metric.name != metric.name or not each.contrasts:
            continue
        on = next((on for on, name in found.design.cells.items() if name == own.name), None)
        if not on:
            return
        for contrast in each.contrasts:
            if set(contrast.factors) <= on and len(contrast.factors) <= 2:
                kind = " x ".join(contrast.factors)
                word = "on average" if len(contrast.factors) == 1 else "together, beyond their sum"
                yield f"{kind}, {word}: {contrast_text(found, each, contrast)}."
