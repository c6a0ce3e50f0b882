"""`Layout`: the blocks of a plan by number, without keeping them: a trial may have a million cells.

A block's cells are numbered as `Plan.block` orders them, so that a set of them is an integer: bit i
stands for cell i.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from cluster.plan import Block, Dataset, Kind, Plan, cell_key


class Layout:
    """Where each block of a plan lies."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._spans: list[tuple[Kind, tuple[int | None, ...], Dataset]] = []
        self._firsts: list[int] = []
        self.num_blocks = 0
        for span in plan.spans():
            self._spans.append(span)
            self._firsts.append(self.num_blocks)
            self.num_blocks += span[2].num_shards

    def block(self, index: int) -> Block:
        kind, seeds, dataset, shard = self._place(index)
        return self.plan.block(index, kind, dataset, shard, seeds)

    def num_rows(self, index: int) -> int:
        """Prompts of each cell of a block."""
        _, _, dataset, shard = self._place(index)
        start, stop = dataset.rows(shard)
        return stop - start

    def family(self, index: int) -> tuple[Kind, str]:
        """Kind and dataset: blocks of one family take about the same time per row."""
        kind, _, dataset, _ = self._place(index)
        return kind, dataset.name

    def keys(self, index: int) -> list[str]:
        """The keys of a block's cells, in their order."""
        kind, seeds, dataset, shard = self._place(index)
        start, stop = dataset.rows(shard)
        return [
            cell_key(configuration.fingerprint, dataset.fingerprint, kind, seed, start, stop)
            for configuration, seed in self.plan.runs(dataset, seeds)
        ]

    def missing(self, committed: set[str]) -> Iterator[tuple[int, int, int]]:
        """Of every block: its number, how many cells it has, and those not in `committed`."""
        for index in range(self.num_blocks):
            keys = self.keys(index)
            yield index, len(keys), sum(1 << i for i, k in enumerate(keys) if k not in committed)

    def by_configuration(self, index: int) -> dict[str, int]:
        """Which cells of a block are of which configuration."""
        _, seeds, dataset, _ = self._place(index)
        found: dict[str, int] = {}
        for i, (configuration, _) in enumerate(self.plan.runs(dataset, seeds)):
            found[configuration.name] = found.get(configuration.name, 0) | 1 << i
        return found

    def _place(self, index: int) -> tuple[Kind, tuple[int | None, ...], Dataset, int]:
        span = bisect_right(self._firsts, index) - 1
        # Spans without a block share their first number with the next one, which is found then.
        return *self._spans[span], index - self._firsts[span]


def cells_in(mask: int) -> list[int]:
    """The numbers of the cells in a set."""
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
