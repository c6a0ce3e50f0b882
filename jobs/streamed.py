"""A call in a Ray task that tells what it is at: a streaming generator of its reports."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from optim.allotment import usable_cpus
from optim.resources import Call

CLEAN_UP_S = 60.0
"""The most that an interrupted call is waited for."""


def stream(call: Call[Any], threads: int) -> Iterator[tuple[str, Any]]:
    """Make a call with so many threads of torch; ("stage", text) as it goes, at last ("done", it).

    When the task is cancelled, the call's next report raises InterruptedError in it.
    """
    import torch

    torch.set_num_threads(max(1, min(threads, usable_cpus())))
    queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stopped = Event()

    def on_stage(text: str) -> None:
        if stopped.is_set():
            raise InterruptedError
        queue.put(("stage", text))

    def work() -> None:
        try:
            queue.put(("done", call(on_stage)))
        except BaseException as error:  # It is raised again by the thread that waits.
            queue.put(("error", error))

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise value
            yield kind, value
            if kind == "done":
                return
    finally:
        # Cancelled, it ends at its next stage and removes what it has written.
        stopped.set()
        thread.join(CLEAN_UP_S)
