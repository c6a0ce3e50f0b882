"""Claims that are exactly true, at their bound: how often a file of them is said to be broken."""

from __future__ import annotations

import duckdb
import numpy as np

from benchmarks.statistics.calibration.comparisons import TOKENS
from benchmarks.statistics.calibration.looks import FIRST, Growing
from benchmarks.statistics.calibration.rates import Rate, at_most
from cluster.plan import Configuration, Generation, ModelSource, Plan
from jobs.analysis.attribution import design_of
from jobs.analysis.claims import Claim, check_claims
from jobs.analysis.findings import Findings
from jobs.analysis.looks import Look
from jobs.spec.analysis_plan import Judgement

TRUTH = -0.20
FILES = {(20, 1): 200, (2, 3): 200}
"""(claims, looks) -> trials. Prompts double from look to look."""


def claims_at_bounds(num_claims: int, num_looks: int, trials: int, seed: int) -> list[Rate]:
    """Each promises what is exactly so, half of them as the most and half as the least.

    Of a bound that is met exactly, neither that it is broken nor that it is kept can be known.
    """
    rng = np.random.default_rng([seed, 61, num_claims, num_looks])
    claims = [_claim(i) for i in range(num_claims)]
    refuted = decided = 0
    for _ in range(trials):
        trial = Growing(rng, {claim.configuration or "": TRUTH for claim in claims})
        answers: set[str] = set()
        for look in range(num_looks):
            trial.add(FIRST * 2 ** max(0, look - 1))
            answers |= _answers(claims, trial, look)
        refuted += "refuted" in answers
        decided += bool(answers - {"undecided"})
    looks = f", {num_looks} looks" if num_looks > 1 else ""
    name = f"a file of {num_claims} claims at their bounds{looks}"
    return [
        Rate(name, "any refuted", refuted, trials, **at_most(0.05)),
        Rate(name, "any refuted or supported", decided, trials, **at_most(0.05)),
    ]


def _claim(number: int) -> Claim:
    bound = {("at_most", "at_least")[number % 2]: TRUTH}
    return Claim.model_validate(
        {
            "name": f"claim-{number}",
            "text": "20 % fewer tokens",
            "metric": TOKENS,
            "configuration": f"c{number}",
            **bound,
        }
    )


def _answers(claims: list[Claim], trial: Growing, look: int) -> set[str]:
    level = Judgement()
    # Claims go by the number of looks before this one, whatever these decided.
    before = tuple(
        Look(number=i + 1, level=level.level(i + 1), settled=(), open=(), configurations=())
        for i in range(look)
    )
    judged = trial.judged()
    plan = _plan(tuple(trial.effects))
    found = Findings(
        plan=plan,
        judgement=level,
        looks=before,
        judged=judged,
        alarms=[],
        accounts={},
        needs={},
        design=design_of(plan),
        attributions=[],
    )
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE cells (device VARCHAR, configuration VARCHAR, "
            "weight_bytes_shared BIGINT, weight_bytes_private BIGINT)"
        )
        return {checked.answer for checked in check_claims(claims, found, connection)}


def _plan(names: tuple[str, ...]) -> Plan:
    arms = [Configuration(name="baseline")]
    arms += [Configuration(name=name, vs="baseline") for name in names]
    return Plan(
        run_id="",
        output="",
        model=ModelSource(path="demo"),
        configurations=tuple(arms),
        datasets=(),
        seeds=(1, 2, 3),
        generation=Generation(),
    )


def all_rates(share: float, seed: int) -> list[Rate]:
    rates = []
    for (num_claims, num_looks), trials in FILES.items():
        rates += claims_at_bounds(num_claims, num_looks, max(1, round(share * trials)), seed)
    return rates
