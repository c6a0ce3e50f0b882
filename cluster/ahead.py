"""Reading ahead: a function of many things by few threads, the results in order, few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cluster.storage import LocalStore, ObjectStore

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads_for(store: LocalStore | ObjectStore) -> int:
    """As many as hide the latency of a bucket; of a disk, as many as hash and decode."""
    return 2 if isinstance(store, LocalStore) else 16


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """`map`, with at most four results per thread waiting: memory does not grow with `items`."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 4 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
