"""A disk that is full: no bad part, nothing left of it, a clear error, and on it goes with room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trial_results import make_results

from cluster.compaction.compaction import compact
from cluster.results.compacted_files import CURRENT
from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.storage.open_store import StorageFull
from jobs.analysis.tables import update_tables
from jobs.queries.cells import CELLS
from jobs.queries.sql import run_sql

SMALL = {"num_datasets": 1, "num_prompts": 16, "num_shards": 8, "seeds": (1,)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here; the limit on files is tested all the same")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room that there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def test_commits_on_a_full_disk(small_disk: Path) -> None:
    output = small_disk / "out"
    results = make_results(output, edit=lambda cell, rows, facts: cell.seed is None, **SMALL)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    plan = results.plan()
    cell = next(plan.blocks()).cells[0]
    rows = [
        {"dataset": cell.dataset, "prompt_id": f"p{i:03}", "seed": cell.seed, "cell": cell.key}
        for i in range(cell.start, cell.stop)
    ]
    ballast = fill(small_disk)
    with pytest.raises(StorageFull, match="no room left") as raised:
        results.commit(cell, rows, {"rows": len(rows)})
    assert str(output) in str(raised.value)
    assert "run the same command again" in str(raised.value)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert cell.key not in results.sound_keys()
    problem = update_tables(results)
    assert problem is not None
    assert "no room left" in problem

    ballast.unlink()
    assert not results.commit(cell, rows, {"rows": len(rows)}).is_duplicate
    assert cell.key in results.sound_keys()
    assert not [fault for fault in faults_of(results) if fault.kind != "missing"]


def test_compaction_on_a_full_disk_changes_nothing(small_disk: Path) -> None:
    results = make_results(small_disk / "out", **SMALL)
    sql = "SELECT * FROM generations ORDER BY ALL"
    before = run_sql(results, sql)
    ballast = fill(small_disk)
    with pytest.raises(StorageFull):
        compact(results, CELLS)
    assert not results.store.exists(CURRENT)
    assert results.store.list("tables/compacted") == []
    assert run_sql(results, sql).equals(before)
    ballast.unlink()
    assert compact(results, CELLS).num_parts == len(results.committed_keys())
    assert run_sql(results, sql).equals(before)


LIMITED = """
import resource, sys
from trial_results import make_plan
from cluster.results.results import Results
from cluster.storage.open_store import StorageFull

results = Results(sys.argv[1])
cell = next(make_plan(sys.argv[1]).blocks()).cells[0]
rows = [{"dataset": cell.dataset, "prompt_id": f"p{i}", "completion_text": str(i) * 999}
        for i in range(cell.start, cell.stop)]
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
try:
    results.commit(cell, rows, {})
except StorageFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(results.store.list(""), results.commit(cell, rows, {}).is_duplicate)
"""


def test_a_limit_on_files(tmp_path: Path) -> None:
    """In a process of its own, as a limit holds for all that a process writes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    error, after = done.stdout.splitlines()
    assert "no room left: File too large" in error
    assert after == "[] False", "nothing was left of it, and the next try is the first"
    assert len(Results(str(tmp_path / "out")).parts("generations")) == 1
