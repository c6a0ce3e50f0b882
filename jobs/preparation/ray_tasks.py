"""`RayResources`: what a preparation asks of the Ray task that it runs in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, TypeVar

from jobs.data.texts import Reading, read_corpus
from optim.allotment import usable_cpus
from optim.errors import InputError
from optim.resources import Call, OnStage

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


ResultT = TypeVar("ResultT")


class RayResources:
    """Further tasks on the node and the CPUs of the task that asks; Ray Train for groups.

    The task that asks holds its CPUs while others work for it, so they claim none of their own.
    """

    def __init__(self, reading: Reading, cpus: int, gpus: int) -> None:
        self._reading, self._cpus, self._gpus = reading, cpus, gpus

    @property
    def num_processes(self) -> int:
        return 1 if self._gpus else self._cpus

    def read(self, path: str) -> Iterator[str]:
        try:
            yield from read_corpus(path, self._reading)
        except InputError as error:
            raise InputError(
                error.problem, source=error.source, field="--protect", mend=error.mend
            ) from error

    def run(self, calls: Sequence[Call[ResultT]], on_stage: OnStage) -> list[ResultT]:
        """At most `num_processes` calls at once, each with its share of the threads."""
        num_at_once = min(self.num_processes, len(calls))
        if num_at_once < 2:
            return [call(on_stage) for call in calls]
        results: dict[int, ResultT] = {}
        waiting = deque(enumerate(calls))
        running: dict[Any, int] = {}
        threads = max(1, self._cpus // num_at_once)
        try:
            while waiting or running:
                while waiting and len(running) < num_at_once:
                    place, call = waiting.popleft()
                    running[_started(call, threads)] = place
                self._step(running, results, on_stage)
        finally:
            _cancel(running)
        return [results[place] for place in range(len(calls))]

    def _step(
        self, running: dict[Any, int], results: dict[int, ResultT], on_stage: OnStage
    ) -> None:
        """Wait for the next report of any call."""
        import ray
        from ray.exceptions import RayTaskError

        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        if not ready:
            return
        work: Any = ready[0]
        try:
            kind, value = ray.get(next(work))
        except RayTaskError as error:
            running.pop(work)
            raise error.cause if isinstance(error.cause, InputError) else error from None
        if kind == "stage":
            on_stage(value)
        else:
            results[running.pop(work)] = value

    def train(self, call: Call[None], num_workers: int, on_stage: OnStage) -> None:
        """Ray Train's workers, each with the CPUs and GPUs of the task beside the task's own."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        threads = self._cpus

        def loop() -> None:
            import torch

            torch.set_num_threads(max(1, min(threads, usable_cpus())))
            call(lambda stage: print(stage, flush=True))

        needed: dict[str, float] = {"CPU": self._cpus}
        if self._gpus:
            needed["GPU"] = self._gpus
        _require_room(num_workers, needed)
        on_stage(f"tuning with {num_workers} workers")
        with TemporaryDirectory(prefix="optrial-train-") as folder:
            trainer: Any = TorchTrainer(
                loop,
                scaling_config=ScalingConfig(
                    num_workers=num_workers, use_gpu=bool(self._gpus), resources_per_worker=needed
                ),
                run_config=RunConfig(storage_path=folder),
            )
            try:
                trainer.fit()
            except Exception as error:
                failures = getattr(error, "worker_failures", {}).values()
                bad = next((each for each in failures if isinstance(each, InputError)), None)
                if bad is None:
                    raise
                raise bad from None


def _require_room(num_workers: int, needed: dict[str, float]) -> None:
    """Workers that there is no room for would be waited for without end."""
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    for resource, each in needed.items():
        if free.get(resource, 0) < num_workers * each:
            raise InputError(
                f"{num_workers} workers of {each:g} {resource} are asked for, and "
                f"{free.get(resource, 0):g} are free",
                field="--workers",
                mend="Ask for fewer, or start a larger cluster",
            )


def _started(call: Call[Any], threads: int) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(stream).options(
        num_cpus=0, num_returns="streaming", scheduling_strategy=here, max_retries=0
    )
    return task.remote(call, threads)


def _cancel(running: dict[Any, int]) -> None:
    """Stop calls, and wait until they have: till then they write where the next run may."""
    import ray
    from ray.exceptions import RayError

    for work in running:
        ray.cancel(work)
    for work in running:
        try:
            for reference in work:
                ray.get(reference)
        except RayError:
            continue
