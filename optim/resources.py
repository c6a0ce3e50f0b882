"""What a preparation can ask of the place where it runs: texts, and hands for its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from optim.errors import InputError

OnStage = Callable[[str], None]
ResultT = TypeVar("ResultT")
Call = Callable[[OnStage], ResultT]
"""A piece of work; what it is given reports what it is at. It has to survive a trip to another
process, so it is a function of a module, or a partial of one."""


class Resources(Protocol):
    """The place where a preparation runs."""

    @property
    def num_processes(self) -> int:
        """How many calls are worth being made at once."""
        ...

    def read(self, path: str) -> Iterator[str]:
        """The texts of another corpus; InputError where there is none."""
        ...

    def run(self, calls: Sequence[Call[ResultT]], on_stage: OnStage) -> list[ResultT]:
        """Make calls, some of them at once, and give their results in order."""
        ...

    def train(self, call: Call[None], num_workers: int, on_stage: OnStage) -> None:
        """Make one call in each of several processes that form a `torch.distributed` group."""
        ...


class InProcess:
    """One call after the other, here; no other corpora than the one that is given."""

    num_processes = 1

    def read(self, path: str) -> Iterator[str]:
        raise InputError("there is nothing here that reads other corpora", source=path)

    def run(self, calls: Sequence[Call[ResultT]], on_stage: OnStage) -> list[ResultT]:
        return [call(on_stage) for call in calls]

    def train(self, call: Call[None], num_workers: int, on_stage: OnStage) -> None:
        if num_workers > 1:
            raise InputError(
                f"{num_workers} processes are asked for, and there is one",
                field="--workers",
                mend="Prepare it by `optrial prepare`, which has Ray",
            )
        call(on_stage)
