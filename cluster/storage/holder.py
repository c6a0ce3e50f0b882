"""`Holder`: a driver as it says of itself in its lock, and what can be told of whether it lives.

By what no setting of a clock changes: seconds and ticks since the machine's boot on one machine,
and between machines whether the lock goes on being renewed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import psutil

BEAT_S = 10.0
STALE_S = 60.0


@dataclass(frozen=True)
class Holder:
    """A driver, as it says of itself in the lock."""

    id: str
    host: str
    pid: int
    pid_namespace: str
    """Pids of two containers of one machine are not comparable; empty where it is not known."""
    started_at: str
    """For people: ISO 8601, by the holder's clock."""
    beat_at: float
    """Seconds since the epoch by the holder's clock."""
    boot: str = ""
    """Of the kernel's id of this boot; empty where there is none."""
    start_ticks: int = 0
    """When the process began, in ticks since the boot: a pid may be another process's by now."""
    beat_s: float = 0.0
    """Of the monotonic clock, which one boot's processes share."""

    @classmethod
    def own(cls, id: str, started_at: str) -> Holder:
        """Of this process, which has not beaten yet."""
        pid = os.getpid()
        return cls(
            id=id,
            host=socket.gethostname(),
            pid=pid,
            pid_namespace=_pid_namespace(),
            started_at=started_at,
            beat_at=0.0,
            boot=_boot(),
            start_ticks=_start_ticks(pid) or 0,
        )

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Holder:
        """From the lock's JSON; TypeError where it is none. A newer version may say more."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in known})

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its monotonic clock is this process's."""
        return bool(self.boot) and self.boot == _boot()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: a process of this machine that is not there."""
        if self.host != socket.gethostname() or self.pid_namespace != _pid_namespace():
            return False
        if self.boot != _boot():
            return False  # machines may have one name
        if not psutil.pid_exists(self.pid):
            return True
        ticks = _start_ticks(self.pid)
        return bool(self.start_ticks) and ticks is not None and ticks != self.start_ticks

    @property
    def silent_s(self) -> float:
        """Seconds since it last renewed the lock; of another boot, as far as clocks agree."""
        if self.is_of_this_boot:
            return time.monotonic() - self.beat_s
        return time.time() - self.beat_at

    @property
    def is_quiet(self) -> bool:
        """Whether it may be dead by its times: long not renewed, or renewed in the future, which
        shows a clock that differs, and so nothing of when it was."""
        return not -BEAT_S < self.silent_s < STALE_S

    @property
    def text(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """When a process began, as the kernel says; None where it does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # Its name, in parentheses, may hold anything; the 22nd field is the start.
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
