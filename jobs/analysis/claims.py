"""Claims: what somebody promised of an optimisation, checked against a trial's own intervals.

A claim is supported where its whole interval lies within what it promises, refuted where all of it
lies outside, and undecided in between; outside its conditions it is not applicable. That all pairs
are equal is what `identical` promises, of these pairs; for any other promise they have to be as
many as their level needs. A file promises
one error rate: its claims share it (Bonferroni), and so do the looks at the trial, as its verdicts
do. So a gate that asks for twenty promises, all of them true, fails as rarely as one that asks for
one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.plan import Configuration, Plan, origin
from jobs.analysis.comparison import Comparison, MetricEffect, cache_name, main_effects
from jobs.analysis.findings import Findings
from jobs.analysis.standing import is_uniform
from jobs.analysis.verdicts import ONE_PAIR, Judged
from jobs.formatting import bytes_text, number_text, percent_text, plural
from jobs.spec.metrics import BY_NAME
from jobs.spec.yaml_reader import read_yaml, validated
from optim.errors import InputError
from optim.names import names

AUTHORS = "authors"
"""Names the claims that ship: those of the methods' authors."""
Answer = Literal["supported", "refuted", "undecided", "not applicable"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Conditions(_Model):
    """Where a claim holds; what is left out is not asked for."""

    device: Literal["cpu", "cuda"] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    min_weight_bytes: Annotated[float, Field(ge=0)] | None = None
    """The model's weights, of the reference."""
    rival: str | None = None
    """Where the reference keeps keys and values: dynamic, static, …"""
    datasets: tuple[str, ...] = ()

    @field_validator("rival")
    @classmethod
    def _known_rival(cls, rival: str | None) -> str | None:
        # A slip of the pen would make the claim not applicable for ever, and open the gate.
        known = ["dynamic", "static", *names()]
        if rival is not None and rival not in known:
            raise ValueError(f"there is no cache `{rival}`. There are: {', '.join(known)}")
        return rival

    """Text that it is about; the trial may have no other."""


class Claim(_Model):
    """One promise about one metric. Relative changes are fractions: -0.25 is 25 % less."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    text: Annotated[str, Field(min_length=1)]
    """As people say it."""
    source: str = ""
    metric: str
    """As in the report, scores among them; `texts` for what is written."""
    configuration: str | None = None
    """Of the trial; instead of `adds`."""
    vs: str | None = None
    adds: tuple[str, ...] = ()
    """Optimisations that a configuration has and its reference lacks, exactly these."""
    settings: dict[str, dict[str, Any]] = {}
    """Optimisation -> settings that it must have."""
    at_least: float | None = None
    at_most: float | None = None
    within: Annotated[float, Field(gt=0)] | None = None
    """No change, within so much."""
    identical: Literal[True] | None = None
    """Exactly the same in every pair."""
    estimand: Literal["sets", "totals"] = "sets"
    """`sets`: the mean of the data sets' effects, as verdicts have it. `totals`: of the sums over
    all of them, in which large ones count for more."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    conditions: Conditions = Conditions()

    @field_validator("adds")
    @classmethod
    def _known_optimizations(cls, adds: tuple[str, ...]) -> tuple[str, ...]:
        for name in adds:
            if name not in names():
                there = ", ".join(names())
                raise ValueError(f"there is no optimisation `{name}`. There are: {there}")
        return adds

    @model_validator(mode="after")
    def _one_comparison(self) -> Claim:
        if (self.configuration is None) == (not self.adds):
            raise ValueError("name either a `configuration` or what it `adds`")
        if self.configuration is not None and self.settings:
            raise ValueError("`settings` go with `adds`: a configuration has its own")
        if self.configuration is None and self.vs is not None:
            raise ValueError("`vs` goes with `configuration`")
        return self

    @model_validator(mode="after")
    def _one_promise(self) -> Claim:
        promises = [self.at_least, self.at_most, self.within, self.identical]
        if all(each is None for each in promises):
            raise ValueError("promise something: at_least, at_most, within or identical")
        least, most = self.at_least, self.at_most
        if self.within is not None and not (least is None and most is None):
            raise ValueError("`within` promises both bounds: leave at_least and at_most out")
        if least is not None and most is not None and least > most:
            raise ValueError("at_least is more than at_most")
        if self.identical and promises != [None, None, None, True]:
            raise ValueError("`identical` promises all there is: leave the bounds out")
        if self.metric == "texts" and promises != [None, None, None, True]:
            raise ValueError("of `texts` only `identical: true` can be promised")
        return self


class ClaimsFile(_Model):
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @field_validator("claims")
    @classmethod
    def _unique_names(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        seen: set[str] = set()
        for claim in claims:
            if claim.name in seen:
                raise ValueError(f"two claims are named `{claim.name}`")
            seen.add(claim.name)
        return claims


@dataclass(frozen=True)
class Checked:
    claim: Claim
    answer: Answer
    configuration: str | None
    vs: str | None
    evidence: str
    """The numbers that decide, or why none do."""


def read_claims(path: str | Path, scores: Collection[str] | None = ()) -> tuple[Claim, ...]:
    """The claims in a YAML file, or those of the authors; InputError with all that is wrong.

    `scores` are the names of what the trial's outputs are scored by, which may be claimed of
    (`jobs.spec.score_names`); None where they are not known yet, and any name may be one.
    """
    if str(path) == AUTHORS:
        path = Path(str(files("jobs.analysis").joinpath("authors_claims.yaml")))
    claims = validated(ClaimsFile, read_yaml(path), path).claims
    for index, claim in enumerate(claims):
        if scores is not None and claim.metric not in ("texts", *BY_NAME, *scores):
            raise InputError(
                f"there is no metric `{claim.metric}`, and no data set is scored by it",
                source=path,
                field=f"claims[{index}].metric",
                mend=f"There are: {', '.join(('texts', *BY_NAME, *scores))}",
            )
    return claims


def check_claims(
    claims: Sequence[Claim], found: Findings, connection: duckdb.DuckDBPyConnection
) -> list[Checked]:
    """One answer per claim and comparison that it speaks of."""
    asked = [each for claim in claims for each in _asked(claim, found, connection)]
    num_tests = sum(each.needs_test for each in asked)
    look = len(found.looks) + 1
    share = found.judgement.level(look) / found.judgement.alpha / max(1, num_tests)
    return [_checked(each, found, share) for each in asked]


@dataclass(frozen=True)
class _Asked:
    """A claim of one comparison; of none where the trial has none that it speaks of."""

    claim: Claim
    judged: Judged | None
    unmet: str | None
    """Why it does not apply."""

    @property
    def needs_test(self) -> bool:
        return self.unmet is None and not self.claim.identical


def _asked(
    claim: Claim, found: Findings, connection: duckdb.DuckDBPyConnection
) -> Iterator[_Asked]:
    pairs = [j for j in found.judged if _speaks_of(claim, found.plan, j.comparison)]
    if claim.configuration is not None and not pairs:
        raise InputError(
            f"the claim `{claim.name}` is about `{claim.configuration}`"
            + (f" against `{claim.vs}`" if claim.vs else "")
            + ", which this trial does not compare",
            source=found.plan.output,
            field=f"claims.{claim.name}.configuration",
            mend="Name a configuration of the trial and its reference",
        )
    if not pairs:
        wanted = " + ".join(claim.adds)
        evidence = f"no configuration differs from its reference by exactly {wanted}"
        if claim.settings:
            evidence += " with the claim's settings"
        yield _Asked(claim, None, evidence)
    for judged in pairs:
        unmet = _unmet(claim.conditions, found.plan, judged.comparison, connection)
        yield _Asked(claim, judged, unmet)


def _checked(asked: _Asked, found: Findings, share: float) -> Checked:
    """`share` is the part of the claim's error rate that it has for itself, at this look."""
    claim, judged = asked.claim, asked.judged
    if judged is None:
        return Checked(claim, "not applicable", None, None, asked.unmet or "")
    answer, evidence = _answer(claim, judged, found, share)
    if asked.unmet:
        answer, evidence = "not applicable", asked.unmet
    comparison = judged.comparison
    return Checked(claim, answer, comparison.configuration, comparison.vs, evidence)


def _speaks_of(claim: Claim, plan: Plan, comparison: Comparison) -> bool:
    if comparison.is_duplicate:
        return False
    if claim.configuration is not None:
        return claim.configuration == comparison.configuration and claim.vs in (
            None, comparison.vs,
        )  # fmt: skip
    own = plan.configuration(comparison.configuration)
    added = _names(own) - _names(plan.configuration(comparison.vs))
    # The tuned control is what a new vocabulary is compared with: it is no optimisation to add.
    removed = _names(plan.configuration(comparison.vs)) - _names(own) - {"tuned"}
    return added == set(claim.adds) and not removed and _has(own, claim.settings)


def _names(configuration: Configuration) -> set[str]:
    return {chosen.name for chosen in configuration.optimizations}


def _has(configuration: Configuration, settings: dict[str, dict[str, Any]]) -> bool:
    own = {chosen.name: chosen.settings for chosen in configuration.optimizations}
    return all(
        own.get(name, {}).get(key) == value
        for name, wanted in settings.items()
        for key, value in wanted.items()
    )


def _unmet(
    conditions: Conditions,
    plan: Plan,
    comparison: Comparison,
    connection: duckdb.DuckDBPyConnection,
) -> str | None:
    """The first condition that this trial does not meet."""
    reference = plan.configuration(comparison.vs)
    row = connection.execute(
        "SELECT list(DISTINCT device), max(weight_bytes_shared + weight_bytes_private) FROM cells "
        "WHERE configuration IN (?, ?)",
        [comparison.configuration, comparison.vs],
    ).fetchone()
    devices, weight_bytes = row or ([], None)
    if conditions.device is not None:
        kinds = {"cpu" if device == "cpu" else "cuda" for device in devices or []}
        if kinds != {conditions.device}:
            return f"it is about {conditions.device}, and this ran on {', '.join(kinds) or '?'}"
    sizes = {plan.configuration(n).batch_size for n in (comparison.configuration, comparison.vs)}
    if conditions.batch_size is not None and sizes != {conditions.batch_size}:
        shown = ", ".join(map(str, sorted(sizes)))
        return f"it is about batch size {conditions.batch_size}, and this has {shown}"
    least = conditions.min_weight_bytes
    if least is not None and (weight_bytes is None or weight_bytes < least):
        return (
            f"it is about weights of {bytes_text(least)}, and these have {bytes_text(weight_bytes)}"
        )
    if conditions.rival is not None and cache_name(reference) != conditions.rival:
        return f"its rival is a {conditions.rival} cache, and this one's is {cache_name(reference)}"
    others = {origin(d.name) for d in plan.datasets} - set(conditions.datasets)
    if conditions.datasets and others:
        return f"it is about {', '.join(conditions.datasets)}, and this has {', '.join(others)} too"
    return None


def _answer(claim: Claim, judged: Judged, all_found: Findings, share: float) -> tuple[Answer, str]:
    comparison = judged.comparison
    if claim.metric == "texts":
        return _texts_answer(judged, all_found)
    found = next((e for e in main_effects(comparison) if e.metric.name == claim.metric), None)
    if found is None or found.effect.estimate is None:
        reason = found.effect.reason if found else "it was not measured"
        return "undecided", f"nothing can be said: {reason}"
    verdict = judged.verdicts.get(claim.metric)
    if verdict is not None and verdict.word == "withheld":
        return "undecided", f"{_show(found, found.effect.estimate)}, but {verdict.reason}"
    if found.effect.identical and found.effect.num_units < 2:
        return "undecided", ONE_PAIR
    if claim.identical:
        same = found.effect.identical
        return ("supported" if same else "refuted"), "equal in every pair" if same else (
            f"not equal in every pair: {_show(found, found.effect.estimate)}"
        )
    if claim.estimand == "totals":
        found = replace(found, effect=found.effect.of_totals())
    level = (1 - claim.confidence) * share
    if found.effect.identical and found.effect.test is not None:
        # An effect is on one side of 0, and equal pairs miss it on that side alone.
        level *= 2
    bounds = interval(found, 1 - level)
    if bounds is None and found.effect.identical:
        few = plural(found.effect.num_clusters, "unit")
        return "undecided", f"equal in every pair, and {few} are too few to show it"
    if bounds is None:
        shown = _show(found, found.effect.estimate or 0.0)
        reason = found.effect.reason or f"{found.effect.num_clusters} units are too few for one"
        return "undecided", f"{shown}, without an interval: {reason}"
    low, high = bounds
    least = claim.at_least if claim.within is None else -claim.within
    most = claim.at_most if claim.within is None else claim.within
    least, most = (-math.inf if least is None else least), (math.inf if most is None else most)
    answer: Answer = "undecided"
    if least <= low and high <= most:
        answer = "supported"
    elif high < least or low > most:
        answer = "refuted"
    shown = _show(found, found.effect.estimate or 0.0)
    if low == high:
        return answer, f"{shown} in every unit" if is_uniform(found.effect) else shown
    if found.effect.identical:
        shown = f"{shown} in every pair"
    bounds_shown = f"[{_show(found, low)}, {_show(found, high)}]"
    return (
        answer,
        f"{shown} {bounds_shown}, {claim.confidence * 100:g} % over the file and its looks",
    )


def _texts_answer(judged: Judged, found: Findings) -> tuple[Answer, str]:
    texts = judged.comparison.texts
    tokens = judged.verdicts.get("completion_tokens")
    if tokens is not None and tokens.word == "withheld" and not texts.differing:
        return "undecided", f"{tokens.reason}"
    if not texts.compared:
        return "undecided", "there are no texts to compare"
    if texts.compared == 1 and not texts.differing:
        return "undecided", ONE_PAIR
    evidence = f"{texts.differing:,} of {texts.compared:,} texts differ"
    repeats = [j.comparison for j in found.judged if j.comparison.is_duplicate]
    if texts.differing and any(each.texts.differing for each in repeats):
        return "undecided", f"{evidence}, and so do those of one configuration run twice"
    return ("refuted" if texts.differing else "supported"), evidence


def interval(found: MetricEffect, confidence: float) -> tuple[float, float] | None:
    """The effect's interval at any confidence, by the test that its verdict goes by."""
    bounds = found.effect.at(confidence)
    if bounds is None:
        return None
    low, high = bounds
    return (math.expm1(low), math.expm1(high)) if found.metric.is_relative else (low, high)


def _show(found: MetricEffect, value: float) -> str:
    return percent_text(value) if found.metric.is_relative else number_text(value, sign=True)
