"""One data set of prompts, counted in tokens: lengths, one long prompt, effects of several kinds.

A row's count is its prompt's length times log-normal noise of its own; a prompt's is the mean over
its seeds. Lengths are log-normal, and the first may be made many times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.statistics.calibration.rates import Rate
from benchmarks.statistics.calibration.tally import tally
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect

SEEDS, ROW_NOISE = 3, 0.3
TRUTH = -0.18
VARYING = 0.3
"""Standard deviation, on logs, of an effect that varies by prompt and not with its length."""
GROWING = -0.15
"""A prompt of length L (median 1) has L^GROWING times the median prompt's tokens."""
NULL_TRIALS = {8: 2000, 24: 5000, 72: 800, 400: 300}
COVERED_TRIALS = {8: 2000, 24: 1000, 72: 600, 400: 250}
GROWING_TRIALS = {24: 500, 72: 500, 400: 300}
LONG_TRIALS = 10_000
"""Of the setting in which the signs of pseudo-values were first seen to fail."""


@dataclass(frozen=True)
class Prompts:
    size: int
    lengths: float
    """Standard deviation of their logs."""
    longest: float = 1.0
    """By what the first one is longer."""

    @property
    def name(self) -> str:
        one = f", one {self.longest:g}x" if self.longest != 1 else ""
        return f"{self.size} prompts, lengths' sd {self.lengths:g}{one}"

    def draw(
        self, rng: np.random.Generator, truth: float, varying: float = 0.0, growing: float = 0.0
    ) -> Effect:
        logs = rng.normal(0, self.lengths, self.size)
        effect = np.exp(growing * logs) * noise(rng, varying, (self.size,))
        lengths = np.exp(logs)
        lengths[0] *= self.longest
        a, b = (noise(rng, ROW_NOISE, (self.size, SEEDS)).mean(axis=1) for _ in "ab")
        return ratio_effect(lengths * a, (1 + truth) * lengths * effect * b)

    def growing_truth(self, growing: float) -> float:
        """E[L^(1 + growing)] / E[L] - 1 of log-normal lengths."""
        return math.expm1(self.lengths**2 * ((1 + growing) ** 2 - 1) / 2)


SINGLE = [Prompts(n, sd, x) for n, sd, x in product(NULL_TRIALS, (0.5, 1, 2), (1, 10, 100))]
LONG = Prompts(24, 0.5, 100)
GROWN = [Prompts(n, sd) for n, sd in product(GROWING_TRIALS, (0.5, 1, 2))]


def noise(rng: np.random.Generator, sd: float, shape: tuple[int, ...]) -> Any:
    """Log-normal factors with mean 1."""
    return rng.lognormal(-(sd**2) / 2, sd, shape)


def null(prompts: Prompts, trials: int, seed: int) -> list[Rate]:
    """False alarms at every level."""
    rng = np.random.default_rng([seed, 1, *_entropy(prompts)])
    return tally(prompts.name, 0.0, (prompts.draw(rng, 0.0) for _ in range(trials))).alarms()


def covered(prompts: Prompts, trials: int, seed: int) -> list[Rate]:
    """Coverage of one effect that all prompts share, and of one that varies by prompt."""
    rates = []
    for number, varying in enumerate((0.0, VARYING)):
        rng = np.random.default_rng([seed, 2 + number, *_entropy(prompts)])
        kind = "effects vary by prompt" if varying else "one effect"
        drawn = (prompts.draw(rng, TRUTH, varying) for _ in range(trials))
        rates += tally(f"{prompts.name}, {kind}", TRUTH, drawn).coverage()
    return rates


def grown(prompts: Prompts, trials: int, seed: int) -> list[Rate]:
    """Coverage of effects that grow with length: no method is promised to have it."""
    rng = np.random.default_rng([seed, 4, *_entropy(prompts)])
    truth = prompts.growing_truth(GROWING)
    drawn = (prompts.draw(rng, 0.0, growing=GROWING) for _ in range(trials))
    return tally(f"{prompts.name}, effects grow with length", truth, drawn).coverage(False)


def all_rates(share: float, seed: int) -> list[Rate]:
    """`share` of the trials of each setting."""

    def some(trials: int) -> int:
        return max(1, round(share * trials))

    rates = []
    for prompts in SINGLE:
        rates += null(prompts, some(NULL_TRIALS[prompts.size]), seed)
        rates += covered(prompts, some(COVERED_TRIALS[prompts.size]), seed)
    for prompts in GROWN:
        rates += grown(prompts, some(GROWING_TRIALS[prompts.size]), seed)
    rng = np.random.default_rng([seed, 5])
    drawn = (LONG.draw(rng, 0.0) for _ in range(some(LONG_TRIALS)))
    rates += tally(f"{LONG.name}, many trials", 0.0, drawn).alarms()
    return rates


def _entropy(prompts: Prompts) -> list[int]:
    return [prompts.size, round(10 * prompts.lengths), round(prompts.longest)]
