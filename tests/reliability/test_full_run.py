"""A run whose disk fills up ends clearly, and goes on once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import figures
import pytest
import ray
from sound_results import require_sound

from benchmarks.cluster.simulated import SimulatedWorker, prepared, simulated_plan
from cluster.plan import WorkerResources
from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.scheduling.scheduler import Scheduler
from cluster.storage.open_store import StorageFull

pytestmark = pytest.mark.usefixtures("ray_cluster")

RemoteSimulated = ray.remote(SimulatedWorker)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_nothing_unsound(small_disk: Path) -> None:
    plan = simulated_plan(
        small_disk, num_shards=60, latency_s=0.01, workers=WorkerResources(count=2)
    )
    results = prepared(plan)
    scheduler = Scheduler(plan, results, remote_worker=RemoteSimulated)
    scheduler.start()
    start = monotonic()
    with pytest.raises(StorageFull, match="no room left"):
        scheduler.run()
    taken_s = monotonic() - start
    assert taken_s < figures.limit(30)
    assert all(not slot.is_alive for slot in scheduler.slots)
    committed = len(results.sound_keys())
    assert 0 < committed < 60
    require_sound(plan, results, is_complete=False)
    assert {fault.problem.split(":")[0] for fault in faults_of(results)} == {"missing"}
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = Scheduler(plan, Results(plan.output), remote_worker=RemoteSimulated)
    assert again.num_pending == 60 - committed
    again.start()
    assert again.run().is_complete
    require_sound(plan, Results(plan.output))
    figures.note(
        7, "disk full", "no bad part; ends clearly within 30 s; goes on when there is room",
        ended_after_s=taken_s, cells_committed=committed, cells_total=60,
    )  # fmt: skip
