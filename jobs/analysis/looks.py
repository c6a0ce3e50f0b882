"""What earlier looks at a trial's results decided, so that no verdict is given twice.

A look that leaves primary verdicts open may be followed by more data (`optrial settle`) and another
look, each with its share of the error rate: `jobs.spec.analysis_plan.Judgement.level`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Word = Literal[
    "better",
    "worse",
    "higher",
    "lower",
    "equivalent",
    "exactly equal",
    "mixed",
    "inconclusive",
    "withheld",
]

TEST = "cluster swaps 1"
"""The test that verdicts go by, and its version: looks that another decided are judged anew."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settled(_Kept):
    """A primary verdict that was given, and stays."""

    configuration: str
    metric: str
    word: Word
    look: int
    p: float | None = None
    equivalence_p: float | None = None


class Look(_Kept):
    """One look, and what was added to the trial after it."""

    number: int
    level: float
    """α of its primary verdicts, over all of them (Holm)."""
    settled: tuple[Settled, ...]
    open: tuple[tuple[str, str], ...]
    """(configuration, metric) that the data added are for."""
    configurations: tuple[str, ...]
    """Those that ran on."""
    seeds: tuple[int, ...] = ()
    num_prompts: int = 0
    num_rows: int = 0
    at: str = ""
    test: str = ""
    """What decided it; empty for signs of pseudo-values, which took noise for differences where
    one prompt outweighed the others."""


def settled(looks: Sequence[Look]) -> dict[tuple[str, str], Settled]:
    """What stays, by (configuration, metric)."""
    return _by_metric(look for look in looks if look.test == TEST)


def judged_anew(looks: Sequence[Look]) -> dict[tuple[str, str], Settled]:
    """What an earlier look decided by a test that is no longer trusted."""
    return _by_metric(look for look in looks if look.test != TEST)


def _by_metric(looks: Iterable[Look]) -> dict[tuple[str, str], Settled]:
    return {(each.configuration, each.metric): each for look in looks for each in look.settled}
