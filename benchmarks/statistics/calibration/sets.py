"""Several data sets in one comparison: equal effects, opposite ones, and none.

The effect is the mean of the sets' on logs; that it is not the same in all is a finding of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.statistics.calibration.comparisons import word_of
from benchmarks.statistics.calibration.prompts import ROW_NOISE, SEEDS, VARYING, noise
from benchmarks.statistics.calibration.rates import FEWEST_EXPECTED, Rate, at_most, exactly
from benchmarks.statistics.calibration.tally import tally
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect

TRIALS, TRIALS_OF_WORDS = 600, 300
EQUAL, OPPOSITE, BALANCED = (-0.18, -0.18), (-0.18, 0.30), (-0.20, 0.25)
"""The last one's mean is no effect."""
WORDED = {"-18 % and -18 %": EQUAL, "-18 % and +30 %": OPPOSITE, "-20 % and +20 %": (-0.20, 0.20)}


@dataclass(frozen=True)
class Sets:
    size: int
    """Prompts of each."""
    lengths: float
    """Standard deviation of their logs."""
    number: int = 2
    longest: float = 1.0
    """By what the first prompt of the first set is longer."""

    @property
    def name(self) -> str:
        one = f", one {self.longest:g}x" if self.longest != 1 else ""
        return f"{self.number} sets of {self.size} prompts, lengths' sd {self.lengths:g}{one}"

    def draw(
        self, rng: np.random.Generator, effects: tuple[float, ...], varying: float = 0.0
    ) -> Effect:
        shape = (self.number, self.size)
        lengths = rng.lognormal(0, self.lengths, shape)
        lengths[0, 0] *= self.longest
        change = (1 + np.array(effects)[:, None]) * noise(rng, varying, shape)
        a, b = (noise(rng, ROW_NOISE, (*shape, SEEDS)).mean(axis=2) for _ in "ab")
        names = np.repeat(np.arange(self.number), self.size).tolist()
        return ratio_effect((lengths * a).ravel(), (lengths * change * b).ravel(), strata=names)


SEVERAL = [Sets(n, sd) for n, sd in product((8, 24, 72), (0.5, 2))]
NULLS = [
    *SEVERAL,
    *[Sets(n, 0.5, longest=x) for n, x in product((8, 24, 72), (10, 100))],
    *[Sets(n, 1, number=4) for n in (8, 24)],
]


def mean_of(effects: tuple[float, ...]) -> float:
    """On logs, as the effect of several sets is."""
    return math.expm1(math.fsum(map(math.log1p, effects)) / len(effects))


def null(sets: Sets, trials: int, seed: int) -> list[Rate]:
    rng = np.random.default_rng([seed, 20, NULLS.index(sets)])
    nothing = (0.0,) * sets.number
    return tally(sets.name, 0.0, (sets.draw(rng, nothing) for _ in range(trials))).alarms()


def with_effects(sets: Sets, trials: int, seed: int) -> list[Rate]:
    """Coverage of the mean, false alarms where it is nothing, false talk of sets that differ."""
    rates = []
    for number, (name, effects, varying) in enumerate(
        [
            ("-18 % and -18 %", EQUAL, 0.0),
            ("-18 % and -18 %, varying by prompt", EQUAL, VARYING),
            ("-18 % and +30 %", OPPOSITE, 0.0),
        ]
    ):
        rng = np.random.default_rng([seed, 21 + number, SEVERAL.index(sets)])
        drawn = [sets.draw(rng, effects, varying) for _ in range(trials)]
        setting = f"{sets.name}, {name}"
        found = tally(setting, mean_of(effects), drawn)
        rates += [*found.coverage(), found.power(0.04)]
        rates += _said_to_differ(setting, drawn, is_true=effects != EQUAL)
    rng = np.random.default_rng([seed, 24, SEVERAL.index(sets)])
    setting = f"{sets.name}, -20 % and +25 %"
    drawn = [sets.draw(rng, BALANCED) for _ in range(trials)]
    return [
        *rates,
        *tally(setting, 0.0, drawn).alarms(),
        *_said_to_differ(setting, drawn, is_true=True),
    ]


def _said_to_differ(setting: str, drawn: list[Effect], is_true: bool) -> list[Rate]:
    rates = []
    for level in (0.04, 0.01):
        if len(drawn) * level < FEWEST_EXPECTED:
            continue
        count = sum(e.interaction_p is not None and e.interaction_p <= level for e in drawn)
        what = f"sets said to differ at {level * 100:g} %"
        promised = {} if is_true else at_most(level)
        rates.append(Rate(setting, what, count, len(drawn), **promised))
    return rates


def worded(name: str, trials: int, seed: int, size: int = 72) -> list[Rate]:
    """The word that a report says of tokens; of opposite effects never that they are equivalent."""
    rng = np.random.default_rng([seed, 25, list(WORDED).index(name), size])
    sets = Sets(size, 0.5)
    words = Counter(word_of(sets.draw(rng, WORDED[name])) for _ in range(trials))
    setting = f"{sets.name}, {name}"
    rates = [Rate(setting, f"word: {w}", words[w], trials) for w in ("lower", "higher", "mixed")]
    return [*rates, Rate(setting, "word: equivalent", words["equivalent"], trials, **exactly(0.0))]


def all_rates(share: float, seed: int) -> list[Rate]:
    trials = max(1, round(share * TRIALS))
    rates = [rate for sets in NULLS for rate in null(sets, trials, seed)]
    for sets in SEVERAL:
        rates += with_effects(sets, trials, seed)
    few = max(1, round(share * TRIALS_OF_WORDS))
    for name, size in product(WORDED, (24, 72)):
        rates += worded(name, few, seed, size)
    return rates
