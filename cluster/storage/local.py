"""Results in a folder: local disks, network file systems, and what admits no hard links."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cluster.storage.store import NO_ROOM, Entry, StorageFull, StorageRefused

_REFUSED = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
)
"""What file systems say that know no hard links, or cannot sync (folders above all)."""
TEMPORARY = "_tmp"
_STALE_CLAIM_S = 30.0


class LocalStore:
    """A folder on a file system with atomic rename."""

    create_is_exclusive = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.url = str(root)
        self._has_links = True

    @property
    def commit_protocol(self) -> str:
        if self._has_links:
            return "hard link, the first writer wins"
        return "claim and rename, the first writer wins (the file system refuses hard links)"

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def read_end(self, name: str, num_bytes: int) -> bytes:
        with (self.root / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            return file.read()

    def create(self, name: str, data: bytes) -> bool:
        target = self.root / name
        with self._clearly():
            temporary = self._write_temporary(data)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                created = self._publish(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            if created:
                _sync_folder(target.parent)
        return created

    def replace(self, name: str, data: bytes) -> None:
        target = self.root / name
        with self._clearly():
            temporary = self._write_temporary(data)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        target = self.root / name
        with self._room():
            with self._clearly():
                temporary = self._temporary()
                opened = temporary.open("xb")
            try:
                with opened as file:
                    # Whoever writes reads other files meanwhile: their errors are not this one's.
                    yield file
                    with self._clearly():
                        file.flush()
                        _sync(file.fileno())
                with self._clearly():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def entries(self, folder: str) -> list[Entry]:
        found: list[Entry] = []
        folders = [folder.strip("/")]
        while folders:
            inner = folders.pop()
            try:
                with os.scandir(self.root / inner) as items:
                    for item in items:
                        name = f"{inner}/{item.name}" if inner else item.name
                        if item.is_dir(follow_symlinks=False):
                            folders.append(name)
                            continue
                        with suppress(FileNotFoundError):  # gone since, as temporaries are
                            found.append(_entry(name, item.stat()))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return sorted(found)

    def list(self, folder: str) -> list[str]:
        return [entry.name for entry in self.entries(folder)]

    def entry(self, name: str) -> Entry | None:
        try:
            return _entry(name, (self.root / name).stat())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def move(self, name: str, target: str) -> bool:
        place = self.root / target
        with self._clearly():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(self.root / name, place)
            except FileNotFoundError:
                return False
        return True

    def delete(self, name: str) -> None:
        with self._clearly():
            (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def sweep(self, older_than_s: float) -> int:
        """Its own clock is not asked: of a network file system's times only that system knows."""
        folder, swept = self.root / TEMPORARY, 0
        if not folder.is_dir():
            return 0
        try:
            mark = self._temporary()
            mark.touch()
            now = mark.stat().st_mtime
            mark.unlink()
        except OSError:
            return 0  # what cannot be written to cannot be swept
        for item in folder.iterdir():
            with suppress(OSError):
                if item.is_file() and now - item.stat().st_mtime > older_than_s:
                    item.unlink()
                    swept += 1
        return swept

    def path(self, name: str) -> str:
        return str(self.root / name)

    def _temporary(self) -> Path:
        # Beside the tree, not in it: readers glob the tree (research: suffixes and dot names are
        # each seen by some reader).
        folder = self.root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def _write_temporary(self, data: bytes) -> Path:
        path = self._temporary()
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                _sync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _publish(self, temporary: Path, target: Path) -> bool:
        if self._has_links:
            try:
                os.link(temporary, target)
                return True
            except OSError as error:
                # The answer of a network file system may be about a repetition of a request that
                # had succeeded: what counts is whether both names are one file.
                if _is_same(temporary, target):
                    return True
                if isinstance(error, FileExistsError):
                    return False
                if error.errno not in _REFUSED:
                    raise
                self._has_links = False
        return self._publish_by_claim(temporary, target)

    def _publish_by_claim(self, temporary: Path, target: Path) -> bool:
        """First-wins without hard links: whoever makes the claim file may rename.

        A claim is held for the time of two system calls. One that stays for `_STALE_CLAIM_S` is a
        dead writer's, and is taken over. Only a writer that is suspended for that long between
        these calls and then goes on could replace a file, by another whole one.
        """
        digest = hashlib.sha256(os.fspath(target).encode()).hexdigest()[:32]
        claim = self.root / TEMPORARY / f"claim-{digest}"
        seen: tuple[int, int] | None = None
        since = time.monotonic()
        while True:
            if target.exists():
                return False
            try:
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                held = _identity(claim)
                if held != seen:
                    seen, since = held, time.monotonic()
                elif time.monotonic() - since > _STALE_CLAIM_S:
                    # Renamed first, so that of several that take it over one does.
                    aside = self._temporary()
                    with suppress(FileNotFoundError):
                        os.rename(claim, aside)
                        aside.unlink(missing_ok=True)
                time.sleep(0.02)
        mine = _identity(claim)
        try:
            if target.exists() or _identity(claim) != mine:
                return False
            os.rename(temporary, target)
            return True
        finally:
            if _identity(claim) == mine:
                claim.unlink(missing_ok=True)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageFull(self.url, error.strerror or str(error)) from error
            raise

    @contextmanager
    def _clearly(self) -> Iterator[None]:
        """An error that a person can mend, and that is of the results and not of one cell."""
        with self._room():
            try:
                yield
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise
                reason = error.strerror or str(error)
                raise StorageRefused(self.url, reason, error.errno) from error


def _entry(name: str, found: os.stat_result) -> Entry:
    return Entry(name, found.st_size, f"{found.st_mtime_ns:x}-{found.st_ctime_ns:x}")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_nlink > 1 and os.path.samefile(one, other)
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Nothing that a program could do there makes data durable; that is the system's own word.
        if error.errno not in _REFUSED:
            raise


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some file systems do not open folders; the file itself is synced
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
