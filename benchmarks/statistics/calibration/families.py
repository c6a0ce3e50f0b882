"""Verdicts of many configurations against one baseline: any false word among all of them.

Each configuration asks two primary questions: tokens of 24 prompts, and time per byte of 12 shards.
All share the baseline's numbers, so that their tests depend on each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.statistics.calibration.comparisons import DIRECTED, TOKENS, comparison
from benchmarks.statistics.calibration.prompts import SEEDS, noise
from benchmarks.statistics.calibration.rates import Rate, at_most
from jobs.analysis.comparison import Comparison
from jobs.analysis.verdicts import judge
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import METRICS
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect

TIME = "e2e_s_per_byte"
PROMPTS, SHARDS = 24, 12
MARGINS = {metric.name: metric.margin for metric in METRICS}
LARGE = -0.20
_KINDS = ("none", "large", "more", "less")
TRIALS = {1: 2000, 8: 600, 32: 200}
"""By the number of configurations."""


@dataclass(frozen=True)
class Baseline:
    """What all configurations of one trial are compared with."""

    lengths: Any
    """Of prompts."""
    shards: Any
    """What a shard takes."""
    row_noise: float
    cell_noise: float
    tokens: Any
    times: Any

    @classmethod
    def drawn(cls, rng: np.random.Generator, row_noise: float, cell_noise: float) -> Baseline:
        lengths, shards = rng.lognormal(0, 1, PROMPTS), rng.lognormal(0, 0.2, SHARDS)
        tokens = lengths * noise(rng, row_noise, (PROMPTS, SEEDS)).mean(axis=1)
        times = shards * noise(rng, cell_noise, (SHARDS, SEEDS)).mean(axis=1)
        return cls(lengths, shards, row_noise, cell_noise, tokens, times)

    def effects(self, rng: np.random.Generator, tokens: float, times: float) -> dict[str, Effect]:
        """Of a configuration whose true effects are these."""
        own = self.lengths * noise(rng, self.row_noise, (PROMPTS, SEEDS)).mean(axis=1)
        spent = self.shards * noise(rng, self.cell_noise, (SHARDS, SEEDS)).mean(axis=1)
        return {
            TOKENS: ratio_effect(self.tokens, (1 + tokens) * own),
            TIME: ratio_effect(self.times, (1 + times) * spent),
        }


def nothing_differs(size: int, trials: int, seed: int) -> list[Rate]:
    """Noise as of sampled texts: any word of a difference is false."""
    rng, judgement = np.random.default_rng([seed, 40, size]), Judgement()
    count = 0
    for _ in range(trials):
        baseline = Baseline.drawn(rng, row_noise=0.3, cell_noise=0.015)
        drawn = [comparison(f"c{i}", baseline.effects(rng, 0.0, 0.0)) for i in range(size)]
        count += any(DIRECTED & words.keys() for words in _words(drawn, judgement))
    what = f"any false difference at {judgement.level(1) * 100:g} %"
    return [Rate(_name(size, "none differs"), what, count, trials, **at_most(judgement.level(1)))]


def some_differ(size: int, trials: int, seed: int) -> list[Rate]:
    """Of every four, one is as the baseline, one has 20 % less, and two are δ more and δ less.

    One alone has δ more.
    """
    rng, level = np.random.default_rng([seed, 41, size]), Judgement().level(1)
    kinds = [_KINDS[i % 4] for i in range(size)] if size > 1 else ["more"]
    counts: Counter[str] = Counter()
    for _ in range(trials):
        baseline = Baseline.drawn(rng, row_noise=0.03, cell_noise=0.015)
        drawn = [
            comparison(f"c{i}", baseline.effects(rng, _effect(kind, TOKENS), _effect(kind, TIME)))
            for i, kind in enumerate(kinds)
        ]
        words: dict[str, Counter[str]] = defaultdict(Counter)
        for kind, own in zip(kinds, _words(drawn, Judgement()), strict=True):
            words[kind].update(own)
        large = words["large"]
        counts["false difference"] += bool(DIRECTED & words["none"].keys())
        counts["false equivalence"] += "equivalent" in words["more"] + words["less"]
        counts["wrong word of -20 %"] += bool({"higher", "worse", "equivalent"} & large.keys())
        counts["found"] += large["lower"] + large["better"]
    name, at = _name(size, "some differ"), f"at {level * 100:g} %"
    kept = ["false equivalence"] if size == 1 else [name for name in counts if name != "found"]
    rates = [
        Rate(name, f"any {what} {at}", counts[what], trials, **at_most(level)) for what in kept
    ]
    if num_large := 2 * kinds.count("large") * trials:
        rates.append(Rate(name, "-20 % is found", counts["found"], num_large))
    return rates


def all_rates(share: float, seed: int) -> list[Rate]:
    rates = []
    for size, trials in TRIALS.items():
        rates += nothing_differs(size, max(1, round(share * trials)), seed)
        rates += some_differ(size, max(1, round(share * trials)), seed)
    return rates


def _words(drawn: Sequence[Comparison], judgement: Judgement) -> list[Counter[str]]:
    return [Counter(v.word for v in j.verdicts.values()) for j in judge(drawn, judgement)]


def _effect(kind: str, metric: str) -> float:
    """±δ count alike on logs: 1 + δ and 1 / (1 + δ)."""
    margin = MARGINS[metric]
    return {"none": 0.0, "large": LARGE, "more": margin, "less": 1 / (1 + margin) - 1}[kind]


def _name(size: int, what: str) -> str:
    return f"{size} configuration{'s' if size > 1 else ''}, 2 answers each: {what}"
