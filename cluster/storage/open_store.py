"""Where results lie: a local folder or an object store, behind the verbs of `Store`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cluster.storage.local import LocalStore
from cluster.storage.objects import ObjectStore
from cluster.storage.store import Entry, StorageFull, StorageRefused, StorageUnreachable, Store

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


__all__ = [
    "Entry", "LocalStore", "ObjectStore", "StorageFull", "StorageRefused", "StorageUnreachable",
    "Store",
    "open_store",
]  # fmt: skip


def open_store(url: str | os.PathLike[str]) -> LocalStore | ObjectStore:
    """The store for a folder or a `scheme://` address."""
    text = os.fspath(url)
    if text.startswith("file://"):
        return LocalStore(text.removeprefix("file://"))
    return ObjectStore(text) if "://" in text else LocalStore(text)
