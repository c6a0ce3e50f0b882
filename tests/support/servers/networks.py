"""Machines of their own addresses on one: network namespaces behind a bridge, for root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PREFIX = "10.217.41."


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout


def can_make() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"optrial-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "ip", "link", "add", "probe", "type", "bridge")
    except subprocess.CalledProcessError:
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


class Network:
    """A hub and hosts; the hub's namespace has the bridge, so that it can cut hosts off."""

    def __init__(self, num_hosts: int) -> None:
        self.name = f"op{os.getpid()}"
        self.hub = f"{self.name}-hub"
        self.hosts = [f"{self.name}-{i}" for i in range(num_hosts)]
        self.processes: list[subprocess.Popen[bytes]] = []

    def address(self, namespace: str) -> str:
        return PREFIX + str([self.hub, *self.hosts].index(namespace) + 1)

    def make(self) -> None:
        ip("netns", "add", self.hub)
        self._within(self.hub, "link", "add", "bridge0", "type", "bridge")
        self._within(self.hub, "addr", "add", f"{self.address(self.hub)}/24", "dev", "bridge0")
        for device in ("lo", "bridge0"):
            self._within(self.hub, "link", "set", device, "up")
        for number, host in enumerate(self.hosts):
            ip("netns", "add", host)
            self._within(
                self.hub, "link", "add", f"port{number}", "type", "veth",
                "peer", "name", "eth0", "netns", host,
            )  # fmt: skip
            self._within(self.hub, "link", "set", f"port{number}", "master", "bridge0", "up")
            self._within(host, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._within(host, "link", "set", device, "up")

    def _within(self, namespace: str, *words: str) -> None:
        ip("-n", namespace, *words)

    def start(
        self, namespace: str, words: Sequence[str], *, log: Path, env: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """A program in a namespace, its output in a file."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *words], stdout=file, stderr=file, env=env
            )
        self.processes.append(process)
        return process

    def remove(self) -> None:
        """End what runs in the namespaces, and remove them."""
        for namespace in (self.hub, *self.hosts):
            found = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            )
            for pid in found.stdout.split():
                with_pid = int(pid)
                try:
                    os.kill(with_pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for process in self.processes:
            process.wait(timeout=30)
        for namespace in (self.hub, *self.hosts):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def cut_off(number: int) -> None:
    """Called in the hub: no packet of a host passes any more."""
    ip("link", "set", f"port{number}", "down")


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    made = Network(num_hosts)
    try:
        made.make()
        yield made
    finally:
        made.remove()
