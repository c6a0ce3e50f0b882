"""A memory limit for a program and what it starts, which is all that its Ray sees of the machine.

As a container: a control group (v1 or v2) of its own, which a mount namespace shows in the place of
the machine's. What other programs take meanwhile counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def limited(num_bytes: int) -> Iterator[list[str]]:
    """The words to begin a command with; whatever it leaves is ended. Skips the test where this
    process may not make groups or namespaces."""
    parent, shown, limit = _parent()
    group = parent / f"optrial-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        try:
            (group / limit).write_text(str(num_bytes))
        except OSError as error:
            pytest.skip(f"no control group of memory can be made here: {error.strerror}")
        enter = f'echo $$ > {group}/cgroup.procs && mount --bind {group} {shown} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", enter, "sh"]
        if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
            pytest.skip("no mount namespace can be made here")
        yield command
    finally:
        _remove(group)


def _parent() -> tuple[Path, Path, str]:
    """Where a group can be made, the folder that Ray reads, and the name of the limit's file."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = GROUPS / "memory"
            return folder / name.strip("/"), folder, "memory.limit_in_bytes"
    # Of v2 only groups without processes of their own have limits below them, and the root.
    return GROUPS, GROUPS, "memory.max"


def _remove(group: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        left = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.1)
    group.rmdir()
