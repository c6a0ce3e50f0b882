"""Rows that failed, and completions that the length budget ended: nothing false is said of them.

100 prompts and 3 seeds a side. What no verdict may be given of, and what one would have been worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.statistics.calibration.comparisons import DIRECTED, TOKENS, comparison
from benchmarks.statistics.calibration.prompts import SEEDS, noise
from benchmarks.statistics.calibration.rates import Rate, exactly
from jobs.analysis.verdicts import judge
from jobs.queries.row_pairs import RowComparison, TextComparison
from jobs.spec.analysis_plan import Judgement
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect

TRIALS = 500
PROMPTS = 100
MEMORY, TIME = "kv_committed_peak_bytes", "e2e_s"
CUTS = {
    "+10 %, 85 % cut": (0.10, 0.85),
    "-25 %, 85 % cut": (-0.25, 0.85),
    "-25 %, all cut": (-0.25, 1.0),
}
FAILURES = {"the longest 5 % of one side fail": 15, "the longest 1 % of one side fail": 3}


def failures(name: str, trials: int, seed: int) -> list[Rate]:
    """Nothing differs, and the rows of one side whose completions are longest fail."""
    rng, num = np.random.default_rng([seed, 50, list(FAILURES).index(name)]), FAILURES[name]
    said = unguarded = 0
    for _ in range(trials):
        a, b = _rows(rng, 0.0, 0.3)
        failed = np.zeros(b.size, dtype=bool)
        failed[np.argsort(b.ravel())[-num:]] = True
        rows = RowComparison(b.size, b.size - num, num_failed=num, num_failed_apart=num)
        effect = _effect(a, b, ~failed.reshape(b.shape))
        texts = TextComparison(differing=b.size - num, compared=b.size - num)
        words = _words(dict.fromkeys((TOKENS, MEMORY, TIME), effect), rows, texts)
        said += any(word != "withheld" for word in words.values())
        unguarded += _words({TOKENS: effect}, RowComparison(), texts)[TOKENS] in DIRECTED
    rates = [Rate(name, "false difference of what completed, were it judged", unguarded, trials)]
    if num > 0.01 * PROMPTS * SEEDS:
        rates.append(Rate(name, "any word but withheld", said, trials, **exactly(0.0)))
    return rates


def cut(name: str, trials: int, seed: int) -> list[Rate]:
    """A true effect on lengths, of which the budget hides most: no word of what grows with it."""
    truth, share = CUTS[name]
    rng, said, unguarded = np.random.default_rng([seed, 51, list(CUTS).index(name)]), 0, 0
    for _ in range(trials):
        a, b = _rows(rng, truth, 0.3)
        least = min(a.min(), b.min())
        effect, rows, texts = _cut(a, b, float(np.quantile(a, 1 - share)) if share < 1 else least)
        words = _words(dict.fromkeys((TOKENS, MEMORY, TIME), effect), rows, texts)
        said += any(word != "withheld" for word in words.values())
        free = replace(rows, num_cut=0, num_cut_reference=0)
        word = _words({TOKENS: effect}, free, texts)[TOKENS]
        unguarded += word in ("equivalent", "exactly equal")
    return [
        Rate(name, "any word but withheld", said, trials, **exactly(0.0)),
        Rate(name, "equal or equivalent, were it judged", unguarded, trials),
    ]


def cut_a_little(trials: int, seed: int) -> list[Rate]:
    """9 % cut, which is judged, and a true effect of δ: given, as what is seen is a little less."""
    rng, equal = np.random.default_rng([seed, 52]), 0
    for _ in range(trials):
        a, b = _rows(rng, 0.02, 0.05)
        effect, rows, texts = _cut(a, b, float(np.quantile(a, 0.92)))
        equal += _words({TOKENS: effect}, rows, texts)[TOKENS] == "equivalent"
    return [Rate("+2 %, 8 to 9 % cut", "false equivalence at 4 %", equal, trials)]


def all_rates(share: float, seed: int) -> list[Rate]:
    trials = max(1, round(share * TRIALS))
    rates = [rate for name in FAILURES for rate in failures(name, trials, seed)]
    rates += [rate for name in CUTS for rate in cut(name, trials, seed)]
    return rates + cut_a_little(trials, seed)


def _rows(rng: np.random.Generator, truth: float, row_noise: float) -> tuple[Any, Any]:
    """Lengths (prompts, seeds) of both sides."""
    lengths = rng.lognormal(0, 0.5, (PROMPTS, 1))
    a, b = (noise(rng, row_noise, (PROMPTS, SEEDS)) for _ in "ab")
    return lengths * a, (1 + truth) * lengths * b


def _effect(a: Any, b: Any, completed: Any) -> Effect:
    """Of prompts' means over the seeds that both sides completed."""
    used = completed.any(axis=1)
    means = [
        np.where(completed, side, 0.0)[used].sum(axis=1) / completed[used].sum(axis=1)
        for side in (a, b)
    ]
    return ratio_effect(*means)


def _cut(a: Any, b: Any, budget: float) -> tuple[Effect, RowComparison, TextComparison]:
    is_cut_a, is_cut_b = a >= budget, b >= budget
    rows = RowComparison(
        num_pairs=a.size,
        num_completed=a.size,
        num_cut=int(is_cut_b.sum()),
        num_cut_reference=int(is_cut_a.sum()),
        num_cut_apart=int((is_cut_a | is_cut_b).sum()),
    )
    effect = _effect(np.minimum(a, budget), np.minimum(b, budget), np.ones(a.shape, dtype=bool))
    return effect, rows, TextComparison(differing=a.size, compared=a.size)


def _words(
    effects: Mapping[str, Effect], rows: RowComparison, texts: TextComparison
) -> dict[str, str]:
    [judged] = judge([comparison("changed", effects, rows, texts)], Judgement())
    return {metric: verdict.word for metric, verdict in judged.verdicts.items()}
