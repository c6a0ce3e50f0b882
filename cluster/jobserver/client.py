"""`JobServer`: a cluster's job server over HTTP, with time limits, and one clear error each.

Ray's own client has no time limits, is overruled by RAY_ADDRESS whatever address it is given, and
answers a refused token with several errors of its own.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from optim.errors import InputError
from optim.proxies import proxy_words

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 10.0
STORE_WITHIN_S = 300.0
"""For what moves a working directory or a whole log."""

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_TOKEN_MEND = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or a file "
    "~/.ray/auth_token) here, and both the same where `ray start` runs on the cluster"
)
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray._private.authentication.http_token_authentication",
)


class NoAnswerError(InputError):
    """Nothing came back, this time; asking again may help."""


class UnknownJobError(InputError):
    """The cluster knows no such job."""


class _Client(JobSubmissionClient):
    """Ray's client with time limits."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        is_short = method == "GET" and not endpoint.endswith("/logs")
        limit = ANSWER_WITHIN_S if is_short else STORE_WITHIN_S
        return super()._do_request(method, endpoint, timeout=(CONNECT_WITHIN_S, limit), **options)


class JobServer:
    """A job server that has answered."""

    def __init__(self, address: str) -> None:
        """Connect; InputError where nobody answers, the token is refused, or it is another thing.

        `address` is http:// or https://, as `job_server_address` gives it.
        """
        self.address = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        before = os.environ.get(_ADDRESS_VARIABLE)
        os.environ[_ADDRESS_VARIABLE] = address  # the client prefers it to its own argument
        try:
            with self._answered():
                self._client = _Client(address)
        except (KeyError, TypeError) as error:  # of JSON, and not of the version's
            raise _of_another_kind(address) from error
        finally:
            if before is None:
                del os.environ[_ADDRESS_VARIABLE]
            else:
                os.environ[_ADDRESS_VARIABLE] = before

    def submit(
        self,
        entrypoint: str,
        submission_id: str,
        *,
        package: Path,
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
        num_cpus: float = 0.0,
    ) -> None:
        """Upload a zipped working directory, and start `entrypoint`, a line of shell, in it.

        `environment` is set for the driver and its workers, and stays with the job's description on
        the cluster; `num_cpus` are reserved for the driver.
        """
        with self._answered(submission_id):
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": str(package), "env_vars": dict(environment)},
                metadata=dict(metadata),
                entrypoint_num_cpus=num_cpus or None,
            )

    def info(self, submission_id: str) -> JobDetails:
        """All that is known of a job. Its `runtime_env` may hold secrets: never print it."""
        with self._answered(submission_id):
            return self._client.get_job_info(submission_id)

    def jobs(self) -> list[JobDetails]:
        """Every job that was submitted, the oldest first."""
        with self._answered():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def log(self, submission_id: str) -> str:
        """The whole log until now."""
        with self._answered(submission_id):
            text: str = self._client.get_job_logs(submission_id)
        return text

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The log from its beginning and as it grows; may break off at any time, in many ways."""
        return self._client.tail_job_logs(submission_id)

    def stop(self, submission_id: str, *, within_s: float = 60.0) -> JobDetails:
        """Ask a job to end and wait until it has; InputError where it does not within the time.

        Ray sends SIGTERM, and kills what is left 3 s later.
        """
        deadline = monotonic() + within_s
        while not (job := self.info(submission_id)).status.is_terminal():
            if monotonic() > deadline:
                raise InputError(
                    f"has not stopped within {within_s:.0f} s: {job.status}", source=submission_id
                )
            # Again: a job whose driver is being started is not there to be told yet.
            with self._answered(submission_id):
                self._client.stop_job(submission_id)
            sleep(0.5)
        return job

    @contextmanager
    def _answered(self, submission_id: str | None = None) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise _refused(error, self.address) from error
        except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
            raise NoAnswerError(
                "no job server answers",
                source=self.address,
                mend="Check the address (the dashboard's, by default port 8265 of the head), that "
                "the head runs, and that it listens there (`ray start --dashboard-host`)"
                + _by_proxy(self.address),
            ) from error
        except requests.RequestException as error:
            raise _of_another_kind(self.address) from error
        except (RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise _failed(error, self.address, submission_id) from error


def _of_another_kind(address: str) -> InputError:
    return InputError(
        "what answers is not Ray's job server",
        source=address,
        mend="Give the dashboard's address, by default port 8265 of the head" + _by_proxy(address),
    )


def _by_proxy(address: str) -> str:
    """What answers, or does not, may be a proxy."""
    words = proxy_words(address)
    return f".{words}" if words else ""


def _refused(error: AuthenticationError, address: str) -> InputError:
    """What is wrong with the token, in words that do not repeat it."""
    text, mode = str(error), os.environ.get("RAY_AUTH_MODE")
    if text.startswith("Authentication failed"):
        problem = "the cluster refuses this token (403)"
    elif not text.startswith("Authentication required"):
        problem = "RAY_AUTH_MODE is token, and no token is found here"
    elif mode is None or mode.lower() != "token":
        shown = "not set" if mode is None else f"`{mode}`"
        problem = f"the cluster wants a token (401), and RAY_AUTH_MODE is {shown} here"
    else:
        problem = "the cluster wants a token, and got none (401)"
    return InputError(problem, source=address, mend=_TOKEN_MEND)


def _failed(error: Exception, address: str, submission_id: str | None) -> InputError:
    """An answer other than 200: Ray's client has its status and text in one message."""
    text = str(error)
    if text.startswith("Version check returned 404"):
        return _of_another_kind(address)
    found = re.match(r"Request failed with status code (\d+): (.*)\.$", text, re.DOTALL)
    status, text = (int(found[1]), found[2]) if found else (None, text)
    # Of a traceback, which is what Ray's server answers, the last line says what it was.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if submission_id is not None and f"{submission_id} already exists" in text:
        return InputError(
            "the cluster has had a job of this name",
            source=submission_id,
            mend="Give another --submission-id, or none, and one is made",
        )
    if status == 404 and submission_id is not None:
        return UnknownJobError(
            "the cluster knows no such job; it forgets all of them when its head is replaced",
            source=submission_id,
            mend="`optrial status` lists the jobs of a cluster",
        )
    if status is not None and status >= 500:
        words = proxy_words(address).strip() or None
        return NoAnswerError(
            f"the job server failed ({status}): {reason}", source=address, mend=words
        )
    return InputError(reason, source=address)


def job_server_address(given: str | None, environment: Mapping[str, str] | None = None) -> str:
    """The address as given, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS where it is of the kind.

    InputError where there is none, or it is not http:// or https://.
    """
    variables = os.environ if environment is None else environment
    mend = "Give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS to it"
    address, field = given, "--address"
    if not address:
        address, field = variables.get(_ADDRESS_VARIABLE), _ADDRESS_VARIABLE
    if not address:
        address, field = variables.get("RAY_ADDRESS"), "RAY_ADDRESS"
        if address and not _is_http(address):
            address = None  # a cluster's from inside, which cannot be submitted to
    if not address:
        raise InputError("no job server is named", mend=mend)
    if not _is_http(address):
        raise InputError(f"expected http://HOST:PORT, got `{address}`", field=field, mend=mend)
    return address.rstrip("/")


def _is_http(address: str) -> bool:
    return re.fullmatch(r"https?://[^\s/].*", address) is not None
