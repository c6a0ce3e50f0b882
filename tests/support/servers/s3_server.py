"""A real S3 server on loopback, in a process of its own: moto's, behind a switch for failures.

moto answers many requests at once and looks before it puts, which S3 does atomically: so requests
are let through one by one here. `PUT /_switch` with JSON sets what goes wrong from then on:

- `fail`: how many of the next requests are answered by `status` and `code`, or by `reset`
- `lose`: how many of the next PUTs are done, but answered by 500
- `heeds_conditions`: whether `If-None-Match` reaches the server
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
    "<Message>made to fail</Message><RequestId>1</RequestId></Error>"
)


class Switch:
    """WSGI: what goes wrong, around an application."""

    def __init__(self, app: Any) -> None:
        self.app, self.lock = app, Lock()
        self.state: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        with self.lock:
            if environ["PATH_INFO"] == "/_switch":
                return self._set(environ, start)
            method = environ["REQUEST_METHOD"]
            self.counts[method] = self.counts.get(method, 0) + 1
            if environ.get("HTTP_IF_NONE_MATCH") == "*":
                self.counts["conditional"] = self.counts.get("conditional", 0) + 1
                if not self.state.get("heeds_conditions", True):
                    del environ["HTTP_IF_NONE_MATCH"]
            if self.state.get("fail", 0) > 0:
                self.state["fail"] -= 1
                return self._fail(environ, start)
            if method == "PUT" and self.state.get("lose", 0) > 0:
                self.state["lose"] -= 1
                list(self.app(environ, lambda *_: None))
                return _answer(start, "500 Internal Server Error", "InternalError")
            return list(self.app(environ, start))

    def _set(self, environ: dict[str, Any], start: Any) -> list[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        if environ["REQUEST_METHOD"] == "PUT":
            self.state = json.loads(environ["wsgi.input"].read(size))
            self.counts = {}
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.counts).encode()]

    def _fail(self, environ: dict[str, Any], start: Any) -> list[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(size)
        if self.state.get("reset"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        return _answer(start, self.state["status"], self.state["code"], has_body=not is_head)


def _answer(start: Any, status: str, code: str, has_body: bool = True) -> list[bytes]:
    body = ERROR.format(code=code).encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body] if has_body else []


class S3:
    """A running server, as tests see it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def switch(self, **state: Any) -> None:
        self._ask("PUT", json.dumps(state).encode())

    def counts(self) -> dict[str, int]:
        """Requests since the last `switch`, by method; conditional ones as `conditional`."""
        return self._ask("GET", None)

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"))

    def _ask(self, method: str, data: bytes | None) -> dict[str, int]:
        request = urllib.request.Request(f"{self.endpoint}/_switch", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, int] = json.loads(answer.read())
            return found


@contextmanager
def running(log: Path) -> Iterator[S3]:
    """A server on a free port, ended with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            stdout=file,
            stderr=file,
            env={key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
        )
        try:
            server = S3(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 120
            while True:
                try:
                    server.switch()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, "the S3 server does not answer"
                    time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def main() -> None:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import run_simple

    port = int(sys.argv[1])
    os.environ["MOTO_PORT"] = str(port)
    app = Switch(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
