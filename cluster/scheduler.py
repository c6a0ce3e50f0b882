"""`Scheduler`: blocks to workers, in random order, over plain Ray actors.

Not `ray.util.ActorPool`, which loses work when an actor dies, and no Ray restarts: the driver
replaces actors itself. Correctness lies in the commit, so a block may run twice and count once.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.plan import Block, Plan
from cluster.progress import Progress
from cluster.results import Results
from cluster.worker import RemoteWorker
from optim.errors import InputError

MAX_ATTEMPTS = 3
"""Executions of a block before it is set aside."""


@dataclass
class Outcome:
    """What a run came to."""

    cells_total: int
    cells_done: int
    rows: int = 0
    errors: int = 0
    completion_tokens: int = 0
    retries: int = 0
    quarantined: list[str] = field(default_factory=list)
    """Blocks that failed `MAX_ATTEMPTS` times, with the last reason."""

    @property
    def is_complete(self) -> bool:
        return self.cells_done == self.cells_total


@dataclass
class _Work:
    block: Block
    keys: list[str]
    failures: int = 0


class Scheduler:
    """Runs what is missing of a plan."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        *,
        remote_worker: Any = RemoteWorker,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.plan, self.results = plan, results
        self.remote_worker = remote_worker
        self.on_progress = on_progress or (lambda progress: None)
        self.queue, total, done = self._pending()
        self.outcome = Outcome(cells_total=total, cells_done=done)
        self.done_before = done
        self.actors: list[Any] = []
        self.started = monotonic()
        self._num_made = 0

    def _pending(self) -> tuple[deque[_Work], int, int]:
        committed = self.results.committed_keys()
        works, total = [], 0
        for block in self.plan.blocks():
            total += len(block.cells)
            missing = [cell.key for cell in block.cells if cell.key not in committed]
            if missing:
                works.append(_Work(block, missing))
        random.Random(self.plan.shuffle_seed).shuffle(works)
        return deque(works), total, total - sum(len(work.keys) for work in works)

    @property
    def num_pending(self) -> int:
        """Cells that are not committed yet."""
        return self.outcome.cells_total - self.outcome.cells_done

    def start(self) -> list[dict[str, Any]]:
        """Make the workers and load their models; returns what each says of its device.

        Raises InputError where the cluster is too small or the model cannot be loaded.
        """
        preflight(self.plan)
        count = min(self.plan.workers.count, len(self.queue))
        self.actors = [self._new_actor() for _ in range(count)]
        try:
            loaded: list[dict[str, Any]] = ray.get([actor.load.remote() for actor in self.actors])
        except RayTaskError as error:
            self.stop()
            raise error.cause from None
        except RayError as error:
            self.stop()
            raise InputError(
                f"a worker died while it loaded the model: {_last_line(error)}",
                source=self.plan.model.path,
                mend="Where it ran out of memory, use fewer workers or a smaller dtype",
            ) from error
        self.started = monotonic()
        return loaded

    def _new_actor(self) -> Any:
        resources = self.plan.workers
        self._num_made += 1
        return self.remote_worker.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
        ).remote(self.plan.model_dump_json(), self._num_made - 1)

    def run(self) -> Outcome:
        """Run every pending block; always stops the workers, also when interrupted."""
        flying: dict[Any, tuple[Any, _Work]] = {}
        idle = deque(self.actors)
        try:
            while self.queue or flying:
                while idle and self.queue:
                    actor, work = idle.popleft(), self.queue.popleft()
                    flying[actor.run.remote(work.block.model_dump_json(), work.keys)] = (
                        actor,
                        work,
                    )
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=1.0)
                for reference in ready:
                    actor, work = flying.pop(reference)
                    idle.append(self._settle(reference, actor, work))
                self.on_progress(self.progress())
        finally:
            self.stop()
        return self.outcome

    def _settle(self, reference: Any, actor: Any, work: _Work) -> Any:
        """Count what a block came to; returns the actor to use next."""
        try:
            receipts = ray.get(reference)
        except RayTaskError as error:
            self._failed(work, str(error.cause).splitlines()[0])
            return actor
        except RayError as error:
            # The outcome is unknown: what it committed stays, the rest is run again elsewhere.
            ray.kill(actor)
            self._failed(work, f"{type(error).__name__}: worker lost")
            replacement = self._new_actor()
            self.actors[self.actors.index(actor)] = replacement
            replacement.load.remote()
            return replacement
        for receipt in receipts:
            self._count(receipt)
        return actor

    def _count(self, receipt: dict[str, Any]) -> None:
        outcome = self.outcome
        outcome.cells_done += 1
        outcome.rows += receipt["rows"]
        outcome.errors += receipt["num_errors"]
        outcome.completion_tokens += receipt["completion_tokens"]

    def _failed(self, work: _Work, reason: str) -> None:
        committed = self.results.committed_keys()
        self.outcome.cells_done += sum(key in committed for key in work.keys)
        work.keys = [key for key in work.keys if key not in committed]
        if not work.keys:
            return
        work.failures += 1
        if work.failures < MAX_ATTEMPTS:
            self.outcome.retries += 1
            self.queue.appendleft(work)
            return
        block = work.block
        name = f"{block.kind} of {block.dataset} shard {block.shard} seed {block.seed}"
        self.outcome.quarantined.append(f"{name}: {reason}")
        record = {"block": block.model_dump(mode="json"), "keys": work.keys, "reason": reason}
        self.results.store.replace(
            f"_quarantine/block-{block.index}.json", json.dumps(record).encode()
        )

    def progress(self) -> Progress:
        outcome = self.outcome
        return Progress(
            cells_total=outcome.cells_total,
            cells_done=outcome.cells_done,
            cells_done_before=self.done_before,
            rows=outcome.rows,
            errors=outcome.errors,
            completion_tokens=outcome.completion_tokens,
            retries=outcome.retries,
            quarantined=len(outcome.quarantined),
            elapsed_s=monotonic() - self.started,
        )

    def stop(self) -> None:
        """End the workers. What they have committed stays."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def preflight(plan: Plan) -> str:
    """What is asked for and what the cluster has, in a line.

    Raises InputError where it is less: such a request would wait forever.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = plan.workers
    for resource, each in (("GPU", wanted.gpus), ("CPU", wanted.cpus)):
        has = have.get(resource, 0.0)
        if each * wanted.count > has:
            field = f"workers.{resource.lower()}s"
            raise InputError(
                f"{wanted.count} workers x {each:g} {resource}s are asked for, and the cluster has "
                f"{has:g}",
                field=field,
                mend=f"Ask for fewer workers or {resource}s, or start a larger cluster",
            )
    asked = f"{wanted.count} workers x {wanted.cpus:g} CPUs, {wanted.gpus:g} GPUs"
    there = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    return f"asking for {asked}; the cluster has {there}"
