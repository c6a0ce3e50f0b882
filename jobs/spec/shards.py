"""How many shards a dataset is cut into where its spec leaves that open.

The rows of a shard share the noise of its cells, so times and memory have as many units as there
are shards, and no p of n units is below 2^(1-n): with fewer than the family of tests needs, no
difference would be found, however large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.plan import Configuration, Dataset
from jobs.spec.analysis_plan import MIN_SHARDS, Judgement
from jobs.spec.trial_spec import DatasetSpec
from jobs.stats.permutation.swaps import fewest_clusters


def num_tests(configurations: Sequence[Configuration], judgement: Judgement) -> int:
    """Primary tests of a trial, at the most: what is exactly equal or withheld needs none."""
    pairs = sum(c.vs is not None and c.duplicate_of is None for c in configurations)
    return max(1, pairs * len(judgement.primary))


def fewest_units(
    configurations: Sequence[Configuration],
    judgement: Judgement,
    look: int = 1,
    *,
    num_sets: int = 1,
) -> int:
    """Units without which none of a look's tests can find anything."""
    level = judgement.level(look) or judgement.level(1)
    level, _ = judgement.shared(level, has_sets=num_sets > 1)
    return fewest_clusters(level, num_tests(configurations, judgement))


def with_shards(
    datasets: Sequence[DatasetSpec],
    configurations: Sequence[Configuration],
    judgement: Judgement,
) -> tuple[DatasetSpec, ...]:
    """The datasets with shards: together enough for a verdict, at the next look too."""
    num_sets = max(1, len(datasets))
    needed = fewest_units(configurations, judgement, look=2, num_sets=num_sets)
    wanted = math.ceil(needed / num_sets)
    shards = max(MIN_SHARDS, wanted)
    return tuple(
        d if d.shards is not None else d.model_copy(update={"shards": shards}) for d in datasets
    )


def topped_up(
    datasets: Sequence[Dataset], given: Sequence[DatasetSpec], needed: int
) -> tuple[Dataset, ...]:
    """The datasets as read, where some are too small for their part of `needed` shards.

    The others give what is missing, unless their spec says how many shards they have: each shard
    more comes from the one whose shards stay the largest, so that they fill batches longest.
    """
    counts = [d.num_shards for d in datasets]
    while sum(n for n, d in zip(counts, datasets, strict=True) if d.generates) < needed:
        open_ = [
            i
            for i, (d, spec) in enumerate(zip(datasets, given, strict=True))
            if spec.shards is None and d.generates and counts[i] < d.num_prompts
        ]
        if not open_:
            break
        counts[max(open_, key=lambda i: datasets[i].num_prompts / (counts[i] + 1))] += 1
    return tuple(
        d.model_copy(update={"num_shards": n}) for d, n in zip(datasets, counts, strict=True)
    )
