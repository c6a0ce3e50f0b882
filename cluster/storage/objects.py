"""Results in a bucket, by fsspec (`s3://`, `gs://`, `memory://` …); a PUT is atomic there."""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import IO, Any

from cluster.storage.store import NO_ROOM, Entry, StorageFull, StorageUnreachable
from optim.errors import InputError
from optim.proxies import proxy_words

_WRITER = "optrial-writer"
_PROBES = "_tmp/probe-"
_S3_RETRIES = {"mode": "standard", "max_attempts": 6}
"""Of throttling, 5xx answers and broken connections, by botocore: exponential backoff with jitter,
together at most half a minute."""


class ObjectStore:
    """A bucket, or a folder of one.

    `create` asks for a conditional PUT (`If-None-Match: *`). Whether the server heeds it is found
    out once, before the first part is committed. Where it does not, `create` looks first and then
    overwrites: two writers of one key write equal deterministic columns, so the outcome stays
    correct, and only whose timings are kept is open.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # slow to import, and only object stores need it

        self.url = url.rstrip("/")
        self.protocol = url.split("://", 1)[0]
        if "@" in url.split("://", 1)[1].split("/", 1)[0]:
            raise InputError(
                "credentials do not belong into an address, which is written down with the results",
                field="output",
                mend="Give them by the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        if any(sign in url for sign in "*?[]{}"):
            raise InputError(
                "an address with *, ?, [, ], { or } is a pattern to what reads it",
                source=url,
                field="output",
                mend="Choose one without them",
            )
        try:
            self.filesystem, self.root = fsspec.url_to_fs(self.url, **_options(self.protocol))
            if self._is_s3:
                self.filesystem.retries = 1  # botocore's own, not both multiplied
        except (ImportError, ValueError) as error:
            raise InputError(
                f"cannot open this kind of address: {error}",
                source=url,
                field="output",
                mend="Install its fsspec package (for S3: pip install 'optrial[s3]')",
            ) from error

    @cached_property
    def create_is_exclusive(self) -> bool:
        """Found out by creating one probe twice. Raises InputError where nothing may be written."""
        name = f"{_PROBES}{uuid.uuid4().hex}"
        with self._clearly(name):
            try:
                self._put_new(name, b"1")
                try:
                    self._put_new(name, b"2")
                except FileExistsError:
                    return True
                return False
            except (TypeError, NotImplementedError):
                return False
            finally:
                if self.filesystem.exists(self._full(name)):
                    self.filesystem.rm_file(self._full(name))

    @property
    def commit_protocol(self) -> str:
        if self.create_is_exclusive:
            return "conditional PUT (If-None-Match), the first writer wins"
        return (
            "PUT over what is there, the last of several writers wins (the store does not heed "
            "If-None-Match); their deterministic columns are equal"
        )

    def read(self, name: str) -> bytes:
        with self._clearly(name):
            data: bytes = self.filesystem.cat_file(self._full(name))
            return data

    def read_end(self, name: str, num_bytes: int) -> bytes:
        with self._clearly(name):
            size = int(self.filesystem.size(self._full(name)) or 0)
            start = max(0, size - num_bytes)
            data: bytes = self.filesystem.cat_file(self._full(name), start=start) if size else b""
            return data

    def create(self, name: str, data: bytes) -> bool:
        # An existence check first is not a lock; it spares the upload in the common case.
        if self.exists(name):
            return False
        with self._clearly(name):
            if not self.create_is_exclusive:
                self._put(name, data)
                return True
            try:
                self._put_new(name, data)
            except FileExistsError:
                return False
            return True

    def replace(self, name: str, data: bytes) -> None:
        with self._clearly(name):
            self._put(name, data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        # By way of a local file: closing a remote one publishes what there is of it.
        with self._clearly(name), tempfile.NamedTemporaryFile(prefix="optrial-") as file:
            yield file.file
            file.flush()
            self.filesystem.put_file(file.name, self._full(name))

    def exists(self, name: str) -> bool:
        with self._clearly(name):
            self.filesystem.invalidate_cache()
            return bool(self.filesystem.exists(self._full(name)))

    def entries(self, folder: str) -> list[Entry]:
        with self._clearly(folder):
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.find(self._full(folder), detail=True)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []
        prefix = len(str(self.root).rstrip("/")) + 1
        listed = [_entry(path[prefix:], about) for path, about in found.items()]
        return sorted(entry for entry in listed if entry.name)

    def list(self, folder: str) -> list[str]:
        return [entry.name for entry in self.entries(folder)]

    def entry(self, name: str) -> Entry | None:
        with self._clearly(name):
            self.filesystem.invalidate_cache()
            try:
                return _entry(name, self.filesystem.info(self._full(name)))
            except FileNotFoundError:
                return None

    def move(self, name: str, target: str) -> bool:
        with self._clearly(name):
            try:
                self.filesystem.copy(self._full(name), self._full(target))
            except FileNotFoundError:
                return False
            self.filesystem.rm_file(self._full(name))
            return True

    def delete(self, name: str) -> None:
        if self.exists(name):
            with self._clearly(name):
                self.filesystem.rm_file(self._full(name))

    def delete_folder(self, folder: str) -> None:
        for entry in self.entries(folder):
            self.delete(entry.name)

    def sweep(self, older_than_s: float) -> int:
        """Nothing: what an interrupted PUT left, the bucket's own rules for uploads clean up."""
        return 0

    def path(self, name: str) -> str:
        return f"{self.protocol}://{self._full(name).lstrip('/')}"

    @property
    def _is_s3(self) -> bool:
        return self.protocol in ("s3", "s3a")

    def _full(self, name: str) -> str:
        return f"{str(self.root).rstrip('/')}/{name}".rstrip("/")

    def _put(self, name: str, data: bytes, **options: Any) -> None:
        self.filesystem.pipe_file(self._full(name), data, **options)

    def _put_new(self, name: str, data: bytes) -> None:
        """A conditional PUT; FileExistsError where another has won."""
        if not self._is_s3:
            self._put(name, data, mode="create")
            return
        writer = uuid.uuid4().hex
        try:
            self._put(name, data, mode="create", Metadata={_WRITER: writer})
        except OSError as error:
            if not isinstance(error, FileExistsError) and _code(error) not in (
                "PreconditionFailed",
                "ConditionalRequestConflict",
            ):
                raise
            # A PUT whose answer was lost is repeated, and meets itself.
            if self.filesystem.metadata(self._full(name), refresh=True).get(_WRITER) == writer:
                return
            raise FileExistsError(name) from error

    @contextmanager
    def _clearly(self, name: str) -> Iterator[None]:
        """Failures that a person can mend, as InputError."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            clear = self._clear(error)
            if clear is None:
                raise
            raise clear from error

    def _clear(self, error: Exception) -> InputError | None:
        code = _code(error)
        if code == "NoSuchBucket":
            return InputError(
                "there is no such bucket",
                source=self.url,
                field="output",
                mend="Make it first, or correct its name",
            )
        if isinstance(error, PermissionError):
            return InputError(
                f"access is denied: {_text(error)}",
                source=self.url,
                field="output",
                mend="The credentials need the rights to list, get, put and delete objects there",
            )
        kind = type(error).__name__
        if kind in _NO_CREDENTIALS:
            return InputError(
                f"there are no usable credentials: {_text(error)}",
                source=self.url,
                field="output",
                mend="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run "
                "where the machine has a role",
            )
        if (isinstance(error, OSError) and error.errno in NO_ROOM) or code in _FULL:
            return StorageFull(self.url, code or _text(error))
        # By name: botocore is only there where S3 is used.
        names = {each.__name__ for each in type(error).__mro__}
        busy = isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EREMOTEIO)
        is_network = isinstance(error, (ConnectionError, TimeoutError)) or busy
        if is_network or names & _UNREACHABLE:
            proxy = proxy_words(_endpoint()) if self._is_s3 else ""
            return StorageUnreachable(self.url, _text(error), proxy)
        return None


_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "UnauthorizedSSOTokenError", "NoAuthTokenError",
}  # fmt: skip
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity"}
_UNREACHABLE = {"HTTPClientError", "ConnectionError", "FSTimeoutError", "ClientError"}


def _endpoint() -> str:
    """The address that is asked for an S3 bucket, as far as the environment says."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    given = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return given or "https://s3.amazonaws.com"


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in ("s3", "s3a") or {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        return {}
    return {"config_kwargs": {"retries": dict(_S3_RETRIES)}}


def _entry(name: str, about: dict[str, Any]) -> Entry:
    marks = (about.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "created"))
    mark = next((mark for mark in marks if mark is not None), "")
    version = mark.timestamp() if isinstance(mark, datetime) else mark
    return Entry(name, int(about.get("size") or 0), str(version).strip('"'))


def _code(error: BaseException | None) -> str:
    """The store's own name for what went wrong, of an error or its causes."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict) and answer.get("Error"):
            return str(answer["Error"].get("Code", ""))
        error = error.__cause__
    return ""


def _text(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
