"""Whether the Ray that this process started on this machine still runs.

Calls of workers are awaited through the local raylet: once it has ended, nothing ever answers, and
nothing says so.
"""

from __future__ import annotations

_ESSENTIAL = ("raylet", "gcs_server")


def ended_process() -> str | None:
    """The name of a process of it that has ended; None where all run, or another started them."""
    from ray._private import worker  # Ray says it nowhere else

    node = getattr(worker, "_global_node", None)
    if node is None:
        return None
    dead = {str(kind) for kind, _ in node.dead_processes()}
    return next((kind for kind in _ESSENTIAL if kind in dead), None)
