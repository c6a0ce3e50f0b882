"""`Scheduler`: blocks to workers, in random order, over plain Ray actors.

Not `ray.util.ActorPool`, which loses work when an actor dies, and no Ray restarts: the driver
replaces actors itself. Correctness lies in the commit, so a block may run twice and count once.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.block_index import Layout, cells_in
from cluster.local_node import ended_process
from cluster.plan import Plan
from cluster.results.results import Results
from cluster.scheduling.deadlines import Watch, write_stall
from cluster.scheduling.failures import Failure, classify
from cluster.scheduling.ledger import Ledger, Outcome
from cluster.scheduling.limits import Limits
from cluster.scheduling.preflight import preflight, room_for
from cluster.scheduling.work_queue import Board, Lease, Work, in_blocks, in_leases
from cluster.scheduling.worker_pool import Crew, Slot, Task
from cluster.telemetry.progress import Progress
from cluster.worker.actor import RemoteWorker
from optim.errors import InputError

__all__ = ["Limits", "Outcome", "Scheduler", "preflight"]

log = logging.getLogger("optrial.scheduler")

POLL_S = 1.0
"""Longest wait for workers, between looks at deadlines."""


class Scheduler:
    """Runs what is missing of a plan.

    `joins` is for a driver beside another one: it begins elsewhere, and looks before each block
    whether the other was there.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        *,
        remote_worker: Any = RemoteWorker,
        on_progress: Callable[[Progress], None] | None = None,
        limits: Limits | None = None,
        joins: bool = False,
    ) -> None:
        self.plan, self.results = plan, results
        self.joins = joins
        self.on_progress = on_progress or (lambda progress: None)
        self.limits = limits or Limits.of(plan)
        self.layout = Layout(plan)
        self.watch = Watch(self.layout, self.limits)
        works, self.outcome = self._pending()
        self.done_before = self.outcome.cells_done
        self.ledger = Ledger(self.layout, results, self.limits, self.outcome)
        self.board = self._new_board(works, is_leased=plan.workers.schedule == "leases")
        num_slots = min(plan.workers.count, self.board.num_works)
        self.crew = Crew(plan, remote_worker, self.limits, self.ledger, num_slots)
        self.started = self.last_done = monotonic()
        self._next_dump_s = self.limits.stall_s
        self._is_starting = True

    def _pending(self) -> tuple[list[Work], Outcome]:
        committed = self.results.sound_keys(set_aside_others=True)
        works, total, done = [], 0, 0
        for index, num_cells, missing in self.layout.missing(committed):
            total, done = total + num_cells, done + num_cells - missing.bit_count()
            if missing:
                works.append(Work(index, missing))
        # Two drivers that begin at the same place would do the same twice.
        seed = uuid.uuid4().int if self.joins else self.plan.shuffle_seed
        random.Random(seed).shuffle(works)
        return works, Outcome(cells_total=total, cells_done=done)

    def _new_board(self, works: list[Work], *, is_leased: bool) -> Board:
        self.is_leased = is_leased
        if is_leased:
            workers = self.plan.workers
            return in_leases(works, self.layout, workers.rounds, self.plan.shuffle_seed)
        return in_blocks(works, tuple(c.name for c in self.plan.configurations))

    @property
    def slots(self) -> list[Slot]:
        return self.crew.slots

    @property
    def on_notice(self) -> Callable[[str], None]:
        """Told, in words, what a person who waits should know."""
        return self.crew.on_notice

    @on_notice.setter
    def on_notice(self, told: Callable[[str], None]) -> None:
        self.crew.on_notice = told

    @property
    def num_pending(self) -> int:
        """Cells that are not committed yet."""
        return self.outcome.cells_total - self.outcome.cells_done

    # --- the loop ------------------------------------------------------------------------------

    def start(self) -> list[dict[str, Any]]:
        """Make the workers that there is room for, and load their models; what each says of itself.

        Raises InputError where the cluster is too small, or where no configuration can be loaded.
        """
        preflight(self.plan)
        num_expected = max(1, room_for(self.plan.workers))
        try:
            while not self.crew.has_started(num_expected):
                self._turn()
                self._end_the_late()
        except BaseException:
            self.stop()
            raise
        self.started = monotonic()
        self._note_done()
        return [slot.facts for slot in self.slots if slot.facts is not None]

    def run(self) -> Outcome:
        """Run every pending block; always stops the workers, also when interrupted."""
        self._is_starting = False
        try:
            if not self.joins:
                self.ledger.forget_earlier()
            while not self._is_over():
                self._turn()
                self._end_the_late()
                self._look_for_a_stall()
                self.on_progress(self.progress())
            self.ledger.write_failed_configurations()
            if self.crew.is_given_up and self.num_pending:
                self.outcome.quarantined.append(
                    f"{self.num_pending} cells were not run, as no worker is left: "
                    f"{self.crew.last_reason}"
                )
        finally:
            self.stop()
        return self.outcome

    def _is_over(self) -> bool:
        if self.crew.is_given_up:
            return True
        running = any(slot.work is not None and slot.work.missing for slot in self.slots)
        return not running and not self.board.num_works

    def _turn(self) -> None:
        """Give everybody who waits something to do, then wait until somebody has done it."""
        if (ended := ended_process()) is not None:
            self.crew.abandon(f"Ray's {ended} on this machine has ended")
            return
        for slot in self.slots:
            if slot.task is None and not slot.is_given_up:
                self._advance(slot)
        tasks = {slot.task.reference: slot for slot in self.slots if slot.task is not None}
        if not tasks:
            sleep(min(POLL_S, 0.05))
            return
        ready, rest = ray.wait(list(tasks), num_returns=1, timeout=POLL_S)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in ready:
            slot = tasks[reference]
            # A failure of another one may have ended this worker meanwhile.
            if slot.task is not None and slot.task.reference == reference:
                self._settle(slot, slot.task)

    # --- giving work ---------------------------------------------------------------------------

    def _advance(self, slot: Slot) -> None:
        """The next call of a slot's worker, if there is one to make now."""
        if slot.actor is None:
            self._fill(slot)
            return
        if names := self.crew.to_load(slot):
            self.crew.load_one(slot, names)
        elif not self._is_starting:
            self._dispatch(slot)

    def _fill(self, slot: Slot) -> None:
        if monotonic() < slot.not_before:
            return
        if slot.lease is None or not slot.lease.works:
            slot.lease = self._next_lease() or slot.lease
        if slot.lease is None or not slot.lease.works:
            return
        self.crew.open(slot)

    def _next_lease(self) -> Lease | None:
        return self.board.join(frozenset(self.ledger.failed_configurations))

    def _dispatch(self, slot: Slot) -> None:
        assert slot.lease is not None
        while slot.lease.works:
            work = slot.lease.works.popleft()
            if self.joins:
                self.ledger.recheck(work)
            if work.missing:
                self._run(slot, work)
                return
        if self.is_leased and (lease := self._next_lease()) is not None:
            slot.discard()
            slot.lease = lease
            self._fill(slot)
            return
        if self.board.num_works:
            return
        straggler = self.watch.straggler(self.slots, slot.loaded)
        if straggler is None:
            return
        self.ledger.recheck(straggler)
        if straggler.missing:
            self.outcome.speculations += 1
            log.info("straggler", extra={"block": straggler.index, "worker": slot.number})
            self._run(slot, straggler)

    def _run(self, slot: Slot, work: Work) -> None:
        block = self.layout.block(work.index).model_copy(update={"round": work.round})
        keys = [block.cells[place].key for place in cells_in(work.missing)]
        reference = slot.actor.run.remote(block.model_dump_json(), keys)
        slot.task = Task("run", reference, work=work, mask=work.missing)
        work.num_runners += 1
        self.outcome.executions += 1

    # --- what came of it -----------------------------------------------------------------------

    def _settle(self, slot: Slot, task: Task) -> None:
        slot.task = None
        try:
            value = ray.get(task.reference)
        except RayError as error:
            self._failed(slot, task, classify(error))
            return
        if task.kind == "wait":
            self.crew.open_model(slot)
            return
        if task.kind == "open":
            slot.facts = value
            return
        if task.kind == "load":
            self.crew.loaded(slot, task.configuration)
            if not self.crew.is_loaded(slot):
                return  # one that fails on the next one has done nothing yet
        elif task.work is not None:
            task.work.num_runners -= 1
            self.watch.note(task)
            self.ledger.count(task.work, value)
            self._note_done()
            # Cells of one call, of which an earlier execution had committed some.
            self.ledger.recheck(task.work)
            if task.work.missing and not task.work.num_runners:
                self._charge(task.work, Failure("error", "the worker left cells out"))
        slot.failures = 0

    def _failed(self, slot: Slot, task: Task, failure: Failure) -> None:
        self.ledger.note(failure)
        log.warning(
            "a worker failed",
            extra={"worker": slot.number, "task": task.kind, "kind": failure.kind,
                   "reason": failure.reason, "configuration": task.configuration or None,
                   "block": task.work.index if task.work else None, "detail": failure.detail},
        )  # fmt: skip
        if failure.kind == "out_of_memory":
            self.crew.tell_of_memory(slot, failure)
        does_not_fit = failure.kind == "out_of_memory" and bool(slot.loaded)
        if failure.loses_worker or task.kind in ("wait", "open"):
            self.crew.lose(slot, failure)
        if task.kind == "run" and task.work is not None:
            self._failed_run(task.work, failure)
        elif task.kind == "load":
            if does_not_fit and self.plan.workers.schedule == "auto" and not self.is_leased:
                self._change_to_leases()
            else:
                self.crew.failed_load(slot, task.configuration, failure)
                self.board.drop(self.ledger.failed_configurations, self.layout)
        if self._is_starting:
            self.crew.refuse_to_start(failure)

    def _failed_run(self, work: Work, failure: Failure) -> None:
        if isinstance(failure.cause, InputError) and failure.cause.field == "output":
            raise failure.cause  # nothing can be written, so nothing can be done
        work.num_runners -= 1
        if work.num_runners:
            return  # another worker has it
        self._charge(work, failure)

    def _charge(self, work: Work, failure: Failure) -> None:
        for again in self.ledger.charge(work, failure):
            self.board.put_back(again, self.layout)
        self.board.drop(self.ledger.failed_configurations, self.layout)

    def _change_to_leases(self) -> None:
        """The configurations do not fit beside each other: one at a time from now on."""
        log.warning("configurations do not fit into memory together: changing to leases")
        running = {id(slot.work): slot.work for slot in self.slots if slot.work is not None}
        works = self.board.works() + [work for work in running.values() if work.missing]
        self.crew.clear()
        for work in works:
            work.num_runners = 0
        self.board = self._new_board(works, is_leased=True)
        self.crew.resize(min(self.plan.workers.count, self.board.num_works))

    # --- watching ------------------------------------------------------------------------------

    def _end_the_late(self) -> None:
        """End workers whose call is past its deadline."""
        for slot, task, deadline_s in list(self.watch.late(self.slots)):
            self._failed(slot, task, Failure("deadline", f"not done within {deadline_s:.0f} s"))

    def _look_for_a_stall(self) -> None:
        """Where nothing gets done, say what everybody does, and at last replace who is busy."""
        silent_s = monotonic() - self.last_done
        if silent_s <= self._next_dump_s:
            return
        done = self.outcome.cells_done
        running = [slot for slot in self.slots if slot.work is not None]
        for slot in running:
            if slot.work is not None:
                self.ledger.recheck(slot.work)
        if self.outcome.cells_done > done:  # of a long block, some is committed
            self._note_done()
            return
        self._next_dump_s += self.limits.stall_s
        write_stall(self.results.store, self.slots, silent_s)
        if silent_s > max(self.limits.give_up_s, self.watch.longest_deadline_s(running)):
            self._note_done()
            for slot in running:
                if slot.task is not None:
                    self._failed(slot, slot.task, Failure("stall", "nothing was committed"))

    def _note_done(self) -> None:
        self.last_done, self._next_dump_s = monotonic(), self.limits.stall_s

    def progress(self) -> Progress:
        return self.ledger.progress(
            self.done_before, self.crew.num_alive, monotonic() - self.started
        )

    def stop(self) -> None:
        """End the workers. What they have committed stays."""
        for slot in self.slots:
            slot.discard()
