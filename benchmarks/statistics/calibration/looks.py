"""Looking again, after data were added by what was seen.

Only what a look left open is judged at the next one, and as many prompts are added as the open
verdicts seem to need, which is how `optrial settle` goes about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.statistics.calibration.comparisons import DIRECTED, TOKENS, comparison
from benchmarks.statistics.calibration.families import MARGINS
from benchmarks.statistics.calibration.prompts import SEEDS, noise
from benchmarks.statistics.calibration.rates import Rate, at_most
from jobs.analysis.looks import Look, Settled
from jobs.analysis.verdicts import Judged, judge
from jobs.spec.analysis_plan import Judgement
from jobs.stats.components import Components
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import ratio_effect
from jobs.stats.power import needed

TRIALS = 200
FIRST, LOOKS = 24, 5
ROW_NOISE = 0.1


@dataclass
class Growing:
    """Prompts of one trial, to which more are added: one reference and several configurations."""

    rng: np.random.Generator
    effects: dict[str, float]
    """True, by configuration."""
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, num: int) -> None:
        lengths = self.rng.lognormal(0, 0.5, num)
        for name, effect in {"baseline": 0.0, **self.effects}.items():
            own = lengths * noise(self.rng, ROW_NOISE, (num, SEEDS)).mean(axis=1)
            self.columns.setdefault(name, []).append((1 + effect) * own)

    def effect(self, name: str) -> Effect:
        return ratio_effect(*(np.concatenate(self.columns[each]) for each in ("baseline", name)))

    def judged(self, looks: tuple[Look, ...] = ()) -> list[Judged]:
        comparisons = [comparison(name, {TOKENS: self.effect(name)}) for name in self.effects]
        return judge(comparisons, Judgement(), looks)


def five_looks(trials: int, seed: int) -> list[Rate]:
    """One configuration as the baseline and one with δ more, until all is decided or 5 looks."""
    rng, true = np.random.default_rng([seed, 60]), {"same": 0.0, "more": MARGINS[TOKENS]}
    differs = equal = num_open = 0
    for _ in range(trials):
        words = _looked(Growing(rng, true))
        differs += any(words[name] in DIRECTED for name in true if true[name] == 0)
        equal += any(words[name] == "equivalent" for name in true if true[name] != 0)
        num_open += sum(word == "inconclusive" for word in words.values())
    name, alpha = "5 looks, 2 configurations", Judgement().alpha
    return [
        Rate(name, "ever a false difference", differs, trials, **at_most(alpha)),
        Rate(name, "ever a false equivalence", equal, trials, **at_most(alpha)),
        Rate(name, "verdicts still open", num_open, 2 * trials),
    ]


def _looked(trial: Growing) -> dict[str, str]:
    """The words after the last look, of which those once given stay."""
    looks: tuple[Look, ...] = ()
    trial.add(FIRST)
    while True:
        judged = trial.judged(looks)
        words = {j.comparison.configuration: j.verdicts[TOKENS].word for j in judged}
        open_ = [name for name, word in words.items() if word == "inconclusive"]
        if not open_ or len(looks) + 1 == LOOKS:
            return dict(words)
        looks = (*looks, _look(judged, len(looks) + 1, open_))
        trial.add(_added(trial, open_, len(looks) + 1))


def _look(judged: list[Judged], number: int, open_: list[str]) -> Look:
    given = {j.comparison.configuration: j.verdicts[TOKENS] for j in judged}
    settled = tuple(
        Settled(configuration=name, metric=TOKENS, word=verdict.word, look=number)
        for name, verdict in given.items()
        if name not in open_ and verdict.look is None
    )
    level = Judgement().level(number)
    return Look(
        number=number,
        level=level,
        settled=settled,
        open=tuple((name, TOKENS) for name in open_),
        configurations=tuple(open_),
    )


def _added(trial: Growing, open_: list[str], look: int) -> int:
    """As many as the open verdict that needs most: at least 8, at most as many as there are."""
    wanted = []
    level = Judgement().level(look) / len(open_)
    for name in open_:
        effect = trial.effect(name)
        size, there = abs(effect.log_estimate or 0.0), effect.num_clusters
        spread = Components(((effect.se or 0.0) ** 2) * there, None, there, 1)
        room = math.log1p(MARGINS[TOKENS]) - size
        ways = [(size, level, 0.8), (room, 2 * level, 0.9)]
        needs = [needed(spread, t, there, 1, a, p).num_prompts for t, a, p in ways if t > 0]
        wanted.append(min(there if n is None else n for n in needs))
    there = trial.effect(open_[0]).num_clusters
    return min(max(8, *wanted), there)


def all_rates(share: float, seed: int) -> list[Rate]:
    return five_looks(max(1, round(share * TRIALS)), seed)
