"""Errors of Ray become what they stand for."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from cluster.plan import ModelSource
from cluster.scheduling.failures import classify
from cluster.scheduling.ledger import Outcome
from cluster.scheduling.limits import Durations, Limits
from cluster.storage.store import StorageFull
from jobs.data.texts import Reading
from jobs.preparation.prepare import Task, _clear
from optim.errors import InputError


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "a traceback", cause)


def preempted() -> ActorDiedError:
    error = ActorDiedError()
    error._preempted = True
    return error


def _no_cpu_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "loses_worker", "is_charged"),
    [
        (raised(ValueError("first\nsecond")), "error", False, True),
        (raised(ValueError()), "error", False, True),
        (raised(torch.OutOfMemoryError("CUDA out of memory")), "out_of_memory", True, True),
        (raised(MemoryError()), "out_of_memory", True, True),
        (raised(_no_cpu_memory()), "out_of_memory", True, True),
        (raised(InputError("bad", field="x")), "input", False, True),
        (raised(StorageFull("/x", "No space left")), "input", False, True),
        (OutOfMemoryError("killed"), "out_of_memory", True, True),
        (ActorDiedError(), "crash", True, True),
        (ActorUnavailableError("gone", None), "crash", True, True),
        (NodeDiedError("gone"), "crash", True, True),
        (preempted(), "preempted", True, False),
    ],
)
def test_errors_are_told_apart(
    error: RayError, kind: str, loses_worker: bool, is_charged: bool
) -> None:
    failure = classify(error)
    assert (failure.kind, failure.loses_worker, failure.is_charged) == (
        kind,
        loses_worker,
        is_charged,
    )
    assert failure.reason
    assert "\n" not in failure.reason


DUMP = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: \
192.0.2.2, ID: 97049c) was 14.05GB used / 15.00GB limit (0.936)
OOM kill reason: Memory usage 15086000000B exceeded threshold of 14500000000B
Object store memory usage: [- objects spillable: 0
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
"""


@pytest.mark.parametrize("error", [OutOfMemoryError(DUMP), raised(OutOfMemoryError(DUMP))])
def test_ray_s_words_of_memory_are_one_sentence(error: RayError) -> None:
    failure = classify(error)
    assert failure.kind == "out_of_memory"
    reason = "out of memory: Ray ended the worker (its node had 14.05 of 15.00 GB in use)"
    assert failure.reason == reason
    assert failure.detail == DUMP, "the log has it all"
    task = Task("larosa", {}, ModelSource(path="demo"), ["x"], Reading(), "/out")
    assert str(_clear(error, task)).startswith(
        f"/out: there is no artifact, for the work did not go on: {reason}. Give it a machine with"
    )


def test_torch_s_advice_is_for_the_log() -> None:
    asked = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free"
    error = f"{asked}. Of the allocated memory 3 GiB is allocated by PyTorch. See documentation"
    failure = classify(raised(torch.OutOfMemoryError(error)))
    assert failure.reason == f"out of memory: {asked}"
    assert failure.detail == error


def test_whether_the_work_went_on_is_said() -> None:
    assert Outcome(cells_total=3, cells_done=3).memory_text is None
    done = Outcome(cells_total=3, cells_done=3, failures={"out_of_memory": 1})
    assert done.memory_text is not None
    assert "once: the run went on, and all of it is done" in done.memory_text
    part = Outcome(cells_total=3, cells_done=2, failures={"out_of_memory": 4})
    assert part.memory_text is not None
    assert "4 times: the run went on without what is set aside (2 of 3" in part.memory_text


def test_a_deadline_is_learnt_from_what_is_usual() -> None:
    known = Durations(Limits(min_deadline_s=60.0, deadline_factor=5.0))
    family = ("generations", "d")
    assert known.deadline_s(family, 10) is None
    for seconds in (1.0, 2.0, 3.0):
        known.note(family, 10, seconds)
    assert known.deadline_s(family, 10) == 60.0  # five times three seconds is less
    assert known.deadline_s(family, 1000) == pytest.approx(5 * 300)
    assert known.deadline_s(("likelihoods", "d"), 10) is None
    assert Durations(Limits(deadline_s=7.0)).deadline_s(family, 10) == 7.0


def test_waiting_doubles_from_failure_to_failure() -> None:
    limits = Limits(backoff_s=1.0, max_backoff_s=30.0)
    assert [limits.backoff(n) for n in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]
