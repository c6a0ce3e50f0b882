"""Commits pages in a background thread while the model computes.

The thread does system calls on addresses that it was given, and nothing else: what it commits is
entered into the books by the main thread when it joins, and everything that reads or changes the
books joins first. So there is no state that both threads touch.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from optim.vattention.arena.arena import Arena, KVMemoryError, Spans


class Prefetch:
    """At most one commit under way."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        # Its thread starts with the first commit and ends when this object goes.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kv-commit")
        self._pending: tuple[Future[None], int, NDArray[np.int64]] | None = None

    def start(self, spans: Spans, tokens_B: NDArray[np.int64]) -> None:
        """Commit `spans`, which give each row room for `tokens_B`."""
        assert self._pending is None, "the commit before was not joined"
        future = self._executor.submit(self._arena.populate, spans)
        self._pending = future, spans.total_bytes, tokens_B

    def join(self) -> NDArray[np.int64] | None:
        """The tokens per row that a finished commit made room for, None where there is none.

        A commit that failed is none: who needs its pages asks again and gets the error.
        """
        if self._pending is None:
            return None
        (future, num_bytes, tokens_B), self._pending = self._pending, None
        try:
            future.result()
        except KVMemoryError:
            return None
        self._arena.book(num_bytes)
        return tokens_B
