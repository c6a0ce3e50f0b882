"""What is counted of many trials of one setting, by verdicts' test and by what came before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.statistics.calibration.old_verdicts import old_verdict
from benchmarks.statistics.calibration.rates import (
    FEWEST_EXPECTED,
    LEVELS,
    Rate,
    at_least,
    attained,
    exactly,
)
from jobs.stats.permutation.effect import Effect

CONFIDENCE = 0.95
OLD = "old: "
DISAGREE = "p and interval disagree"


@dataclass
class Tally:
    """p-values, coverage of `truth`, and whether p and interval ever contradict each other."""

    setting: str
    truth: float = 0.0
    trials: int = 0
    num_clusters: int = 0
    is_plain: bool = True
    """One data set, whose interval is all that the test keeps; else a hull, which may be wider."""
    contradictions: int = 0
    unbounded: int = 0
    """Trials without an interval, as it has no end: they cover."""
    covered: int = 0
    found: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    old_found: dict[float, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    old_covered: int = 0

    def add(self, effect: Effect) -> None:
        assert effect.p is not None
        self.trials += 1
        self.num_clusters = effect.num_clusters
        self.is_plain = effect.method == "cluster swaps"
        for level in LEVELS:
            self.found[level] += effect.p <= level
        if effect.low is None or effect.high is None:
            self.unbounded += 1
            self.covered += 1
        else:
            self.contradictions += (effect.p <= 1 - CONFIDENCE + 1e-12) == effect.includes_zero
            self.covered += effect.low <= self.truth <= effect.high
        if (old := old_verdict(effect)) is not None:
            for level in LEVELS:
                self.old_found[level] += old.p <= level
            self.old_covered += old.low <= self.truth <= old.high

    def alarms(self, is_promised: bool = True) -> list[Rate]:
        """Of trials in which nothing differs: how often p is at most each level."""
        rates = []
        for level in LEVELS:
            goal = attained(level, self.num_clusters)
            if self.trials * goal < FEWEST_EXPECTED and goal > 0:
                continue
            promised = exactly(goal) if is_promised else {}
            what = f"false alarms at {level * 100:g} %"
            rates.append(self._rate(what, self.found[level], promised))
            rates.append(self._rate(OLD + what, self.old_found[level], {}))
        return [*rates, *self.intervals()]

    def coverage(self, is_promised: bool = True) -> list[Rate]:
        """Of the truth by intervals of 95 %."""
        goal = 1 - attained(1 - CONFIDENCE, self.num_clusters)
        promised = exactly(goal) if self.is_plain else at_least(goal)
        return [
            self._rate("coverage", self.covered, promised if is_promised else {}),
            self._rate(OLD + "coverage", self.old_covered, {}),
            *self.intervals(),
        ]

    def power(self, level: float) -> Rate:
        """How often a difference is found, where there is one: given."""
        return self._rate(f"found at {level * 100:g} %", self.found[level], {})

    def intervals(self) -> list[Rate]:
        rates = [self._rate(DISAGREE, self.contradictions, exactly(0.0))]
        if self.unbounded:
            rates.append(self._rate("no interval", self.unbounded, {}))
        return rates

    def _rate(self, what: str, count: int, promised: dict[str, Any]) -> Rate:
        return Rate(self.setting, what, count, self.trials, **promised)


def tally(setting: str, truth: float, effects: Iterable[Effect]) -> Tally:
    found = Tally(setting, truth)
    for effect in effects:
        found.add(effect)
    return found
