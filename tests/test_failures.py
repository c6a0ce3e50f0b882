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

from cluster.failures import classify
from cluster.limits import Durations, Limits
from cluster.store import StorageFull
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
