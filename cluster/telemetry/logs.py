"""Structured logs: one JSON object per line, with the ids of what each event is about.

The driver writes them to `_logs/driver-<utc>-<host>-<pid>.jsonl` in the results, workers to their
standard error, which Ray keeps. Loggers are `optrial.driver`, `optrial.scheduler` and
`optrial.worker`; what an event is about goes into `extra`:

    logging.getLogger("optrial.scheduler").info("block leased", extra={"block": 7, "worker": "w"})

Secrets are struck out of every line (`cluster.telemetry.redaction`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from cluster.storage.open_store import LocalStore, Store
from cluster.telemetry.redaction import Redaction

ROOT = "optrial"
LOGS = "_logs"
FIELDS = (
    "run_id", "cell", "block", "configuration", "dataset", "shard", "seed", "worker", "node",
    "attempt",
)  # fmt: skip
"""What events are about, under these names wherever it is known; further ones may be added."""
FLUSH_S = 10.0
_CHUNK_BYTES = 256 << 10
_HELD_LINES = 1000


def run_logger(name: str) -> logging.Logger:
    """The logger of a part of the system: `driver`, `scheduler`, `worker`."""
    return logging.getLogger(f"{ROOT}.{name}")


class _Lines(JsonFormatter):
    """An event as one line of JSON: time (UTC), level, logger, event, and what it is about."""

    def __init__(self, common: dict[str, Any]) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "message": "event"},
            json_ensure_ascii=False,
        )
        self.common = common
        self.redaction = Redaction()

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = moment.isoformat(timespec="milliseconds")
        super().add_fields(log_data, record, message_dict)
        for name, value in self.common.items():
            log_data.setdefault(name, value)

    def format(self, record: logging.LogRecord) -> str:
        return self.redaction(super().format(record))


class _StoreHandler(logging.Handler):
    """Lines into a results store: a local file as they come, an object store in whole chunks.

    Nothing is written before `begin`, so that a run that is refused leaves nothing behind.
    """

    def __init__(self, store: Store, stem: str) -> None:
        super().__init__(logging.INFO)
        self.store, self.stem = store, stem
        self._held: list[str] = []
        self._begun = False
        self._num_chunks = 0
        self._flushed = time.monotonic()
        self._has_failed = False
        self._ended = threading.Event()

    def begin(self) -> None:
        """Write what has been held back, and what comes from now on."""
        with self._lock_of():
            if self._begun:
                return
            self._begun = True
            self._write()
        if not isinstance(self.store, LocalStore):
            threading.Thread(target=self._flush_on, name="run-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._held.append(self.format(record) + "\n")
            if not self._begun:
                del self._held[:-_HELD_LINES]
            elif isinstance(self.store, LocalStore) or self._is_due():
                self._write()
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        # A log that cannot be written must not end the run, nor say so with every line.
        if not self._has_failed:
            self._has_failed = True
            print(f"optrial: {LOGS}/{self.stem}.jsonl cannot be written", file=sys.stderr)
        self._held.clear()

    def close(self) -> None:
        self._ended.set()
        with self._lock_of():
            if self._begun:
                try:
                    self._write()
                except Exception:
                    self._held.clear()
        super().close()

    def _lock_of(self) -> Any:
        return self.lock if self.lock is not None else threading.RLock()

    def _is_due(self) -> bool:
        is_large = sum(map(len, self._held)) >= _CHUNK_BYTES
        return is_large or time.monotonic() - self._flushed >= FLUSH_S

    def _write(self) -> None:
        if not self._held:
            return
        data = "".join(self._held).encode()
        if isinstance(self.store, LocalStore):
            path = self.store.root / LOGS / f"{self.stem}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
        else:
            # Objects cannot be appended to.
            self.store.replace(f"{LOGS}/{self.stem}-{self._num_chunks:04}.jsonl", data)
            self._num_chunks += 1
        self._held.clear()
        self._flushed = time.monotonic()

    def _flush_on(self) -> None:
        while not self._ended.wait(FLUSH_S):
            with self._lock_of():
                try:
                    self._write()
                except Exception:
                    self._held.clear()


@contextmanager
def attach_run_log(store: Store, run_id: str, *, held: bool = False) -> Iterator[_StoreHandler]:
    """Keep what the driver logs with the results of a run, from INFO up.

    Where `held`, nothing is written before `begin` is called on what this gives; what was logged
    until then comes first.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    handler = _StoreHandler(store, f"driver-{moment}-{host}-{os.getpid()}")
    handler.setFormatter(_Lines({"run_id": run_id, "node": host}))
    logger = logging.getLogger(ROOT)
    level = logger.level
    logger.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logger.addHandler(handler)
    if not held:
        handler.begin()
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def attach_worker_log(run_id: str, worker: str) -> None:
    """Let this process's events go to standard error as JSON; called again, for another worker."""
    logger = logging.getLogger(ROOT)
    for old in [h for h in logger.handlers if isinstance(h, _WorkerHandler)]:
        logger.removeHandler(old)
    handler = _WorkerHandler(sys.stderr)
    handler.setFormatter(_Lines({"run_id": run_id, "worker": worker, "node": socket.gethostname()}))
    handler.setLevel(logging.INFO)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    # Ray gives its workers' root logger a handler, which would print everything a second time.
    logger.propagate = False


class _WorkerHandler(logging.StreamHandler[Any]):
    """The one that `attach_worker_log` adds."""
