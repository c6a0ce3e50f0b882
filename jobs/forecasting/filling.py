"""Which data sets' shards hold too few prompts to keep an engine's slots full, and what mends it.

Slots are refilled at once, and stay empty only when the queue of a call is: a shard that fills the
largest batch at least twice spends most of its steps on full batches.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.plan import Dataset, Plan
from jobs.analysis.guards.load import slot_steps
from jobs.spec.analysis_plan import MIN_SHARDS

FILLS = 2
"""Times that a shard should fill the largest batch."""
_NUM_DRAWS = 200


@dataclass(frozen=True)
class Unfilled:
    """Data sets whose shards fill the largest batch less than twice, alike in all of this."""

    datasets: tuple[str, ...]
    num_prompts: int
    """Of each data set."""
    shards: int
    shard_prompts: int
    """Of the smallest shard; others may hold one more."""
    batch_size: int
    """The largest of all configurations."""
    empty_share: float
    """Estimate of the share of slots that stay empty, over decode steps."""
    needed_shards: int
    """Fewest shards that keep the verdicts possible."""
    mended_shards: int
    """Shards that would be filled twice; never fewer than the verdicts need."""
    mended_prompts: int
    """Prompts that these take; `num_prompts` where there are enough."""


def unfilled(
    plan: Plan, needed: int, lengths: Mapping[str, Sequence[int]] | None = None
) -> tuple[Unfilled, ...]:
    """What does not fill the largest batch twice; empty where everything does.

    `needed` is the number of shards that the verdicts need over all data sets together. `lengths`
    are completions in tokens by data set, as a pilot had them; without any, the share of empty
    slots is that of completions of one length.
    """
    batch_size = max(c.batch_size for c in plan.configurations)
    at_once = len(plan.seeds) if plan.share_prompts != "none" else 1
    wanted = -(-FILLS * batch_size // at_once)
    counts = {d.name: d.num_shards for d in plan.datasets if d.generates}
    found: dict[tuple[int, ...], list[tuple[str, float]]] = {}
    for dataset in (d for d in plan.datasets if d.generates):
        size = dataset.num_prompts // dataset.num_shards
        if size >= wanted:
            continue
        fewest = max(MIN_SHARDS, needed - sum(counts.values()) + counts[dataset.name])
        shards = max(fewest, dataset.num_prompts // wanted)
        prompts = max(dataset.num_prompts, shards * wanted)
        # What is advised for one data set counts when the next one's need is worked out.
        counts[dataset.name] = shards
        sizes = [(stop - start) * at_once for start, stop in _spans(dataset)]
        empty = empty_share((lengths or {}).get(dataset.name, ()), sizes, batch_size)
        key = (dataset.num_prompts, dataset.num_shards, size, fewest, shards, prompts)
        found.setdefault(key, []).append((dataset.name, empty))
    return tuple(
        Unfilled(
            datasets=tuple(name for name, _ in sets),
            num_prompts=num_prompts,
            shards=num_shards,
            shard_prompts=size,
            batch_size=batch_size,
            empty_share=sum(share for _, share in sets) / len(sets),
            needed_shards=fewest,
            mended_shards=shards,
            mended_prompts=prompts,
        )
        for (num_prompts, num_shards, size, fewest, shards, prompts), sets in found.items()
    )


def _spans(dataset: Dataset) -> list[tuple[int, int]]:
    """Of the rows of each shard."""
    return [dataset.rows(number) for number in range(dataset.num_shards)]


def empty_share(lengths: Sequence[int], sizes: Sequence[int], num_slots: int) -> float:
    """Share of empty slots of calls of so many completions, of lengths as likely as those given.

    Without any length above one token, that of completions of one length.
    """
    draw = random.Random(0)
    is_known = max(lengths, default=0) >= 2
    held = slots = 0
    for size, count in Counter(sizes).items():
        for _ in range(_NUM_DRAWS if is_known else 1):
            own = slot_steps(draw.choices(lengths, k=size) if is_known else [2] * size, num_slots)
            held, slots = held + count * own[0], slots + count * own[1]
    return 1 - held / slots if slots else 0.0
