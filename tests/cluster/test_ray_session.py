"""Joining a cluster: addresses that cannot be one are said at once, and SIGTERM ends a program."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster.ray_session import ray_session, terminated_as_interrupted
from optim.errors import InputError

# Ends as the command line does, with a thing to do at its end that takes its time.
PROGRAM = """
import atexit, sys, time
from cluster.ray_session import left_at_once_when_terminated, terminated_as_interrupted

atexit.register(time.sleep, 30)
with left_at_once_when_terminated():
    try:
        with terminated_as_interrupted():
            print("ready", flush=True)
            time.sleep(60)
    except KeyboardInterrupt:
        print("put away", end="")
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://head:8265", "optrial submit"),
        ("ray://head:10001", "a ray:// address"),
        ("127.0.0.1:999999", "no Ray cluster answers"),
    ],
)
def test_addresses_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests' cluster goes on
    with pytest.raises(InputError, match=said), ray_session(address):
        pass


def test_nobody_at_an_address_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests' cluster goes on
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(InputError, match="no Ray cluster answers"), ray_session(None):
            pass
        assert time.monotonic() - began < 10


def test_a_terminated_program_skips_the_interpreters_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == "put away", "what was printed is not lost"


def test_the_signal_means_afterwards_what_it_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
