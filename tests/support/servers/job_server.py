"""A real Ray head with its job server, on loopback, with ports and files of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).parents[3]
START_WITHIN_S = 120


@dataclass(frozen=True)
class JobServer:
    """One that answers, and how a client on this machine reaches it."""

    address: str
    environment: dict[str, str]
    """Of a client that may use it; it names no cluster."""
    log: Path

    def without_token(self, **changes: str) -> dict[str, str]:
        """The environment of a client that has no token, with `changes`."""
        kept = {k: v for k, v in self.environment.items() if not k.startswith("RAY_AUTH")}
        return kept | changes


@contextmanager
def job_server(token: str | None) -> Iterator[JobServer]:
    """A head for as long as the context lasts; with a token it wants that, with None it wants none.

    Its processes are a group of their own, and end with it; nothing else on the machine is touched.
    """
    with ExitStack() as stack:
        # Sockets lie in it, and their names may not be long.
        folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = _environment(folder, token)
        log = folder / "head.log"
        port, dashboard, *others = _free_ports(7)
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4", "--num-gpus=0"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--{name}-port={free}" for name, free in zip(names, others, strict=False)),
            *(f"--metrics-export-port={others[3]}", f"--ray-client-server-port={others[4]}"),
            *(f"--temp-dir={folder / 'r'}", f"--object-store-memory={80 << 20}"),
            "--disable-usage-stats",
        ]
        with log.open("wb") as out:
            head = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        stack.callback(_end, head)
        address = f"http://127.0.0.1:{dashboard}"
        _wait_until_it_answers(address, token, head, log)
        yield JobServer(address, environment, log)


def _environment(folder: Path, token: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # Jobs find `python` on the head's PATH, and a token is never looked for in a person's home.
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    made = kept | {"PATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    made["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    if token is None:
        return made | {"RAY_AUTH_MODE": "disabled"}
    return made | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def _wait_until_it_answers(
    address: str, token: str | None, head: subprocess.Popen[bytes], log: Path
) -> None:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        try:
            # Jobs can be submitted only once an agent is there, and this asks for one.
            if requests.get(f"{address}/api/jobs/", headers=headers, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and every process that it started, by their own ids."""
    mine = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(mine, timeout=15)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    head.wait(timeout=10)
