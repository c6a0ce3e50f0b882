"""Places that cannot be used are refused by what is wrong with them, before anything runs."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from cluster.ray_session import _cannot_start, _join, _start
from cluster.storage.objects import ObjectStore
from optim.errors import InputError


@pytest.mark.parametrize("address", ["memory://bucket/run[1]", "memory://b/a*", "memory://b/{x}"])
def test_an_address_that_is_a_pattern(address: str) -> None:
    """What is written there could never be read: listing takes it for a pattern."""
    with pytest.raises(InputError, match=r"is a pattern to what reads it\. Choose one without"):
        ObjectStore(address)


def test_why_ray_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    long = OSError("AF_UNIX path length cannot exceed 107 bytes: /scratch/ray/…")
    assert str(_cannot_start(long)) == (
        "/scratch: RAY_TMPDIR: Ray cannot start: its sockets' paths would be longer than 107 bytes "
        "there. Set RAY_TMPDIR to a folder with a short path, such as /tmp"
    )
    home = OSError(errno.EROFS, "Read-only file system", "/home/me/.ray")
    assert str(_cannot_start(home)) == (
        "/home/me/.ray: HOME: Ray cannot start: Read-only file system. Set HOME to a folder that "
        "can be written to"
    )
    monkeypatch.setenv("HOME", "/scratch/me")
    inner = OSError(errno.EROFS, "Read-only file system", "/scratch/me/.ray")
    assert str(_cannot_start(inner)).startswith("/scratch/me/.ray: HOME: Ray cannot start")
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/me/t")
    inner = OSError(errno.EROFS, "Read-only file system", "/scratch/me/t/ray")
    assert ": RAY_TMPDIR: Ray cannot start" in str(_cannot_start(inner))
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    temporary = OSError(errno.EROFS, "Read-only file system", "/scratch/ray")
    assert "Set RAY_TMPDIR to a folder that can be written to" in str(_cannot_start(temporary))


def test_what_cannot_start_ray_is_one_error(tmp_path: Path) -> None:
    """In a process of its own: in this one another test's Ray may be running."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n')
    spec = tmp_path / "trial.yaml"
    spec.write_text(
        f"model: demo\ndatasets: [{{path: {tmp_path / 'prompts.jsonl'}}}]\n"
        f"configurations: [{{name: one}}]\noutput: {tmp_path / 'out'}\n"
    )
    around = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "evaluate", str(spec)],
        capture_output=True,
        text=True,
        env=around | {"RAY_TMPDIR": str(tmp_path / ("a" * 120))},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "RAY_TMPDIR: Ray cannot start: its sockets' paths" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_versions_that_differ_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_cluster(**_: object) -> None:
        there = {"ray_version": "2.9.3", "python_version": "3.9.18"}
        check_version_info(there, "node 127.0.0.1:1")

    monkeypatch.setattr(ray, "init", other_cluster)
    with pytest.raises(InputError) as caught:
        _join("auto")
    own = platform.python_version()
    assert (
        f"the cluster has Ray 2.9.3 and Python 3.9.18, and here are Ray {ray.__version__} and "
        f"Python {own}."
    ) in str(caught.value)
    assert "answers" not in str(caught.value)


def test_ray_is_started_with_the_cpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    _start()
    assert given["num_cpus"] == 1
