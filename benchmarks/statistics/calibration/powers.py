"""How often differences are found: power against its formula, and beside intervals' overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.statistics.calibration.prompts import noise
from benchmarks.statistics.calibration.rates import Rate, within
from jobs.stats.components import Components
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import difference_effect, geometric_effect, ratio_effect
from jobs.stats.power import mde, needed, power_of
from jobs.stats.significance import benjamini_hochberg

ALPHA = 0.05
WITHIN = 0.03
"""Of the formula's power."""
TRUTH = 0.02
TRIALS, TRIALS_PLANTED, TRIALS_OF_DISCOVERIES = 1500, 500, 600


@dataclass(frozen=True)
class Pairs:
    """Paired prompts whose effect on logs is normal, and how they are judged."""

    statistic: str
    prompts: int
    seeds: int = 3
    between: float = 0.04
    """Standard deviation of the effect from prompt to prompt."""
    within: float = 0.06
    """And from seed to seed of one prompt."""
    lengths: float = 0.5
    """Standard deviation of the prompts' lengths on logs."""

    @property
    def variance(self) -> float:
        """Of one prompt's mean over its seeds."""
        return self.between**2 + self.within**2 / self.seeds

    @property
    def se(self) -> float:
        """Of the mean; of a ratio of totals more, as long prompts count for more."""
        spread = math.exp(self.lengths**2 / 2) if self.statistic == "ratio of totals" else 1.0
        return spread * math.sqrt(self.variance / self.prompts)

    def draw(self, rng: np.random.Generator, effect: float) -> Effect:
        """`effect` is that of the statistic, on logs."""
        lengths = rng.normal(0, self.lengths, self.prompts)
        own = rng.normal(effect, self.between, self.prompts)
        own += rng.normal(0, self.within, (self.prompts, self.seeds)).mean(axis=1)
        if self.statistic == "difference":
            return difference_effect(lengths, lengths + own)
        if self.statistic == "geometric mean":
            return geometric_effect(np.exp(lengths), np.exp(lengths + own))
        # The mean of a log-normal ratio is above its median.
        return ratio_effect(np.exp(lengths), np.exp(lengths + own - self.variance / 2))

    def found(self, effect: float, trials: int, entropy: Sequence[int]) -> int:
        rng = np.random.default_rng(entropy)
        return sum(self.draw(rng, effect).includes_zero is False for _ in range(trials))


POWERS = [
    Pairs("difference", 20),
    Pairs("difference", 100),
    Pairs("geometric mean", 60),
    Pairs("ratio of totals", 150, lengths=0.3),
    Pairs("ratio of totals", 150, lengths=0.5),
]


def power(number: int, trials: int, seed: int) -> list[Rate]:
    """How often an effect of the size of the MDE is found, against what `power_of` says."""
    pairs = POWERS[number]
    effect = mde(pairs.se, pairs.prompts - 1)
    goal = power_of(effect, pairs.se, pairs.prompts - 1)
    count = pairs.found(effect, trials, [seed, 30, number])
    label = f"{pairs.statistic}, {pairs.prompts} prompts, lengths' sd {pairs.lengths}"
    return [Rate(label, "the MDE is found", count, trials, **within(goal, WITHIN))]


def settled(trials: int, seed: int) -> list[Rate]:
    """Whether the prompts, or the seeds, that `needed` asks for give the power asked for (80 %)."""
    pilot, effect = Pairs("difference", 40, 3, between=0.02, within=0.08), 0.02
    more = needed(Components(pilot.between**2, pilot.within**2, 40, 3), effect, 40, 3)
    assert more.num_prompts is not None
    assert more.num_seeds is not None
    larger = (
        replace(pilot, prompts=40 + more.num_prompts),
        replace(pilot, seeds=3 + more.num_seeds),
    )
    rates = []
    for number, pairs in enumerate(larger):
        count = pairs.found(effect, trials, [seed, 31, number])
        label = f"as needed: {pairs.prompts} prompts x {pairs.seeds} seeds"
        # Whole numbers of seeds are few, so that the next one up may give more than was asked for.
        most = power_of(effect, pairs.se, pairs.prompts - 1) + WITHIN
        rates.append(Rate(label, "the effect is found", count, trials, 0.8 - WITHIN, most))
    return rates


def planted(trials: int, seed: int) -> list[Rate]:
    """2 % on 150 prompts x 5 seeds, prompt sd 0.5 on logs, row noise 3 %: how often it is found.

    By the paired interval, and by two separate intervals that do not overlap.
    """
    rng = np.random.default_rng([seed, 32])
    by_interval = by_overlap = 0
    for _ in range(trials):
        prompts = rng.lognormal(0, 0.5, (150, 1))
        a, b = (prompts * noise(rng, 0.03, (2, 150, 5))).mean(axis=2)
        by_interval += ratio_effect(a, b * (1 + TRUTH)).includes_zero is False
        left, right = (_mean_interval(np.log(side)) for side in (a, b * (1 + TRUTH)))
        by_overlap += bool(left[1] < right[0] or right[1] < left[0])
    label = "a planted 2 %, 150 prompts x 5 seeds"
    return [
        Rate(label, "found by the pairs' interval", by_interval, trials),
        Rate(label, "found by intervals that do not overlap", by_overlap, trials),
    ]


def discoveries(trials: int, seed: int) -> list[Rate]:
    """Ten metrics of 30 prompts, correlated 0.5, five of which differ much: false discoveries.

    The count is the sum of false shares, rounded.
    """
    rng = np.random.default_rng([seed, 33])
    false_share, zeros = 0.0, np.zeros(30)
    for _ in range(trials):
        values = (rng.normal(size=(30, 1)) + rng.normal(size=(30, 10))) / math.sqrt(2)
        values[:, :5] += 1.0
        p = benjamini_hochberg([difference_effect(zeros, column).p for column in values.T])
        found = [each is not None and each <= ALPHA for each in p]
        false_share += sum(found[5:]) / max(1, sum(found))
    count = round(false_share)
    return [Rate("10 exploratory metrics", "false discoveries", count, trials, high=ALPHA)]


def all_rates(share: float, seed: int) -> list[Rate]:
    def some(trials: int) -> int:
        return max(1, round(share * trials))

    rates = [rate for number in range(len(POWERS)) for rate in power(number, some(TRIALS), seed)]
    rates += settled(some(TRIALS), seed) + planted(some(TRIALS_PLANTED), seed)
    return rates + discoveries(some(TRIALS_OF_DISCOVERIES), seed)


def _mean_interval(values: Any) -> tuple[float, float]:
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return values.mean() - half, values.mean() + half
