"""What of this machine a process may use: CPUs by affinity and control groups, memory by both.

A container, a batch system or `taskset` gives a part of a machine, which `os.cpu_count` and the
system's memory say nothing of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Whole CPUs that this process may keep busy, 1 at least: those that it may run on, or fewer
    where a control group (v1 or v2) has a quota of time."""
    quotas = [quota for folder in _folders("cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min([_affinity(), *quotas])))


def available_memory_bytes() -> int:
    """Bytes that the machine and the control groups' limits leave, whichever is less."""
    left = int(psutil.virtual_memory().available)
    for folder in _folders("memory"):
        for limit, use, cached in _MEMORY_FILES:
            room = _room(folder, limit, use, cached)
            left = left if room is None else min(left, room)
    return max(0, left)


_MEMORY_FILES = (  # limit, use, and what of it is cached files: v2, v1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # a system without affinities


def _folders(controller: str) -> Iterator[Path]:
    """Of the process's group and those above it: each one's limit holds.

    Within a container the names may be the host's, and only the outermost folder be there.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            roots = [GROUPS, GROUPS / "unified"]
        elif controller in controllers.split(","):
            roots = [GROUPS / controllers, GROUPS / controller]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is not None:
            place = root / name.strip("/")
            yield from (each for each in (place, *place.parents) if each.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """CPUs' worth of time; None for no limit."""
    try:
        if (limit := folder / "cpu.max").exists():
            words = limit.read_text().split()
        else:
            words = [(folder / f"cpu.cfs_{name}_us").read_text().strip()
                     for name in ("quota", "period")]  # fmt: skip
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):
        return None  # not there, or `max`
    return quota / period if quota > 0 and period > 0 else None


def _room(folder: Path, limit: str, use: str, cached: str) -> int | None:
    """Bytes below a group's limit; None where it has none."""
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, use))
        lines = (folder / "memory.stat").read_text().splitlines()
        if most == "max":
            return None
        # Cached files are dropped when memory is asked for.
        return int(most) - int(used) + int(dict(line.split() for line in lines).get(cached, 0))
    except (OSError, ValueError):
        return None
