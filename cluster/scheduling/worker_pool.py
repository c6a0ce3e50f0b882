"""`Crew`: the workers of a run, made, loaded, replaced and given up. It knows nothing of work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import ray

from cluster.plan import Plan
from cluster.scheduling.failures import Failure
from cluster.scheduling.ledger import Ledger
from cluster.scheduling.limits import Limits
from cluster.scheduling.work_queue import Lease, Work
from optim.errors import InputError

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


log = logging.getLogger("optrial.scheduler")

GRACE_S = 30.0
"""How long a run waits for further workers when the first one is ready."""

NOTICE_S = 60.0
"""How long no worker may have started before that is said."""


class Crew:
    """Slots for workers, and what is known of loading configurations."""

    def __init__(
        self, plan: Plan, remote_worker: Any, limits: Limits, ledger: Ledger, num: int
    ) -> None:
        self.plan, self.remote_worker, self.limits, self.ledger = (
            plan,
            remote_worker,
            limits,
            ledger,
        )
        self.slots = [Slot(i) for i in range(num)]
        self._proven: set[str] = set()
        self._load_failures: dict[str, int] = {}
        self._noticed, self._first_ready = monotonic(), 0.0
        self._told_of_memory = -NOTICE_S
        self.last_reason = ""
        """Why a worker was lost."""
        self.on_notice: Callable[[str], None] = log.warning

    @property
    def num_alive(self) -> int:
        return sum(slot.is_alive for slot in self.slots)

    @property
    def is_given_up(self) -> bool:
        return bool(self.slots) and all(slot.is_given_up for slot in self.slots)

    def is_ready(self, slot: Slot) -> bool:
        """Whether it waits for work."""
        return slot.is_alive and slot.task is None and not self.to_load(slot)

    def is_loaded(self, slot: Slot) -> bool:
        return slot.is_alive and not self.to_load(slot)

    def has_started(self, num_expected: int) -> bool:
        """Whether a run may begin: as many are ready as there is room for, or the rest is late."""
        num_ready = sum(self.is_ready(slot) for slot in self.slots)
        if not num_ready:
            if monotonic() - self._noticed > NOTICE_S:
                self._noticed = monotonic()
                self.on_notice("no worker has started yet: the cluster may be busy")
            return False
        self._first_ready = self._first_ready or monotonic()
        # Others' jobs may hold what the rest of the workers wait for.
        is_late = monotonic() - self._first_ready > GRACE_S
        num_failed = sum(slot.failures > 0 and not self.is_ready(slot) for slot in self.slots)
        return is_late or num_ready + num_failed >= min(num_expected, len(self.slots))

    def to_load(self, slot: Slot) -> list[str]:
        """The configurations that a worker still lacks, without those that were given up."""
        assert slot.lease is not None
        failed = self.ledger.failed_configurations
        return [n for n in slot.lease.configurations if n not in slot.loaded and n not in failed]

    def open(self, slot: Slot) -> None:
        """Start a worker, which opens the model."""
        resources = self.plan.workers
        kind = resources.accelerator_type
        slot.actor = self.remote_worker.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            **({} if kind is None else {"accelerator_type": kind}),
        ).remote(self.plan.model_dump_json(), slot.number)
        self.ledger.outcome.loads += 1
        slot.task = Task("wait", slot.actor.__ray_ready__.remote())

    def open_model(self, slot: Slot) -> None:
        slot.task = Task("open", slot.actor.open.remote())

    def resize(self, num: int) -> None:
        """Let there be as many places for workers, at least."""
        self.slots += [Slot(i) for i in range(len(self.slots), num)]

    def load_one(self, slot: Slot, names: list[str]) -> None:
        """Load a configuration that is known to load, or that nobody else is trying just now.

        One that ends the worker which loads it would end them all otherwise.
        """
        tried = {
            each.task.configuration for each in self.slots if each.task and each.task.kind == "load"
        }
        for name in names:
            if name in self._proven or name not in tried:
                reference = slot.actor.load_configuration.remote(name)
                slot.task = Task("load", reference, configuration=name)
                return

    def loaded(self, slot: Slot, name: str) -> None:
        slot.loaded.add(name)
        self._proven.add(name)

    def lose(self, slot: Slot, failure: Failure) -> None:
        """End a worker that failed; another takes its place, later from failure to failure."""
        slot.discard()
        self.last_reason = failure.reason
        if not failure.is_charged:
            return
        slot.failures += 1
        slot.wait_after_failure(self.limits.backoff(slot.failures))
        if slot.failures >= self.limits.max_worker_failures:
            slot.is_given_up = True
            log.error("worker given up", extra={"worker": slot.number, "reason": failure.reason})

    def tell_of_memory(self, slot: Slot, failure: Failure) -> None:
        """Say that a worker ran out of memory, and that the run goes on; not each time."""
        if monotonic() - self._told_of_memory < NOTICE_S:
            return
        self._told_of_memory = monotonic()
        is_last = slot.failures + 1 >= self.limits.max_worker_failures
        then = "is given up" if is_last else "is replaced, and the run goes on"
        self.on_notice(f"worker {slot.number} {then}: {failure.reason}")

    def abandon(self, reason: str) -> None:
        """Give all workers up without a word to them: there is nobody who would pass it on.

        InputError where none has been ready yet.
        """
        log.error("workers abandoned", extra={"reason": reason})
        self.last_reason = reason
        had_started = any(slot.facts is not None for slot in self.slots)
        for slot in self.slots:
            slot.actor, slot.task, slot.facts = None, None, None
            slot.is_given_up = True
        if not had_started:
            raise InputError(
                f"no worker could start: {reason}", mend="Run the command again: nothing is lost"
            )

    def failed_load(self, slot: Slot, name: str, failure: Failure) -> None:
        """Charge a failed load: to the worker where it loads elsewhere, else to the configuration.

        A configuration is given up after `max_loads` failures.
        """
        if name in self._proven:
            if not failure.loses_worker:
                self.lose(slot, failure)
            return
        self._load_failures[name] = self._load_failures.get(name, 0) + failure.is_charged
        if self._load_failures[name] >= self.limits.max_loads:
            self.ledger.fail_configuration(name, failure)

    def refuse_to_start(self, failure: Failure) -> None:
        """Raise InputError for bad input, and where nothing of the trial can be run.

        For failures before anything is written.
        """
        if failure.kind == "input" and failure.cause is not None:
            raise failure.cause
        names = {configuration.name for configuration in self.plan.configurations}
        if names <= self.ledger.failed_configurations.keys() or self.is_given_up:
            raise InputError(
                f"no worker could load the model: {failure.reason}",
                source=self.plan.model.path,
                mend="Where it ran out of memory, use fewer workers or a smaller dtype",
            ) from failure.cause

    def clear(self) -> None:
        """End all workers, and let all slots be filled anew."""
        for slot in self.slots:
            slot.discard()
            slot.lease, slot.failures, slot.is_given_up = None, 0, False
