"""Units that share noise, drift, heavy tails: shards of a worker's cells, and rounds of leases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from benchmarks.statistics.calibration.prompts import noise
from benchmarks.statistics.calibration.rates import Rate
from benchmarks.statistics.calibration.tally import tally
from jobs.stats.permutation.effect import Effect
from jobs.stats.permutation.effects import difference_effect, rate_effect, ratio_effect
from jobs.stats.permutation.swaps import fewest_clusters

TRUTH = 0.02
TRIALS, TRIALS_OF_LEASES, TRIALS_BLOCKED = 1000, 500, 300

Draw = Callable[[np.random.Generator, float], Effect]
"""(random numbers, true effect: a fraction, or a difference) -> what the trial finds."""


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
    return _of_shards(rng, truth, np.full((2, shards), sd))


def unequal_noise(shards: int, rng: np.random.Generator, truth: float) -> Effect:
    """As `shared_noise`, of 0.5 to 8 % by shard, the same on both sides."""
    return _of_shards(rng, truth, np.tile(np.geomspace(0.005, 0.08, shards), (2, 1)))


def noisier_side(shards: int, rng: np.random.Generator, truth: float) -> Effect:
    """As `shared_noise`, of 1 % of the reference and 4 % of what is compared with it."""
    return _of_shards(rng, truth, np.tile([[0.01], [0.04]], (1, shards)))


def _of_shards(
    rng: np.random.Generator, truth: float, sds: np.typing.NDArray[np.float64]
) -> Effect:
    """`sds` (2, shards) are those of a cell's noise."""
    shards = sds.shape[1]
    prompts = rng.lognormal(0, 0.5, (shards, 12, 1))
    cells = [rng.lognormal(-(own**2) / 2, own, (3, 1, shards)).T for own in sds]
    a, b = (cell * noise(rng, 0.005, (shards, 12, 3)) for cell in cells)
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


def in_rounds(rounds: int, sd: float, rng: np.random.Generator, truth: float) -> Effect:
    """Leases: time per byte of two data sets, noise shared by all that a round runs of a side.

    6 prompts of each data set in each round, whose texts differ by 30 % between the sides.
    """
    shape = (2, rounds, 6)
    lengths, sides = rng.lognormal(0, 0.5, shape), []
    for factor in (1.0, 1 + truth):
        sizes = lengths * noise(rng, 0.3, shape)
        slower = noise(rng, sd, (1, rounds, 1)) * noise(rng, 0.03, shape)
        sides.append(((factor * sizes * slower).ravel(), sizes.ravel()))
    where = np.indices(shape).reshape(3, -1)
    return rate_effect(sides[0], sides[1], where[1].tolist(), strata=where[0].tolist())


CLUSTERED: dict[str, Draw] = {
    "effects vary by prompt": varying_effects,
    "heavy tails: t3 differences": heavy_differences,
    "heavy tails: log-normal sides": heavy_ratios,
    "clustered prompts": clustered_prompts,
    "1.5 % drift, randomised order": partial(drifting, "randomised"),
    **{
        f"{100 * sd:g} % noise of cells, {shards} shards": partial(shared_noise, shards, sd)
        for shards, sd in product((8, 10, 30), (0.005, 0.015, 0.03))
    },
    **{
        f"0.5 to 8 % noise of cells by shard, {shards} shards": partial(unequal_noise, shards)
        for shards in (8, 24)
    },
    **{
        f"4 % noise of cells of one side and 1 % of the other, {shards} shards": partial(
            noisier_side, shards
        )
        for shards in (8, 24)
    },
}
LEASED: dict[str, Draw] = {
    f"leases, {rounds} rounds, {100 * sd:g} % noise of a round": partial(in_rounds, rounds, sd)
    for rounds, sd in product((fewest_clusters(0.05), 10), (0.005, 0.01, 0.02))
}
DRAWS = CLUSTERED | LEASED


def calibration(name: str, trials: int, seed: int) -> list[Rate]:
    """False alarms where nothing differs, and coverage of a true 2 %."""
    rng = np.random.default_rng([seed, 10, list(DRAWS).index(name)])
    nothing = tally(name, 0.0, (DRAWS[name](rng, 0.0) for _ in range(trials)))
    something = tally(name, TRUTH, (DRAWS[name](rng, TRUTH) for _ in range(trials)))
    return nothing.alarms() + something.coverage()


def blocked_order(trials: int, seed: int) -> Rate:
    """False alarms if all runs of one configuration came first: what randomising prevents."""
    rng = np.random.default_rng([seed, 11])
    found = tally("1.5 % drift", 0.0, (drifting("blocked", rng, 0.0) for _ in range(trials)))
    return Rate("1.5 % drift, all of one first", "false alarms at 5 %", found.found[0.05], trials)


def all_rates(share: float, seed: int) -> list[Rate]:
    rates = []
    for name in DRAWS:
        trials = TRIALS_OF_LEASES if name in LEASED else TRIALS
        rates += calibration(name, max(1, round(share * trials)), seed)
    return [*rates, blocked_order(max(1, round(share * TRIALS_BLOCKED)), seed)]
