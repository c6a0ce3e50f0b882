"""What of a machine a process may use: affinity, and quotas and limits of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from optim import allotment
from optim.allotment import available_memory_bytes, usable_cpus


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups, in which this process is in none."""
    root = tmp_path / "cgroup"
    root.mkdir()
    own = tmp_path / "self"
    own.write_text("")
    monkeypatch.setattr(allotment, "GROUPS", root)
    monkeypatch.setattr(allotment, "OWN_GROUPS", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    return root


def put(groups: Path, own: str, **files: str) -> None:
    """Be in the groups `own`; names of files have `__` for `/` and `_dot_` for `.`."""
    (groups.parent / "self").write_text(own)
    for name, text in files.items():
        file = groups / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_affinity_counts_and_not_the_cores() -> None:
    program = "from optim.allotment import usable_cpus; print(usable_cpus())"
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}])\n{program}"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 1),
                        ("50000 100000", 1), ("9900000 100000", 16)],
)  # fmt: skip
def test_a_quota_of_version_2(groups: Path, quota: str, cpus: int) -> None:
    put(groups, "0::/a/b\n", a__b__cpu_dot_max=quota)
    assert usable_cpus() == cpus
    (groups / "a" / "b" / "cpu.max").write_text("max 100000")
    (groups / "a" / "cpu.max").write_text(quota)
    assert usable_cpus() == cpus, "that of a group above holds as well"


def test_a_quota_of_version_1(groups: Path) -> None:
    own = "4:cpu,cpuacct:/docker/x\n0::/\n"
    files = {"cpu,cpuacct__docker__x__cpu_dot_cfs_quota_us": "300000\n",
             "cpu,cpuacct__docker__x__cpu_dot_cfs_period_us": "100000\n"}  # fmt: skip
    put(groups, own, **files)
    assert usable_cpus() == 3
    put(groups, own, **{"cpu,cpuacct__docker__x__cpu_dot_cfs_quota_us": "-1\n"})
    assert usable_cpus() == 16


def test_within_a_container_the_names_are_the_host_s(groups: Path) -> None:
    put(groups, "0::/system.slice/docker-abc.scope\n", cpu_dot_max="200000 100000")
    assert usable_cpus() == 2


def test_memory_is_what_the_group_leaves(groups: Path) -> None:
    stat = "anon 90000\ninactive_file 800000\n"
    files = {"memory_dot_max": "1000000\n", "memory_dot_current": "990000\n"}
    put(groups, "0::/\n", **files, memory_dot_stat=stat)
    assert available_memory_bytes() == 810_000, "a container's cached files are memory that is left"
    put(groups, "0::/\n", memory_dot_max="max\n")
    assert available_memory_bytes() > 1_000_000
    old = {"limit": "5000000", "usage": "2000000"}
    files = {f"memory__{name}_in_bytes".replace("__", "__memory_dot_"): text
             for name, text in old.items()}  # fmt: skip
    put(groups, "7:memory:/\n", **files, memory__memory_dot_stat="total_inactive_file 500000\n")
    assert available_memory_bytes() == 3_500_000


def test_where_there_is_no_group_the_machine_counts(groups: Path) -> None:
    (groups.parent / "self").unlink()
    assert usable_cpus() == 16
    assert available_memory_bytes() <= psutil.virtual_memory().total
