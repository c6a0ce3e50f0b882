"""The names of scores that a trial's data sets give, which `analysis` and claims may use."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cluster.plan import Plan
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import BY_NAME
from optim.errors import InputError

BITS_PER_BYTE = "bits_per_byte"
MULTIPLE_CHOICE = {"multiple_choice": True, "multiple_choice_unnormalised": False}
"""Name -> whether the nats of a choice are divided by its bytes."""
LIKELIHOOD_SCORERS = (BITS_PER_BYTE, *MULTIPLE_CHOICE)


def plan_scores(plan: Plan) -> tuple[str, ...]:
    """Of the data sets that have targets, and of tasks; without what is a metric anyway."""
    return _scores(
        name
        for dataset in plan.datasets
        if dataset.has_targets or dataset.task is not None
        for name in dataset.scorers
        if plan.likelihoods or dataset.task is not None or name not in LIKELIHOOD_SCORERS
    )


def named_scores(names: Iterable[str], *, likelihoods: bool) -> tuple[str, ...]:
    """Of scorers that a spec names, before a target is looked for."""
    return _scores(name for name in names if likelihoods or name not in LIKELIHOOD_SCORERS)


def _scores(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if name not in BY_NAME)


def require_judged(
    judgement: Judgement, scores: Collection[str] | None, source: object = None
) -> None:
    """InputError where `analysis` names what is no metric, and no data set is scored by.

    `scores` is None where that is not known yet.
    """
    if scores is None:
        return
    for field in ("primary", "margins", "directions"):
        for name in getattr(judgement, field):
            if name not in BY_NAME and name not in scores:
                raise InputError(
                    f"there is no metric `{name}`, and no data set with targets is scored by it",
                    source=source,
                    field=f"analysis.{field}",
                    mend=f"There are: {', '.join((*BY_NAME, *scores))}",
                )
