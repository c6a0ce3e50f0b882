"""Whether the Ray that this process started on this machine still runs.

Calls of workers are awaited through the local raylet: once it has ended, nothing ever answers, and
nothing says so.
"""

from __future__ import annotations

from typing import Any

_ESSENTIAL = ("raylet", "gcs_server")


def is_started_here() -> bool:
    """Whether this process started the Ray that it uses, on this machine."""
    node = _node()
    return node is not None and bool(node.is_head())


def ended_process() -> str | None:
    """The name of a process of it that has ended; None where all run, or another started them."""
    node = _node()
    if node is None:
        return None
    dead = {str(kind) for kind, _ in node.dead_processes()}
    return next((kind for kind in _ESSENTIAL if kind in dead), None)


def _node() -> Any:
    from ray._private import worker  # Ray says it nowhere else

    return getattr(worker, "_global_node", None)
