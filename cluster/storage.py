"""Where results lie: a local folder or an object store, behind six verbs.

Correctness of resume rests on one of them, `create`: it puts a whole file under its final name, or
says that somebody else already has. Nothing is ever seen half-written.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from optim.errors import InputError


class Store(Protocol):
    """Files by relative name below one root. Names use `/`."""

    url: str

    def read(self, name: str) -> bytes: ...

    def create(self, name: str, data: bytes) -> bool:
        """Put a new file atomically; False, and nothing changed, where the name is taken."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put a file atomically, over an older one if there is one."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, folder: str) -> list[str]:
        """All files below `folder`, recursively, sorted; empty where there is no such folder."""
        ...

    def delete(self, name: str) -> None: ...

    def path(self, name: str) -> str:
        """The address of a file as DuckDB and pyarrow take it."""
        ...


class LocalStore:
    """A folder on a file system with atomic rename and hard links (local disks, NFS)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.url = str(root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def create(self, name: str, data: bytes) -> bool:
        temporary = self._write_temporary(data)
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        temporary = self._write_temporary(data)
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def list(self, folder: str) -> list[str]:
        found = []
        for parent, _, files in os.walk(self.root / folder):
            base = Path(parent).relative_to(self.root)
            found += [(base / file).as_posix() for file in files]
        return sorted(found)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def path(self, name: str) -> str:
        return str(self.root / name)

    def _write_temporary(self, data: bytes) -> Path:
        # Beside the tree, not in it: readers glob the tree (research: suffixes and dot names are
        # each seen by some reader).
        folder = self.root / "_tmp"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        with path.open("xb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ObjectStore:
    """A bucket behind fsspec (`s3://`, `gs://`, `memory://` …); a PUT is atomic there.

    `create` asks for a conditional PUT (`If-None-Match: *`, in fsspec `mode="create"`). Where the
    file system knows none, it looks first and then overwrites: two writers of one key write equal
    deterministic columns, so the outcome stays correct, and only a duplicate's timings may win.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # slow to import, and only object stores need it

        self.url = url.rstrip("/")
        try:
            self.filesystem, self.root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"cannot open this kind of address: {error}",
                source=url,
                field="output",
                mend="Install its fsspec package (for S3: pip install 'optrial[s3]')",
            ) from error
        self.protocol = url.split("://", 1)[0]

    def read(self, name: str) -> bytes:
        data: bytes = self.filesystem.cat_file(self._full(name))
        return data

    def create(self, name: str, data: bytes) -> bool:
        # An existence check first is not a lock; it spares the upload in the common case.
        if self.exists(name):
            return False
        try:
            self._pipe(name, data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError):
            # This filesystem cannot create conditionally. A part's name decides its deterministic
            # columns, so that whoever writes last replaces one sound execution by another.
            self._pipe(name, data)
        return True

    def replace(self, name: str, data: bytes) -> None:
        self._pipe(name, data)

    def exists(self, name: str) -> bool:
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.exists(self._full(name)))

    def list(self, folder: str) -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.find(self._full(folder))
        except FileNotFoundError:
            return []
        prefix = len(str(self.root).rstrip("/")) + 1
        return sorted(path[prefix:] for path in found)

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.rm_file(self._full(name))

    def path(self, name: str) -> str:
        return f"{self.protocol}://{self._full(name).lstrip('/')}"

    def _full(self, name: str) -> str:
        return f"{str(self.root).rstrip('/')}/{name}"

    def _pipe(self, name: str, data: bytes, **options: Any) -> None:
        self.filesystem.pipe_file(self._full(name), data, **options)


def open_store(url: str | os.PathLike[str]) -> LocalStore | ObjectStore:
    """The store for a folder or a `scheme://` address."""
    text = os.fspath(url)
    if text.startswith("file://"):
        return LocalStore(text.removeprefix("file://"))
    return ObjectStore(text) if "://" in text else LocalStore(text)
