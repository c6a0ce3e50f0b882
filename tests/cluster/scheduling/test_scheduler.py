"""The scheduler over a real Ray: complete, resumable, deterministic, and clear when it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import figures
import pyarrow as pa
import pytest
import ray
from test_worker import prepare

from cluster.plan import Plan, WorkerResources
from cluster.results.results import Results, part_name
from cluster.results.schema import deterministic_columns
from cluster.results.verification import faults_of
from cluster.scheduling.scheduler import Scheduler
from cluster.telemetry.progress import Progress
from cluster.worker.worker import Worker
from optim.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Fragile(Worker):
    """Dies once, where a file beside the output says so."""

    def run(self, block: str, keys: Any) -> list[dict[str, Any]]:
        folder = Path(self.plan.output).parent
        receipts = super().run(block, keys[:1])
        if (folder / "die").exists():
            (folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return receipts + super().run(block, keys[1:])


RemoteFragile = ray.remote(Fragile)


def deterministic(results: Results, kind: Any) -> pa.Table:
    columns = ["configuration", *deterministic_columns(kind)]
    order = [(c, "ascending") for c in ("configuration", "cell", "prompt_id")]
    return results.read(kind).select(columns).sort_by(order)


def run(plan: Plan, results: Results, **options: Any) -> Any:
    scheduler = Scheduler(plan, results, **options)
    scheduler.start()
    return scheduler.run()


@pytest.mark.slow
def test_one_and_four_workers_agree_byte_for_byte_whatever_dies(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    made = []
    for count in (1, 4):
        folder = tmp_path / str(count)
        plan, results = prepare(
            folder,
            tiny_model_folder,
            seeds=(0, 1, 2),
            workers=WorkerResources(count=count, cpus=1),
            shuffle_seed=count,
        )
        (folder / "die").touch()
        seen: list[Progress] = []
        outcome = run(plan, results, on_progress=seen.append, remote_worker=RemoteFragile)
        assert outcome.is_complete
        assert outcome.failures == {"crash": 1}
        assert list(faults_of(results)) == []
        assert seen[-1].cells_done == seen[-1].cells_total == 16
        workers = {fact["worker"] for fact in results.cells()}
        assert min(count, 2) <= len(workers) <= count  # one may come too late for any work
        made.append([deterministic(results, kind) for kind in ("generations", "likelihoods")])
    assert made[0] == made[1]
    assert made[0][0].num_rows == 2 * 3 * 6
    figures.note(15, "kills", "deterministic columns byte-equal", num_workers=[1, 4], is_equal=True)


def test_resume_runs_only_what_is_missing(tmp_path: Path, tiny_model_folder: Path) -> None:
    plan, results = prepare(tmp_path, tiny_model_folder)
    run(plan, results)
    assert Scheduler(plan, results).num_pending == 0
    lost = next(plan.blocks()).cells[0]
    results.store.delete(part_name(lost))
    again = Scheduler(plan, results)
    assert again.num_pending == 1
    again.start()
    assert again.run().rows == lost.stop - lost.start
    assert list(faults_of(results)) == []


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    plan, results = prepare(tmp_path, tiny_model_folder)
    (tmp_path / "die").touch()
    outcome = run(plan, results, remote_worker=RemoteFragile)
    assert outcome.is_complete
    assert outcome.retries == 1
    assert list(faults_of(results)) == []


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (WorkerResources(count=2, gpus=4), r"2 workers x 4 GPUs.*largest node has 0"),
        (WorkerResources(count=3, cpus=50), r"3 workers x 50 CPUs.*largest node has 4"),
    ],
)
def test_more_than_the_cluster_has_is_refused(
    tmp_path: Path, tiny_model_folder: Path, workers: WorkerResources, message: str
) -> None:
    plan, results = prepare(tmp_path, tiny_model_folder, workers=workers)
    start = monotonic()
    with pytest.raises(InputError, match=message):
        Scheduler(plan, results).start()
    taken_s = monotonic() - start
    assert taken_s < 10
    resource = "GPUs" if workers.gpus else "CPUs"
    figures.note(13, resource, "a clear error within 10 s: need against have", taken_s=taken_s)


def test_a_model_that_cannot_be_loaded_is_an_input_error(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    plan, results = prepare(tmp_path, tiny_model_folder)
    model = plan.model.model_copy(update={"path": str(tmp_path / "none")})
    with pytest.raises(InputError, match="no such folder"):
        Scheduler(plan.model_copy(update={"model": model}), results).start()
