"""Workers that die, hang, fail or do not start: nothing is lost, and only what fails is set aside.

The worker is simulated; Ray, the scheduler and the commits are real.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import figures
import pytest
import ray
from faulty_worker import RemoteFaulty, events, held, pids, set_fault
from sound_results import require_sound

from benchmarks.cluster.simulated import prepared, simulated_plan
from cluster.block_index import Layout
from cluster.plan import Plan, WorkerResources
from cluster.results.results import Results
from cluster.scheduling.deadlines import Watch
from cluster.scheduling.failures import Failure
from cluster.scheduling.ledger import QUARANTINE, Outcome
from cluster.scheduling.limits import Limits
from cluster.scheduling.scheduler import Scheduler
from cluster.scheduling.work_queue import Work
from cluster.scheduling.worker_pool import Slot, Task
from cluster.telemetry.progress import Progress
from optim.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_cluster")

ARMS = ("baseline", "other", "third")
TWO = WorkerResources(count=2)
QUICK = Limits(straggle_s=1e9, backoff_s=0.1, max_backoff_s=1.0)


def run(plan: Plan, limits: Limits = QUICK, **options: Any) -> tuple[Scheduler, Outcome]:
    results = prepared(plan)
    on_notice = options.pop("on_notice", None)
    scheduler = Scheduler(plan, results, remote_worker=RemoteFaulty, limits=limits, **options)
    if on_notice is not None:
        scheduler.on_notice = on_notice
    scheduler.start()
    return scheduler, scheduler.run()


def quarantined(plan: Plan) -> list[dict[str, Any]]:
    store = Results(plan.output).store
    return [json.loads(store.read(name)) for name in store.list(QUARANTINE)]


def test_a_worker_killed_in_a_block_is_replaced_and_the_block_is_run_again(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=60, latency_s=0.02, workers=TWO)
    set_fault(plan, "once-kill")
    _, outcome = run(plan)
    assert outcome.is_complete
    require_sound(plan, Results(plan.output))
    # The cell was committed before the kill, so it need not even run again.
    assert outcome.executions == events(plan)["run"] == 60
    assert outcome.failures == {"crash": 1}
    assert events(plan)["open"] == outcome.loads == 3


def test_a_worker_killed_from_outside_costs_one_execution(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=60, latency_s=0.1, workers=TWO)
    results = prepared(plan)
    # On a busy machine the others would be done before there is another worker.
    hold = held(plan, 30, 1000)
    seen: list[tuple[float, int]] = []
    killed: list[float] = []

    def see(progress: Progress) -> None:
        was_missing = any(killed and at > killed[0] and workers < 2 for at, workers in seen)
        seen.append((monotonic(), progress.num_workers))
        if was_missing and progress.num_workers == 2:
            hold.unlink(missing_ok=True)

    scheduler = Scheduler(plan, results, remote_worker=RemoteFaulty, limits=QUICK)
    scheduler.on_progress = see
    scheduler.start()

    def kill() -> None:
        while events(plan)["cell"] < 10:
            sleep(0.02)
        os.kill(pids(plan)[0], signal.SIGKILL)
        killed.append(monotonic())

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = scheduler.run()
    thread.join()
    assert outcome.is_complete
    require_sound(plan, results)
    assert outcome.executions <= 61
    assert outcome.loads <= 3
    noticed = next(at for at, workers in seen if at > killed[0] and workers < 2)
    assert noticed - killed[0] < figures.limit(1)
    replaced = next(at for at, workers in seen if at > noticed and workers == 2)
    assert replaced - killed[0] < figures.limit(15)
    figures.note(
        1,
        "kill -9",
        "executions <= 61; loads <= 3; noticed < 1 s; replaced < 15 s",
        executions=outcome.executions,
        loads=outcome.loads,
        noticed_s=noticed - killed[0],
        replaced_s=replaced - killed[0],
    )


def test_a_configuration_that_always_raises_is_set_aside_alone(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=8, configurations=ARMS, workers=TWO)
    set_fault(plan, "raise-other")
    _, outcome = run(plan)
    assert outcome.cells_done == 16
    done = {part.configuration for part in Results(plan.output).parts("generations")}
    assert done == {"baseline", "third"}
    assert any("no more of other" in reason for reason in outcome.quarantined)
    # It is given up as a whole before each of its blocks has failed three times.
    assert outcome.quarantined[-1].startswith("all of other: ")
    assert events(plan)["run"] <= 8 + 8 + 2 * 3 + 8
    assert {record["configuration"] for record in quarantined(plan)} == {"other"}
    assert outcome.failures.keys() == {"error"}
    # It is tried again by the next run, and a mended one is complete.
    (tmp_path / "faults" / "raise-other").unlink()
    again = Scheduler(plan, Results(plan.output), remote_worker=RemoteFaulty, limits=QUICK)
    again.start()
    assert again.run().is_complete
    require_sound(plan, Results(plan.output))
    assert quarantined(plan) == []


def test_want_of_memory_is_told_apart_and_ends_the_worker(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=4, configurations=ARMS)
    set_fault(plan, "memory-third")
    told: list[str] = []
    _, outcome = run(plan, on_notice=told.append)
    assert told == ["worker 0 is replaced, and the run goes on: out of memory: MemoryError"]
    assert outcome.cells_done == 8
    assert outcome.failures.keys() == {"out_of_memory"}
    assert {record["kind"] for record in quarantined(plan)} <= {"out_of_memory", "error"}
    assert all("out of memory" in reason for reason in outcome.quarantined)
    assert outcome.loads == 1 + outcome.failures["out_of_memory"]


@pytest.mark.parametrize("fault", ["load-raise-other", "load-kill-other"])
def test_a_configuration_that_cannot_be_loaded_fails_alone(tmp_path: Path, fault: str) -> None:
    plan = simulated_plan(tmp_path, num_shards=6, configurations=ARMS, workers=TWO)
    set_fault(plan, fault)
    _, outcome = run(plan)
    assert events(plan)["load other"] <= 3
    assert outcome.cells_done == 12
    assert [reason.split(":")[0] for reason in outcome.quarantined] == ["all of other"]
    assert [record["configuration"] for record in quarantined(plan)] == ["other"]
    figures.note(
        11,
        fault,
        "that configuration alone; loads <= 3; others complete",
        loads=events(plan)["load other"],
        cells_done=outcome.cells_done,
        cells_total=outcome.cells_total,
    )


def test_a_trial_of_which_nothing_loads_is_refused(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=6)
    set_fault(plan, "load-kill-baseline")
    scheduler = Scheduler(plan, prepared(plan), remote_worker=RemoteFaulty, limits=QUICK)
    with pytest.raises(InputError, match="no worker could load the model"):
        scheduler.start()
    assert events(plan)["load baseline"] <= 3


def test_configurations_that_do_not_fit_together_are_run_in_leases(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=9, configurations=ARMS, seeds=(0, 1))
    set_fault(plan, "once-load-memory-other")
    scheduler, outcome = run(plan)
    assert scheduler.is_leased
    assert outcome.is_complete
    require_sound(plan, Results(plan.output))
    # One load for each configuration and round; the attempt to load all comes before.
    assert events(plan)["open"] == 1 + 3 * 3


def test_leases_give_each_configuration_a_turn_in_each_round(tmp_path: Path) -> None:
    plan = simulated_plan(
        tmp_path,
        num_shards=12,
        configurations=ARMS,
        workers=WorkerResources(count=1, schedule="leases", rounds=4),
    )
    _, outcome = run(plan)
    assert outcome.is_complete
    require_sound(plan, Results(plan.output))
    loads = [name for name in events(plan) if name.startswith("load ")]
    assert {events(plan)[name] for name in loads} == {4}
    cells = Results(plan.output).cells()
    turns = {(cell["round"], cell["configuration"]) for cell in cells}
    assert turns == {(number, name) for number in (1, 2, 3, 4) for name in ARMS}
    by_round = {n: {c["shard"] for c in cells if c["round"] == n} for n in (1, 2, 3, 4)}
    assert sorted(s for shards in by_round.values() for s in shards) == list(range(12))


def test_a_hung_block_is_ended_at_its_deadline_and_run_elsewhere(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=20, configurations=ARMS, latency_s=0.02, workers=TWO)
    set_fault(plan, "once-hang")
    late: list[float] = []

    class Timed(Scheduler):
        def _failed(self, slot: Slot, task: Task, failure: Failure) -> None:
            late.append(task.elapsed_s)
            super()._failed(slot, task, failure)

    limits = Limits(min_deadline_s=8.0, straggle_s=1e9)
    scheduler = Timed(plan, prepared(plan), remote_worker=RemoteFaulty, limits=limits)
    scheduler.start()
    outcome = scheduler.run()
    assert outcome.is_complete
    assert outcome.failures == {"deadline": 1}
    assert 8 < late[0] < 8 + figures.limit(5)
    figures.note(12, "hung", "ended within deadline + 5 s; run elsewhere",
                 deadline_s=8.0, ended_after_s=late[0])  # fmt: skip
    require_sound(plan, Results(plan.output))


def test_an_idle_worker_takes_what_another_is_slow_with(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=20, configurations=ARMS, latency_s=0.02, workers=TWO)
    set_fault(plan, "once-hang")
    _, outcome = run(plan, Limits(min_deadline_s=600, straggle_s=1.0))
    assert outcome.is_complete
    assert outcome.speculations == 1
    assert outcome.failures == {}
    require_sound(plan, Results(plan.output))


def test_where_nothing_is_committed_the_state_is_written_down(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=2)
    set_fault(plan, "once-hang")
    _, outcome = run(plan, Limits(stall_s=4.0, give_up_s=8.0, straggle_s=1e9))
    assert outcome.is_complete
    assert outcome.failures == {"stall": 1}
    names = Results(plan.output).store.list("_logs")
    assert len(names) >= 2
    dump = json.loads(Results(plan.output).store.read(names[0]))
    assert dump["workers"][0]["task"] == "run"
    require_sound(plan, Results(plan.output))


def test_fewer_workers_than_wanted_are_enough_to_begin(tmp_path: Path) -> None:
    plan = simulated_plan(
        tmp_path, num_shards=8, latency_s=0.05, workers=WorkerResources(count=3, cpus=2)
    )
    scheduler, outcome = run(plan)
    assert outcome.is_complete
    assert sum(slot.number < 2 for slot in scheduler.slots) == 2
    assert events(plan)["open"] == 2


def test_a_worker_that_takes_the_room_of_another_is_enough(tmp_path: Path) -> None:
    """There is room for one of two; the first dies in its load, and the other gets its place."""
    plan = simulated_plan(tmp_path, num_shards=4, workers=WorkerResources(count=2, cpus=3))
    set_fault(plan, "once-load-kill-baseline")
    _, outcome = run(plan)
    assert outcome.is_complete
    assert events(plan)["run"] == 4


def test_workers_that_can_never_load_again_end_the_run(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=6, configurations=ARMS, latency_s=0.1)
    results = prepared(plan)
    scheduler = Scheduler(plan, results, remote_worker=RemoteFaulty, limits=QUICK)
    scheduler.start()
    set_fault(plan, "load-raise-other")
    set_fault(plan, "once-kill")
    outcome = scheduler.run()
    assert not outcome.is_complete
    assert outcome.loads <= 1 + QUICK.max_worker_failures
    (reason,) = outcome.quarantined
    assert "as no worker is left" in reason
    assert "no other here" in reason
    require_sound(plan, results, is_complete=False)


def test_a_long_block_that_commits_is_no_stall(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=1, configurations=ARMS, latency_s=5.0)
    _, outcome = run(plan, Limits(stall_s=12.5, give_up_s=12.5, straggle_s=1e9))
    assert outcome.is_complete
    assert outcome.failures == {}
    assert Results(plan.output).store.list("_logs") == []


def test_leases_have_as_many_workers_as_there_is_work_for(tmp_path: Path) -> None:
    workers = WorkerResources(count=3, schedule="leases")
    plan = simulated_plan(tmp_path, num_shards=1, configurations=ARMS, workers=workers)
    scheduler, outcome = run(plan)
    assert len(scheduler.slots) == 3
    assert outcome.is_complete


def test_what_two_workers_run_is_taken_once_when_leases_begin(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=1, configurations=ARMS, workers=TWO)
    scheduler = Scheduler(plan, prepared(plan), remote_worker=RemoteFaulty, limits=QUICK)
    scheduler.crew.resize(2)
    (work,) = scheduler.board.works()
    scheduler.board.leases[0].works.clear()
    for slot in scheduler.slots:
        slot.task = Task("run", None, work=work, mask=work.missing)
    scheduler._change_to_leases()
    assert sorted(each.missing for each in scheduler.board.works()) == [1, 2, 4]


def test_in_leases_each_configuration_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    plan = simulated_plan(tmp_path, num_shards=1, configurations=ARMS)
    watch = Watch(Layout(plan), Limits(min_deadline_s=1.0))
    slow, quick = (Task("run", None, work=Work(0, mask, round=1), mask=mask) for mask in (1, 2))
    slow.started = quick.started = monotonic() - 40
    for _ in range(3):
        watch.note(quick)
    slow.started = quick.started = monotonic() - 1000
    late = [task for _, task, _ in watch.late([Slot(0, task=slow), Slot(1, task=quick)])]
    assert late == [quick]


def test_a_ray_that_has_ended_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers would be waited for without end: tried with a raylet that was killed."""
    plan = simulated_plan(tmp_path, num_shards=60, latency_s=0.02, workers=TWO)
    scheduler = Scheduler(plan, prepared(plan), remote_worker=RemoteFaulty, limits=QUICK)
    scheduler.start()
    slots = [slot.actor for slot in scheduler.slots]
    done = iter(range(20))
    monkeypatch.setattr(
        "cluster.scheduling.scheduler.ended_process",
        lambda: None if next(done, None) is not None else "raylet",
    )
    outcome = scheduler.run()
    for actor in slots:  # nobody was told
        ray.kill(actor)
    assert not outcome.is_complete
    [reason] = outcome.quarantined
    assert reason.endswith("as no worker is left: Ray's raylet on this machine has ended")
