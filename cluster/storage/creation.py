"""Creating a file alone where the store itself does not see to it that one writer wins."""

from __future__ import annotations

import time

from cluster.storage.open_store import Store

CONFIRM_S = 1.0
"""How long others get who looked before the file was there, and put theirs a little later."""


def create_alone(store: Store, name: str, data: bytes) -> bool:
    """Put a new file; False where another's has that name, put at the same moment too.

    A store without a conditional PUT says to each of several writers that theirs is the file. So it
    is read back there after `CONFIRM_S`, and whoever finds another's has lost. That is no proof: a
    writer whose PUT takes longer than this still overwrites it. Raises as `Store.create` does.
    """
    if not store.create(name, data):
        return False
    if store.create_is_exclusive:
        return True
    time.sleep(CONFIRM_S)
    try:
        return store.read(name) == data
    except FileNotFoundError:
        return False
