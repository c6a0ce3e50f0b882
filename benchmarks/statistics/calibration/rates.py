"""Rates of simulated trials beside what is promised of them, and how far apart the two are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import stats

from jobs.stats.permutation.swaps import MOST_ENUMERATED, NUM_SWAPS

Kind = Literal["exact", "bounds", "never", "given"]
LEVELS = (0.05, 0.04, 0.01, 0.001)
FEWEST_EXPECTED = 5
"""Counts below which a rate's standard error says nothing of its spread: a level at which fewer are
expected is not counted, unless none may be."""


@dataclass(frozen=True)
class Rate:
    """How often something was found, with the rates between which it is promised to be."""

    setting: str
    what: str
    count: int
    trials: int
    low: float = 0.0
    high: float = 1.0
    """0 to 1 where nothing is promised and the figure is given."""

    @property
    def rate(self) -> float:
        return self.count / self.trials

    @property
    def has_goal(self) -> bool:
        return (self.low, self.high) != (0.0, 1.0)

    @property
    def kind(self) -> Kind:
        """What is promised: a rate itself, a most or a least, that it never happens, or nothing."""
        if not self.has_goal:
            return "given"
        if self.high == 0:
            return "never"
        return "exact" if self.low == self.high else "bounds"

    @property
    def deviation(self) -> float:
        """Standard errors beyond the nearest rate that is promised; 0 within."""
        nearest = min(max(self.rate, self.low), self.high)
        if nearest == self.rate:
            return 0.0
        error = math.sqrt(nearest * (1 - nearest) / self.trials)
        return (self.rate - nearest) / error if error else math.copysign(math.inf, self.rate)

    @property
    def may_be_kept(self) -> bool:
        """Whether chance explains it: exact binomial tail above that of 4 standard errors."""
        rarest = float(stats.norm.sf(4))
        above = float(stats.binom.sf(self.count - 1, self.trials, self.high))
        below = float(stats.binom.cdf(self.count, self.trials, self.low))
        return above >= rarest and below >= rarest

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self) | {"rate": self.rate, "deviation": self.deviation}
        if not self.has_goal:
            found |= {"low": None, "high": None, "deviation": None}
        elif math.isinf(self.deviation):
            found["deviation"] = None
        return found


def attained(level: float, num_clusters: int) -> float:
    """What a test at this level finds of nothing: p is a share of the swaps that are tried."""
    num_ways = 2 ** (num_clusters - 1)
    is_every = num_clusters <= MOST_ENUMERATED or num_ways - 1 <= NUM_SWAPS
    size = num_ways if is_every else NUM_SWAPS + 1
    return math.floor(level * size + 1e-9) / size


def exactly(promised: float) -> dict[str, float]:
    return {"low": promised, "high": promised}


def at_most(promised: float) -> dict[str, float]:
    return {"high": promised}


def at_least(promised: float) -> dict[str, float]:
    return {"low": promised}


def within(promised: float, margin: float) -> dict[str, float]:
    return {"low": promised - margin, "high": promised + margin}


def summary(rates: Sequence[Rate]) -> dict[str, Any]:
    """How many rates are beyond 2 and 4 standard errors of their promise, and should be by chance.

    `exact` are rates that are promised themselves, `bounds` those with a most or a least, `never`
    what may not happen at all. The most by chance is the 97.5 % point of the binomial, as if rates
    were independent; those of one setting at several levels are of the same trials.
    """
    own: dict[str, list[Rate]] = {"exact": [], "bounds": [], "never": [], "given": []}
    for rate in rates:
        own[rate.kind].append(rate)
    found: dict[str, Any] = {"rates": len(rates), "given": len(own["given"])}
    for kind, share in {"exact": 2 * stats.norm.sf(2), "bounds": stats.norm.sf(2)}.items():
        found[kind] = {
            "goals": len(own[kind]),
            "beyond_2": sum(abs(r.deviation) > 2 for r in own[kind]),
            "expected_beyond_2": round(share * len(own[kind]), 1),
            "most_by_chance": int(stats.binom.ppf(0.975, len(own[kind]), share)),
            "beyond_4": [f"{r.setting}: {r.what}" for r in own[kind] if abs(r.deviation) > 4],
        }
    missed = [f"{r.setting}: {r.what}, {r.count} of {r.trials}" for r in own["never"] if r.count]
    return found | {"never": {"goals": len(own["never"]), "missed": missed}}
