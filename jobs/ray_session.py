"""A Ray to work with, for as long as a job takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optim.errors import InputError


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
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if where:
        options["address"] = where
    else:
        # Rows never pass through Ray's object store, so a small one does.
        # `local`, or Ray would join whatever cluster happens to run on this machine.
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": 100 << 20,
        }
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster answers: {str(error).splitlines()[0]}",
            source=where,
            mend="Check the address, and RAY_AUTH_MODE and RAY_AUTH_TOKEN where it wants a token",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """A SIGTERM ends a run as Ctrl-C does: workers stopped, what is committed kept."""

    def interrupt(signum: int, frame: object) -> None:
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
