"""`Board`: what is still to be done, and who may take it.

Where a worker holds all configurations, there is one lease for everybody. Where it does not, each
configuration has a lease in each round, and a worker that takes one runs it in a new process, so
that it loads once for many cells.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.block_index import Layout


@dataclass(slots=True)
class Work:
    """Cells of one block that are to be run by one call of a worker."""

    index: int
    """Of the block."""
    missing: int
    """The cells, as `cluster.block_index` numbers them."""
    failures: int = 0
    """Charged executions so far."""
    num_runners: int = 0
    round: int = 0

    @property
    def num_cells(self) -> int:
        return self.missing.bit_count()


@dataclass
class Lease:
    """Work for workers that have the same configurations loaded."""

    configurations: tuple[str, ...]
    works: deque[Work] = field(default_factory=deque)
    num_workers: int = 0
    """Who have taken it, whether or not they are still there."""


class Board:
    """The leases of a run."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        self.leases = list(leases)

    @property
    def num_works(self) -> int:
        return sum(len(lease.works) for lease in self.leases)

    def works(self) -> list[Work]:
        return [work for lease in self.leases for work in lease.works]

    def join(self, without: frozenset[str] = frozenset()) -> Lease | None:
        """The next lease with work: in turn, and where all are taken, the longest one.

        One whose configurations are all in `without` is passed over.
        """
        open_ = [
            lease
            for lease in self.leases
            if lease.works and not without.issuperset(lease.configurations)
        ]
        if not open_:
            return None
        fresh = [lease for lease in open_ if not lease.num_workers]
        # A lease of one work that somebody is about to take is not worth a load.
        chosen = fresh[0] if fresh else max(open_, key=lambda each: len(each.works))
        chosen.num_workers += 1
        return chosen

    def put_back(self, work: Work, layout: Layout) -> None:
        """At the front of the lease that its cells are of."""
        names = {name for name, mask in layout.by_configuration(work.index).items()
                 if mask & work.missing}  # fmt: skip
        lease = next(each for each in self.leases if names <= set(each.configurations))
        lease.works.appendleft(work)

    def drop(self, configurations: Mapping[str, str], layout: Layout) -> None:
        """Take what is left of these configurations out of all works."""
        if not configurations:
            return
        for lease in self.leases:
            for work in lease.works:
                for name, mask in layout.by_configuration(work.index).items():
                    if name in configurations:
                        work.missing &= ~mask
            lease.works = deque(work for work in lease.works if work.missing)


def in_blocks(works: Iterable[Work], configurations: tuple[str, ...]) -> Board:
    """One lease of everything."""
    return Board([Lease(configurations, deque(works))])


def in_leases(works: Sequence[Work], layout: Layout, num_rounds: int, shuffle_seed: int) -> Board:
    """A lease for each configuration and round.

    The order is random in the first round and is turned by one from round to round: with as many
    workers as configurations each worker meets each configuration (a Latin square), with fewer a
    drift of the machine meets no configuration first always.
    """
    names = [configuration.name for configuration in layout.plan.configurations]
    random.Random(f"{shuffle_seed}:leases").shuffle(names)
    rounds = min(num_rounds, max(1, len(works)))
    leases = {
        (number, name): Lease((name,))
        for number in range(rounds)
        for name in names[number % len(names) :] + names[: number % len(names)]
    }
    for place, work in enumerate(works):
        number = place % rounds
        for name, mask in layout.by_configuration(work.index).items():
            if work.missing & mask:
                leases[number, name].works.append(
                    Work(work.index, work.missing & mask, work.failures, round=number + 1)
                )
    return Board([lease for lease in leases.values() if lease.works])
