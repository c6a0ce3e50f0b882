"""How often the statistics are wrong, by simulation: `python -m benchmarks.statistics`.

False alarms where nothing differs, coverage of intervals where something does, power against its
formula, and families of tests, through the functions that reports use. Prints tables, and as its
last line JSON. `tests/test_calibration.py` runs the same with fewer trials.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.machine import describe
from jobs.analysis.components import Components
from jobs.analysis.effects import Effect, difference_effect, geometric_effect, ratio_effect
from jobs.analysis.multiplicity import benjamini_hochberg, holm
from jobs.analysis.power import mde, needed, power_of

ALPHA = 0.05
ALARMS = (0.035, 0.065)
COVERAGE = (0.93, 0.97)
POWER_WITHIN = 0.03
TRUTH = 0.02

Draw = Callable[[np.random.Generator, float], Effect]
"""(random numbers, true effect: a fraction, or a difference) -> what the trial finds."""


@dataclass(frozen=True)
class Rate:
    """A count of trials, and whether the true rate may lie within the goal."""

    name: str
    what: str
    count: int
    trials: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.count / self.trials

    @property
    def may_be_within(self) -> bool:
        """By the exact binomial interval (99.9 %)."""
        bounds = stats.binomtest(self.count, self.trials).proportion_ci(0.999)
        return bool(bounds.low <= self.high and bounds.high >= self.low)

    @property
    def is_within(self) -> bool:
        return self.low <= self.rate <= self.high


def noise(rng: np.random.Generator, sd: float, shape: tuple[int, ...]) -> Any:
    """Log-normal factors with mean 1."""
    return rng.lognormal(-(sd**2) / 2, sd, shape)


def varying_effects(rng: np.random.Generator, truth: float) -> Effect:
    """100 prompts of very different lengths, 5 seeds; the effect varies by prompt (sd 10 %)."""
    prompts = rng.lognormal(0, 0.8, (100, 1))
    change = (1 + truth) * noise(rng, 0.1, (100, 1))
    a, b = noise(rng, 0.05, (2, 100, 5))
    return ratio_effect((prompts * a).mean(axis=1), (prompts * change * b).mean(axis=1))


def heavy_differences(rng: np.random.Generator, truth: float) -> Effect:
    """40 differences with the tails of t on 3 degrees of freedom."""
    return difference_effect(np.zeros(40), rng.standard_t(3, 40) + truth)


def heavy_ratios(rng: np.random.Generator, truth: float) -> Effect:
    """60 prompts whose two sides are unrelated log-normal lengths (sd 0.8 on logs)."""
    a, b = rng.lognormal(0, 0.8, (2, 60))
    return ratio_effect(a, b * (1 + truth))


def clustered_prompts(rng: np.random.Generator, truth: float) -> Effect:
    """30 groups of 2 to 6 prompts that share most of their effect (sd 10 % and 5 %)."""
    groups = np.repeat(np.arange(30), rng.integers(2, 7, 30))
    prompts = rng.lognormal(0, 0.5, len(groups))
    shared = noise(rng, 0.1, (30,))[groups] * noise(rng, 0.05, (len(groups),))
    return ratio_effect(prompts, (1 + truth) * prompts * shared, groups.tolist())


def shared_noise(shards: int, sd: float, rng: np.random.Generator, truth: float) -> Effect:
    """Cells of 12 rows and 3 seeds: noise shared by all rows of a cell, 0.5 % of their own."""
    prompts = rng.lognormal(0, 0.5, (shards, 12, 1))
    a, b = noise(rng, sd, (2, shards, 1, 3)) * noise(rng, 0.005, (2, shards, 12, 3))
    times = (prompts * a).mean(axis=2), (1 + truth) * (prompts * b).mean(axis=2)
    return ratio_effect(times[0].ravel(), times[1].ravel(), [i // 12 for i in range(12 * shards)])


def drifting(order: str, rng: np.random.Generator, truth: float) -> Effect:
    """A machine that slows by 1.5 % over 10 shards x 5 seeds; run noise 0.4 %, 12 rows a cell."""
    blocks = np.arange(50).reshape(10, 5)
    first, second = 2 * blocks, 2 * blocks + 1
    if order == "blocked":
        first, second = blocks, blocks + 50
    swapped = rng.integers(0, 2, (10, 5)).astype(bool) & (order == "randomised")
    places = np.where(swapped, second, first), np.where(swapped, first, second)
    slower = [1 + 0.015 * place / 99 for place in places]
    prompts = rng.lognormal(0, 0.5, (10, 12, 1))
    a, b = (s[:, None, :] * noise(rng, 0.004, (10, 1, 5)) for s in slower)
    times = (prompts * a).mean(axis=2), (1 + truth) * (prompts * b).mean(axis=2)
    return ratio_effect(times[0].ravel(), times[1].ravel(), [i // 12 for i in range(120)])


SCENARIOS: dict[str, Draw] = {
    "effects vary by prompt": varying_effects,
    "heavy tails: t3 differences": heavy_differences,
    "heavy tails: log-normal sides": heavy_ratios,
    "clustered prompts": clustered_prompts,
    "1.5 % drift, randomised order": partial(drifting, "randomised"),
    **{
        f"{100 * sd:g} % noise of cells, {shards} shards": partial(shared_noise, shards, sd)
        for shards in (8, 10, 30)
        for sd in (0.005, 0.015, 0.03)
    },
}


def calibration(name: str, trials: int, seed: int = 0) -> list[Rate]:
    """False alarms by the interval and by the sign-flip p, and coverage of a true 2 %."""
    draw = SCENARIOS[name]
    rng = np.random.default_rng([seed, list(SCENARIOS).index(name)])
    by_interval = by_p = covered = 0
    for _ in range(trials):
        found = draw(rng, 0.0)
        by_interval += not found.includes_zero
        by_p += found.p is not None and found.p <= ALPHA
        found = draw(rng, TRUTH)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= TRUTH <= found.high
    return [
        Rate(name, "false alarms, interval", by_interval, trials, *ALARMS),
        Rate(name, "false alarms, sign flips", by_p, trials, *ALARMS),
        Rate(name, "coverage", covered, trials, *COVERAGE),
    ]


def blocked_order(trials: int, seed: int = 0) -> float:
    """False alarms if all runs of one configuration came first: what randomising prevents."""
    rng = np.random.default_rng([seed, 100])
    return sum(not drifting("blocked", rng, 0.0).includes_zero for _ in range(trials)) / trials


def planted(trials: int, seed: int = 0) -> tuple[int, int, int]:
    """2 % on 150 prompts x 5 seeds, prompt sd 0.5 on logs, row noise 3 %: how often it is found.

    By the paired interval, by the sign-flip p, and by two separate intervals that do not overlap.
    """
    rng = np.random.default_rng([seed, 101])
    by_interval = by_p = by_overlap = 0
    for _ in range(trials):
        prompts = rng.lognormal(0, 0.5, (150, 1))
        a, b = (prompts * noise(rng, 0.03, (2, 150, 5))).mean(axis=2)
        found = ratio_effect(a, b * (1 + TRUTH))
        by_interval += found.includes_zero is False
        by_p += found.p is not None and found.p <= ALPHA
        left, right = (mean_interval(np.log(side)) for side in (a, b * (1 + TRUTH)))
        by_overlap += bool(left[1] < right[0] or right[1] < left[0])
    return by_interval, by_p, by_overlap


def mean_interval(values: Any) -> tuple[float, float]:
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return values.mean() - half, values.mean() + half


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

    def found(self, effect: float, trials: int, entropy: Sequence[int]) -> tuple[int, int]:
        """How often the interval and the sign-flip p find it."""
        rng = np.random.default_rng(entropy)
        by_interval = by_p = 0
        for _ in range(trials):
            found = self.draw(rng, effect)
            by_interval += found.includes_zero is False
            by_p += found.p is not None and found.p <= ALPHA
        return by_interval, by_p


POWERS = [
    Pairs("difference", 20),
    Pairs("difference", 100),
    Pairs("geometric mean", 60),
    Pairs("ratio of totals", 150, lengths=0.3),
    Pairs("ratio of totals", 150, lengths=0.5),
]


def power(number: int, trials: int, seed: int = 0) -> list[Rate]:
    """How often an effect of the size of the MDE is found, against what `power_of` says."""
    pairs = POWERS[number]
    effect = mde(pairs.se, pairs.prompts - 1)
    goal = power_of(effect, pairs.se, pairs.prompts - 1)
    counts = pairs.found(effect, trials, [seed, 200 + number])
    limits = goal - POWER_WITHIN, goal + POWER_WITHIN
    label = f"{pairs.statistic}, {pairs.prompts} prompts, lengths' sd {pairs.lengths}"
    methods = ("power, interval", "power, sign flips")
    return [Rate(label, how, n, trials, *limits) for how, n in zip(methods, counts, strict=True)]


def settled(trials: int, seed: int = 0) -> list[Rate]:
    """Whether the prompts, or the seeds, that `needed` asks for give the power asked for (80 %)."""
    pilot, effect = Pairs("difference", 40, 3, between=0.02, within=0.08), 0.02
    more = needed(Components(pilot.between**2, pilot.within**2, 40, 3), effect, 40, 3)
    assert more.num_prompts is not None
    assert more.num_seeds is not None
    rates = []
    for number, pairs in enumerate(
        (
            replace(pilot, prompts=40 + more.num_prompts),
            replace(pilot, seeds=3 + more.num_seeds),
        )
    ):
        count, _ = pairs.found(effect, trials, [seed, 300 + number])
        label = f"as needed: {pairs.prompts} prompts x {pairs.seeds} seeds"
        # Whole numbers of seeds are few, so that the next one up may give more than was asked for.
        most = power_of(effect, pairs.se, pairs.prompts - 1) + POWER_WITHIN
        rates.append(Rate(label, "power, interval", count, trials, 0.77, most))
    return rates


def families(trials: int, seed: int = 0) -> list[Rate]:
    """Ten metrics of 30 prompts, correlated 0.5: Holm without any effect, BH with five large ones.

    What is counted of BH is the false discovery rate, so its count is rounded.
    """
    rng = np.random.default_rng([seed, 400])
    any_alarm, false_share = 0, 0.0
    for _ in range(trials):
        values = (rng.normal(size=(30, 1)) + rng.normal(size=(30, 10))) / math.sqrt(2)
        zeros = np.zeros(30)
        nulls = [difference_effect(zeros, column).p for column in values.T]
        any_alarm += any(p is not None and p <= ALPHA for p in holm(nulls))
        values[:, :5] += 1.0
        mixed = [difference_effect(zeros, column).p for column in values.T]
        found = [p is not None and p <= ALPHA for p in benjamini_hochberg(mixed)]
        false_share += sum(found[5:]) / max(1, sum(found))
    return [
        Rate("Holm, 10 tests", "family-wise rate", any_alarm, trials, 0.0, 0.05),
        Rate("BH, 10 tests", "false discovery rate", round(false_share), trials, 0.0, 0.05),
    ]


def milliseconds(clusters: int, repeats: int = 200) -> float:
    """What one `ratio_effect` takes, with its interval and p."""
    a, b = np.random.default_rng(0).lognormal(size=(2, clusters))
    ratio_effect(a, b)
    start = perf_counter()
    for _ in range(repeats):
        ratio_effect(a, b)
    return 1000 * (perf_counter() - start) / repeats


def table_of(rates: Sequence[Rate]) -> Table:
    table = Table("setting", "what", "rate", "goal", "within", title="Calibration")
    for rate in rates:
        goal = f"{rate.low:.1%} to {rate.high:.1%}"
        within = "yes" if rate.is_within else "by chance" if rate.may_be_within else "NO"
        table.add_row(rate.name, rate.what, f"{rate.rate:.2%}", goal, within)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trials, seed = options.trials, options.seed
    rates = [rate for name in SCENARIOS for rate in calibration(name, trials, seed)]
    rates += [rate for number in range(len(POWERS)) for rate in power(number, trials, seed)]
    rates += settled(trials, seed) + families(trials, seed)
    few = min(trials, 500)
    by_interval, by_p, by_overlap = planted(few, seed)
    blocked = blocked_order(few, seed)
    times = {clusters: milliseconds(clusters) for clusters in (8, 30, 100, 400)}
    console = Console()
    console.print(table_of(rates))
    console.print(
        f"A planted 2 % is found by the paired interval {by_interval / few:.1%}, by sign flips "
        f"{by_p / few:.1%}, by two intervals that do not overlap {by_overlap / few:.1%}."
    )
    console.print(f"1.5 % drift, all runs of one first: {blocked:.1%} false alarms.")
    shown = ", ".join(f"{clusters}: {ms:.2f} ms" for clusters, ms in times.items())
    console.print(f"One ratio_effect, by clusters: {shown}.")
    result: dict[str, Any] = {
        "machine": describe(),
        "trials": trials,
        "rates": [{**asdict(r), "rate": r.rate, "is_within": r.is_within} for r in rates],
        "planted": {
            "trials": few,
            "interval": by_interval,
            "sign_flips": by_p,
            "overlap": by_overlap,
        },
        "blocked_order_false_alarms": blocked,
        "ratio_effect_ms": times,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
