"""What every place of results can do, and the ways in which it fails that people can mend.

Correctness of resume rests on one verb, `create`: it puts a whole file under its final name, or
says that somebody else already has. Nothing is ever seen half-written.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from typing import IO, NamedTuple, Protocol

from optim.errors import InputError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full file system, a used-up quota, and a limit on the size of files."""


class Entry(NamedTuple):
    """A file as a listing shows it."""

    name: str
    num_bytes: int
    version: str
    """Changes whenever the file does: times of change, or an object's ETag."""


class StorageFull(InputError):
    """There is no room for a file; nothing of it is left."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"there is no room left: {reason}",
            source=where,
            field="output",
            mend="Make room there and run the same command again: what is committed is kept",
        )
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[object, ...]:
        return StorageFull, (self.where, self.reason)


class StorageRefused(InputError, OSError):
    """A file system did not write: read-only, no permission, gone, or a fault of the device.

    An OSError too, for whoever can do without what was to be written.
    """

    def __init__(self, where: str, reason: str, number: int | None) -> None:
        InputError.__init__(
            self,
            f"cannot be written: {reason}",
            source=where,
            field="output",
            mend="See to it that every node can write there, and run the same command again: what "
            "is committed is kept",
        )
        self.where, self.reason = where, reason
        self.errno, self.strerror = number, reason

    def __str__(self) -> str:
        return str(self.args[0])  # OSError's own would be the number and the reason

    def __reduce__(self) -> tuple[object, ...]:
        return StorageRefused, (self.where, self.reason, self.errno)


class StorageUnreachable(InputError):
    """An object store did not answer, after all retries."""

    def __init__(self, where: str, reason: str, proxy: str = "") -> None:
        """`proxy` is a sentence about the one that stands between, as `proxy_words` has it."""
        super().__init__(
            f"cannot be reached: {reason}",
            source=where,
            field="output",
            mend="Check the network and the endpoint (AWS_ENDPOINT_URL), and run it again: what "
            "is committed is kept" + (f".{proxy}" if proxy else ""),
        )
        self.where, self.reason, self.proxy = where, reason, proxy

    def __reduce__(self) -> tuple[object, ...]:
        return StorageUnreachable, (self.where, self.reason, self.proxy)


class Store(Protocol):
    """Files by relative name below one root. Names use `/`."""

    url: str

    @property
    def create_is_exclusive(self) -> bool:
        """Whether of several writers of one name exactly one wins, also at the same moment."""
        ...

    @property
    def commit_protocol(self) -> str:
        """In words: how `create` publishes a file here."""
        ...

    def read(self, name: str) -> bytes: ...

    def read_end(self, name: str, num_bytes: int) -> bytes:
        """The last bytes of a file, or all of a shorter one."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Put a new file atomically; False, and nothing changed, where the name is taken.

        Raises StorageFull where there is no room, and StorageRefused or StorageUnreachable where
        nothing can be written.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put a file atomically, over an older one if there is one. Raises as `create` does."""
        ...

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Put a large file: what is written to the stream appears when the context ends well."""
        ...

    def exists(self, name: str) -> bool: ...

    def entries(self, folder: str) -> list[Entry]:
        """All files below `folder`, recursively, sorted; empty where there is no such folder."""
        ...

    def list(self, folder: str) -> list[str]:
        """Their names."""
        ...

    def entry(self, name: str) -> Entry | None:
        """One file as a listing would show it now; None where there is none."""
        ...

    def move(self, name: str, target: str) -> bool:
        """Give a file another name; False where it is gone."""
        ...

    def delete(self, name: str) -> None: ...

    def delete_folder(self, folder: str) -> None:
        """With all that is in it; nothing where there is none."""
        ...

    def sweep(self, older_than_s: float) -> int:
        """Delete what killed writers left; returns how many files."""
        ...

    def path(self, name: str) -> str:
        """The address of a file as DuckDB and pyarrow take it."""
        ...
