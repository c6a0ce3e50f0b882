"""What a single run of one prompt can say, which is nothing, and what would say something.

One pair of numbers has no spread of its own, so one has to be assumed: that of the demo trial that
ships with Optrial, with the answer for half and double of it. `python -m
benchmarks.statistics.spread` measures it from a trial's results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from jobs.formatting import percent_text, plural
from jobs.stats.components import Components
from jobs.stats.power import MOST, needed

SEEDS = (1, 3, 5)
FEWEST_PROMPTS = 6
"""With fewer, no pattern of signs is as rare as 5 %."""
SPREAD_FILE = "demo_spread.json"


@dataclass(frozen=True)
class Spread:
    """Of differences in completion tokens at equal prompt and seed, over their mean."""

    between: float
    """Variance of a prompt's own effect."""
    within: float
    """Variance of one prompt's from seed to seed."""
    source: str

    @property
    def sd(self) -> float:
        """Of one prompt and one seed."""
        return math.sqrt(self.between + self.within)

    def scaled(self, factor: float) -> Spread:
        return Spread(self.between * factor**2, self.within * factor**2, self.source)

    def num_prompts(self, difference: float, num_seeds: int) -> int:
        """Prompts that find a difference (on logs) at 5 % with 80 % power: Var = (ω² + σ²/K)/N."""
        spread = Components(self.between, self.within, 1, num_seeds)
        found = needed(spread, difference, 0, num_seeds).num_prompts
        return max(FEWEST_PROMPTS, found if found is not None else MOST)


def assumed_spread() -> Spread:
    """The demo trial's, as it was measured."""
    found = json.loads(files("jobs.report").joinpath(SPREAD_FILE).read_text(encoding="utf-8"))
    return Spread(found["between"], found["within"], found["source"])


def spread_of(components: Components, source: str) -> Spread:
    return Spread(components.between, components.within or 0.0, source)


def single_run_lines(prompt_tokens: int | None, reference: int, optimized: int) -> Iterator[str]:
    """What one run of one prompt shows; counts are completion tokens, all positive."""
    change = optimized / reference - 1
    given = f"{prompt_tokens:,} tokens in, " if prompt_tokens is not None else ""
    yield (
        f"One run ({given}{reference:,} out before, {optimized:,} after: {percent_text(change)}) "
        "shows nothing: another seed or another prompt could have said the opposite."
    )
    spread = assumed_spread()
    ratio = abs(optimized - reference) / ((optimized + reference) / 2) / spread.sd
    yield f"{_spread_sentence(spread)} This run's difference is {ratio:.2g} of that."
    if optimized == reference:
        yield "That the counts are equal shows no equality either."
    yield from pilot_lines("completion_tokens", 0.02, observed=change)


def pilot_lines(metric: str, margin: float, observed: float | None = None) -> Iterator[str]:
    """How many prompts and seeds would tell, under the assumed spread; tokens only."""
    if metric == "completion_tokens":
        spread = assumed_spread()
        if observed is None:
            yield _spread_sentence(spread)
        wanted = [margin] if not observed else [observed, math.copysign(margin, observed)]
        for difference in dict.fromkeys(wanted):
            size = abs(math.log1p(difference))
            ways = "; ".join(
                f"{plural(spread.num_prompts(size, k), 'prompt')} x {plural(k, 'seed')}"
                for k in SEEDS
            )
            half, double = (spread.scaled(f).num_prompts(size, 3) for f in (0.5, 2.0))
            yield (
                f"To find a difference of {abs(difference) * 100:.3g} % (5 % error, "
                f"80 % power), assuming that spread: {ways}. With half of it, 3 seeds would take "
                f"{plural(half, 'prompt')}; with double of it, {double:,}."
            )
    yield (
        "Or run a pilot, 24 prompts x 3 seeds: its own spread then says what is needed. "
        "`optrial compare` does it in one command."
    )


def _spread_sentence(spread: Spread) -> str:
    return (
        f"A spread has to be assumed: in {spread.source}, completions of equal prompt and seed, "
        f"with and without the optimisation, differed by {spread.sd * 100:.0f} % of their mean "
        "length (one standard deviation)."
    )
