"""`Slot`: one place for a worker, with the actor that fills it now and what the actor is doing."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import ray

from cluster.board import Lease, Work

TaskKind = Literal["wait", "open", "load", "run"]
"""`wait`: for the process itself, which may take long where there is no room for it."""


@dataclass
class Task:
    """One call of an actor that is under way."""

    kind: TaskKind
    reference: Any
    configuration: str = ""
    """That is being loaded."""
    work: Work | None = None
    mask: int = 0
    """The cells that were asked for."""
    started: float = field(default_factory=monotonic)

    @property
    def elapsed_s(self) -> float:
        return monotonic() - self.started


@dataclass
class Slot:
    """Where a worker is, was, or will be."""

    number: int
    actor: Any = None
    task: Task | None = None
    lease: Lease | None = None
    loaded: set[str] = field(default_factory=set)
    facts: dict[str, Any] | None = None
    """What the worker says of its device; None before it has opened the model."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0
    """When it may be filled again (`time.monotonic`)."""
    is_given_up: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether a worker is there and has opened the model."""
        return self.actor is not None and self.facts is not None

    @property
    def work(self) -> Work | None:
        return self.task.work if self.task is not None else None

    def discard(self) -> None:
        """End the process, wherever it is; what it has committed stays."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor, self.task, self.facts = None, None, None
        self.loaded = set()

    def wait_after_failure(self, backoff_s: float) -> None:
        self.not_before = monotonic() + backoff_s
