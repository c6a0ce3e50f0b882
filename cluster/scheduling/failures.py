"""What went wrong with a worker, and whether the work is to blame.

After measurements of Ray 2.60: an actor that is killed shows as `ActorDiedError`, or, while its
node is being given up, as `ActorUnavailableError`; one that Ray killed for memory as
`OutOfMemoryError`, which is no `RayActorError`. None of them says whether the work was committed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from optim.errors import InputError

FailureKind = Literal["error", "input", "out_of_memory", "crash", "preempted", "deadline", "stall"]

_NO_MEMORY = "can't allocate memory"
"""What torch's allocator of CPU memory says, in a RuntimeError."""


_NODE_MEMORY = re.compile(r"([\d.]+) ?GB used / ([\d.]+) ?GB limit|([\d.]+)GB / ([\d.]+)GB")


@dataclass(frozen=True)
class Failure:
    """One failed call of a worker."""

    kind: FailureKind
    reason: str
    """One line."""
    cause: BaseException | None = None
    detail: str | None = None
    """All that Ray said, for the log, where it said more than a person wants to read."""

    @property
    def loses_worker(self) -> bool:
        """Whether the process is gone, or not to be trusted any more."""
        return self.kind not in {"error", "input"}

    @property
    def is_charged(self) -> bool:
        """Whether the work may be to blame; a node that was taken away says nothing of it."""
        return self.kind != "preempted"


def classify(error: RayError) -> Failure:
    """What an error of Ray stands for."""
    if isinstance(error, RayTaskError):
        return _of_application(error)
    if isinstance(error, OutOfMemoryError):
        return _of_memory(error, error)
    if isinstance(error, ActorDiedError) and error.preempted:
        return Failure("preempted", "the worker's node was taken away", error)
    return Failure("crash", f"worker lost ({type(error).__name__}: {_last_line(error)})", error)


def _of_application(error: RayTaskError) -> Failure:
    cause = error.cause
    lines = str(cause).strip().splitlines()
    reason = lines[0] if lines else type(cause).__name__
    if isinstance(cause, OutOfMemoryError):  # of a task that the task had started
        return _of_memory(cause, cause)
    if isinstance(cause, InputError):
        return Failure("input", reason, cause)
    # By name: the driver need not import torch to know its error.
    names = {kind.__name__ for kind in type(cause).__mro__}
    if names & {"OutOfMemoryError", "MemoryError"} or _NO_MEMORY in reason:
        detail = str(cause) if len(str(cause)) > len(_first(reason)) else None
        return Failure("out_of_memory", f"out of memory: {_first(reason)}", cause, detail)
    return Failure("error", f"{type(cause).__name__}: {reason}", cause)


def _of_memory(error: OutOfMemoryError, cause: BaseException) -> Failure:
    """Ray's forty lines as one sentence, with how full it says that the node was."""
    text = str(error)
    found = _NODE_MEMORY.search(text)
    used, limit = (found[1] or found[3], found[2] or found[4]) if found else ("", "")
    full = f" (its node had {used} of {limit} GB in use)" if found else ""
    return Failure("out_of_memory", f"out of memory: Ray ended the worker{full}", cause, text)


def _first(text: str) -> str:
    """What was asked for and what was there, without the advice that follows it."""
    return text.partition(". Of the allocated memory")[0].partition(". Including non-PyTorch")[0]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
