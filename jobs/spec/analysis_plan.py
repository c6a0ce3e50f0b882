"""How a trial is judged, stated before it runs: primary metrics, margins and error rates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.spec.metrics import Metric

PRIMARY = ("completion_tokens", "e2e_s_per_byte", "kv_committed_peak_bytes", "bits_per_byte")
Fraction = Annotated[float, Field(gt=0, lt=1)]
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]

OF_SETS = 0.2
"""Share of a level that is spent on whether data sets differ, where there are several: whether
there is an effect at all is what most trials ask first."""
MIN_SHARDS = 8
"""Shards per dataset that an interval for time, throughput or memory needs: rows of a shard share
its cells' noise, so shards are what is independent, and fewer say too little of their spread."""


class Judgement(BaseModel):
    """How differences are judged. It is kept with the trial, and decides nothing that is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    primary: Annotated[tuple[str, ...], Field(min_length=1)] = PRIMARY
    """Metrics that the trial is about, and whatever its data sets are scored by: `contains`, the
    metric of a task, a function of yours. Their error rate is kept over all of them and all
    configurations (Holm); all other metrics are exploratory (Benjamini-Hochberg)."""
    margins: dict[str, Margin] = {}
    """Metric -> δ, the largest difference that does not matter: a fraction of the reference, or in
    the metric's own unit for bits per byte, shares and scores. Metrics that are not named have
    their default; scores 0.02."""
    directions: dict[str, Literal["lower", "higher", "neither"]] = {}
    """Metric -> which is better, where the default does not fit. Of scores more is better, unless
    the task says otherwise."""
    weights: dict[str, Margin] = {}
    """Data set -> how much its effect counts in the mean over data sets; those not named count 1,
    and by default all count alike, however many prompts they have."""
    alpha: Fraction = 0.05
    """Error rate of verdicts, family-wise over the primary metrics."""
    reserve: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of `alpha` that is kept for later looks: `optrial settle` adds data to what is open,
    and judges it again. Without any kept (0), it cannot."""
    power: Fraction = 0.8
    """Chance of finding an effect that the planning of prompts and seeds aims at."""

    @field_validator("primary")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Which names there are depends on the data sets: `jobs.spec.score_names.require_judged`.
        return tuple(dict.fromkeys(names))

    def is_primary(self, metric: Metric) -> bool:
        """Whether the trial is about it; always of failures, which all else leaves out."""
        return metric.name in self.primary or metric.source == "failure"

    def level(self, look: int) -> float:
        """α of a look, the first being 1: what is kept is shared out again at every later one.

        They sum to `alpha` at most, so that all looks together are wrong no more often than one
        would be (Bonferroni); and although the data added depend on what was seen, simulation
        shows no excess (`tests/jobs/trial/test_settle.py`).
        """
        return self.alpha * (1 - self.reserve) * self.reserve ** (look - 1)

    @staticmethod
    def shared(level: float, *, has_sets: bool) -> tuple[float, float]:
        """A level as its parts: that there is a difference, and that data sets differ in it.

        Both are words for a difference, so both are paid for; of one data set there is only one.
        """
        return (level * (1 - OF_SETS), level * OF_SETS) if has_sets else (level, 0.0)

    def margin(self, metric: Metric) -> float:
        return self.margins.get(metric.name, metric.margin)

    def direction(self, metric: Metric) -> str:
        return self.directions.get(metric.name, metric.direction)
