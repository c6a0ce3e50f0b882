"""Where results lie: a local folder or an object store, behind the verbs of `Store`."""

from __future__ import annotations

import os

from cluster.local_store import LocalStore
from cluster.object_store import ObjectStore
from cluster.store import Entry, StorageFull, StorageRefused, StorageUnreachable, Store

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
