"""A Ray to work with, for as long as a job takes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optim.allotment import usable_cpus
from optim.errors import InputError
from optim.proxies import proxy_words

CONNECT_WITHIN_S = 10.0
TOKEN_MEND = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or a file "
    "~/.ray/auth_token) here to what `ray start` had on the cluster"
)

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_terminated = threading.Event()


@contextmanager
def ray_session(
    address: str | None, on_stage: Callable[[str], None] = lambda stage: None
) -> Iterator[None]:
    """A connection to a cluster (`address`, else RAY_ADDRESS), or Ray started here and ended after.

    One that is there already is used and left. Raises InputError where no cluster answers.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS")
    on_stage(f"connecting to Ray at {where}" if where else "starting Ray on this machine")
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _join(where) if where else _start()
        except SystemExit:  # Ray's own answer to a SIGTERM while it connects
            _terminated.set()
            raise KeyboardInterrupt from None
        yield
    finally:
        ray.shutdown()
        # Ray's own handler would end what is left to do with exit code 15, after seconds.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start() -> None:
    import ray

    # Rows never pass through Ray's object store, so a small one does.
    # `local`, or Ray would join whatever cluster happens to run on this machine.
    try:
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=100 << 20,
            **_QUIET,
        )
    except OSError as error:
        raise _cannot_start(error) from error


def _cannot_start(error: OSError) -> InputError:
    """Ray keeps sockets and logs in the folder for temporary files, and a token in the home."""
    text = " ".join(str(error).split())
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if "path length" in text:
        return InputError(
            "Ray cannot start: its sockets' paths would be longer than 107 bytes there",
            source=place,
            field=variable,
            mend="Set RAY_TMPDIR to a folder with a short path, such as /tmp",
        )
    named = str(error.filename) if error.filename else place
    home = os.path.expanduser("~")
    # The nearer of both, as one may lie in the other.
    is_home = len(_above(named, home)) > len(_above(named, place))
    return InputError(
        f"Ray cannot start: {error.strerror or text}",
        source=named,
        field="HOME" if is_home else variable,
        mend=f"Set {'HOME' if is_home else 'RAY_TMPDIR'} to a folder that can be written to",
    )


def _above(path: str, folder: str) -> str:
    """The folder, where a path lies in it; else nothing."""
    whole = os.path.abspath(folder)
    return whole if Path(os.path.abspath(path)).is_relative_to(whole) else ""


def _join(where: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError, RayError

    _require_listener(where)
    try:
        ray.init(address=where, **_QUIET)
    except AuthenticationError as error:
        raise InputError(
            "the cluster wants a token, and none is found here", source=where, mend=TOKEN_MEND
        ) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise _other_versions(error, where) or InputError(
            f"no Ray cluster answers: {str(error).splitlines()[0]}",
            source=where,
            mend=f"Check the address, and where the cluster wants a token: {TOKEN_MEND}"
            + _by_proxy(where),
        ) from error


def _other_versions(error: Exception, where: str) -> InputError | None:
    """Ray says in lines of its own which versions there are; None for another error."""
    text = str(error)
    rays, pythons = (re.findall(rf"^\s*{name}: (\S+)", text, re.M) for name in ("Ray", "Python"))
    if not text.startswith("Version mismatch") or len(rays) != 2 or len(pythons) != 2:
        return None
    return InputError(
        f"the cluster has Ray {rays[0]} and Python {pythons[0]}, and here are Ray {rays[1]} and "
        f"Python {pythons[1]}",
        source=where,
        mend="Both have to be the same: use an environment with the cluster's versions, or submit "
        "the trial from outside (`optrial submit`)",
    )


def _by_proxy(where: str) -> str:
    """Ray heeds proxies only where it is told to."""
    told = os.environ.get("RAY_grpc_enable_http_proxy", "0")  # noqa: SIM112  (Ray's own name)
    if told.lower() not in ("1", "true"):
        return ""
    words = proxy_words(f"http://{where}")
    return f".{words}" if words else ""


def _require_listener(where: str) -> None:
    """InputError for an address of another kind, or of nobody, which Ray takes minutes to say."""
    scheme, separator, _ = where.partition("://")
    if separator:
        what = "a job server's address" if scheme.startswith("http") else f"a {scheme}:// address"
        raise InputError(
            f"this is {what}, and a trial joins a cluster from inside, at HOST:PORT",
            source=where,
            mend="From outside: `optrial submit SPEC --address http://HOST:8265`",
        )
    host, separator, port = where.rpartition(":")
    if not separator or not port.isdecimal():
        return  # such as `auto`, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers: {getattr(error, 'strerror', None) or error}",
            source=where,
            mend="Check the address, and whether `ray start --head` ran there",
        ) from error


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """A SIGTERM ends a run as Ctrl-C does: workers stopped, what is committed kept.

    Before and after a run nothing is in flight, and a SIGTERM ends the process as it always does.
    """

    def interrupt(signum: int, frame: object) -> None:
        _terminated.set()
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def left_at_once_when_terminated() -> Iterator[None]:
    """Where a SIGTERM ended the program inside, skip the interpreter's own end.

    `ray job stop` kills what is there 3 s after its SIGTERM. Stopping workers and leaving the
    cluster takes a fraction of that, and taking apart the modules of torch, which frees nothing
    that the end of the process does not free, takes the rest of it on a busy machine.
    """
    _terminated.clear()
    try:
        yield
    except SystemExit as stop:
        if _terminated.is_set() and isinstance(stop.code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise
