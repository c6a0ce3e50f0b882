"""Which parts are cells of the trial.

A file that is named as a part may be none: a copy under another key, or a part in the folder of
another configuration. Its rows would count twice, or for the wrong configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.parts import Part
from cluster.plan import Plan, cell_key


def planned(plan: Plan, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """The parts whose key, kind and configuration are a cell's, and the others; in their order.

    Goes over all cells of the plan once, and keeps none of them.
    """
    if not parts:
        return [], []
    listed = {part.name for part in parts}
    found = set[str]()
    for kind, seeds, dataset in plan.spans():
        runs = [
            (f"{kind}/configuration=c-{configuration.name}/part-", configuration.fingerprint, seed)
            for configuration, seed in plan.runs(dataset, seeds)
        ]
        for shard in range(dataset.num_shards):
            start, stop = dataset.rows(shard)
            for place, fingerprint, seed in runs:
                key = cell_key(fingerprint, dataset.fingerprint, kind, seed, start, stop)
                name = f"{place}{key}.parquet"
                if name in listed:
                    found.add(name)
    return [p for p in parts if p.name in found], [p for p in parts if p.name not in found]
