"""What may be said of an effect: words of equality and of a difference are a verdict's alone.

An A/A pair has no verdicts: it is called equal where it is complete and no row failed on one side
only.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.analysis.comparison import MAIN_STATISTICS, Comparison, MetricEffect
from jobs.analysis.findings import Findings
from jobs.analysis.guards.withholding import why_not_all, why_unlike
from jobs.analysis.verdicts import Judged, Verdict
from jobs.formatting import in_pairs
from jobs.stats.permutation.effect import Effect

DIRECTED = frozenset({"better", "worse", "higher", "lower"})
"""Verdicts that say that there is a difference."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Standing:
    """How far an effect may be trusted, whatever its numbers."""

    verdict: Verdict | None
    """Of this very statistic; None of geometric means, tails and A/A pairs."""
    why_withheld: str | None
    """Why the numbers show neither a difference nor equality."""
    is_equal: bool
    """Whether it may be called exactly equal."""
    is_uniform: bool
    """Whether every unit of every data set shows the same change."""

    @property
    def is_directed(self) -> bool:
        return self.verdict is not None and self.verdict.word in DIRECTED


def standing(found: Findings, judged: Judged, effect: MetricEffect) -> Standing:
    """Of one effect of a comparison; statistics without a verdict go by that of their metric."""
    verdict = judged.verdicts.get(effect.metric.name)
    why = _why_withheld(found, judged, effect, verdict)
    is_equal = effect.effect.identical and why is None
    if judged.comparison.is_duplicate:
        is_equal = (
            is_equal and effect.effect.num_units > 1 and why_not_all(judged.comparison) is None
        )
    else:
        is_equal = is_equal and verdict is not None and verdict.word == "exactly equal"
    return Standing(
        verdict if effect.statistic in MAIN_STATISTICS else None,
        why,
        is_equal,
        why is None and is_uniform(effect.effect),
    )


def why_texts_are_not_equal(found: Findings, judged: Judged) -> str | None:
    """Why texts of which none differs are not all equal; None where they are, or some differ."""
    comparison = judged.comparison
    if comparison.texts.differing:
        return None
    verdict = judged.verdicts.get("completion_tokens")
    if verdict is not None and verdict.word == "withheld":
        return verdict.reason
    why = _why_unsound(found, comparison) or why_not_all(judged.comparison)
    if why is None and comparison.texts.compared <= 1:
        return "one pair shows no equality"
    return why


def statement(effect: MetricEffect, stands: Standing) -> str:
    """What the numbers say; a difference, or that there is none, only where the verdict does."""
    found = effect.effect
    if stands.why_withheld is not None:
        return f"withheld: {stands.why_withheld}"
    if found.identical:
        return "exactly the same" if stands.is_equal else f"0 {in_pairs(found)}"
    if found.reason is not None:
        return f"no interval: {found.reason}"
    if found.includes_zero:
        return "interval includes 0: no difference shown"
    is_more = (found.estimate or 0) > 0
    if stands.is_directed:
        return "higher" if is_more else "lower"
    return f"interval {'above' if is_more else 'below'} 0"


def _why_withheld(
    found: Findings, judged: Judged, effect: MetricEffect, verdict: Verdict | None
) -> str | None:
    if judged.comparison.is_duplicate:
        return effect.withheld or _why_unsound(found, judged.comparison)
    if verdict is not None and verdict.word == "withheld":
        return verdict.reason
    return None


def _why_unsound(found: Findings, comparison: Comparison) -> str | None:
    """Why a comparison shows nothing, where no verdict says so."""
    unfinished = found.unfinished.get(comparison.configuration)
    return unfinished or why_unlike(comparison)


def is_uniform(effect: Effect) -> bool:
    """Whether every unit of every data set shows the same change.

    An interval that is a point says it of clusters, and of the mean of data sets alone.
    """
    if not effect.is_uniform or effect.num_units != effect.num_clusters:
        return False
    by_set = (effect.by_set or {}).values()
    least, most = min(by_set, default=0.0), max(by_set, default=0.0)
    return most - least <= _ROUNDING * (1 + abs(least))
