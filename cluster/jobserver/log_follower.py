"""Following a job's log until the job has ended, over streams that break.

A stream ends now and then although its job goes on, stays silent although there is more, or stays
open although the job has ended. So the job's status alone says when it is over, a stream that ended
or fell silent is opened again, and what it repeats is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Protocol

from ray.job_submission import JobDetails, JobStatus

from cluster.jobserver.client import NoAnswerError

_ENDED = object()


class Jobs(Protocol):
    """What of a job server is needed here."""

    def info(self, submission_id: str) -> JobDetails: ...

    def log(self, submission_id: str) -> str: ...

    def tail(self, submission_id: str) -> AsyncIterator[str]: ...


@dataclass(frozen=True)
class Patience:
    """How long to wait for what."""

    poll_s: float = 2.0
    """Between two looks at the status."""
    silence_s: float = 60.0
    """Without a line until the stream is opened again."""
    close_s: float = 5.0
    """For the rest of the stream after the job has ended."""
    retry_s: float = 1.0
    """Before a stream that broke is opened again."""
    pending_s: float = 10.0
    """Before a job that has not started is worth a note."""
    lost_s: float = 300.0
    """Without any answer until it is given up."""


def follow(
    jobs: Jobs,
    submission_id: str,
    write: Callable[[str], None],
    note: Callable[[str], None] = lambda text: None,
    patience: Patience | None = None,
) -> JobDetails:
    """Write all of a job's log, each character once, until it has ended; what it came to.

    `note` is told what is not part of the log. Raises NoAnswerError where nothing answers for
    `patience.lost_s`, and UnknownJobError where the job is not known (any more).
    """
    return _Follower(jobs, submission_id, write, note, patience or Patience()).run()


class _Follower:
    def __init__(
        self,
        jobs: Jobs,
        submission_id: str,
        write: Callable[[str], None],
        note: Callable[[str], None],
        patience: Patience,
    ) -> None:
        self.jobs, self.submission_id = jobs, submission_id
        self.write, self.note, self.patience = write, note, patience
        self.num_written = 0
        """Characters. Every stream begins at the beginning of the log."""
        self.started = self.answered = monotonic()
        self.is_lost = self.was_told = False

    def run(self) -> JobDetails:
        while True:
            with _stream(self.jobs.tail(self.submission_id)) as chunks:
                job = self._read(chunks)
            if job is not None and job.status.is_terminal():
                break
            sleep(self.patience.retry_s)
        self._catch_up()
        return job

    def _read(self, chunks: queue.Queue[object]) -> JobDetails | None:
        """Write what a stream brings until it, or the job, has ended; the job as last seen."""
        num_read, heard, looked = 0, monotonic(), -self.patience.poll_s
        deadline: float | None = None
        job: JobDetails | None = None
        while deadline is None or monotonic() < deadline:
            if deadline is None and monotonic() - looked >= self.patience.poll_s:
                job, looked = self._look(), monotonic()
                if job is not None and job.status.is_terminal():
                    deadline = monotonic() + self.patience.close_s
            try:
                chunk = chunks.get(timeout=min(0.2, self.patience.poll_s))
            except queue.Empty:
                if monotonic() - heard > self.patience.silence_s:
                    break
                continue
            if not isinstance(chunk, str):
                return self._look() if deadline is None else job
            heard = monotonic()
            self._write_new(chunk, num_read)
            num_read += len(chunk)
        return job

    def _write_new(self, text: str, start: int) -> None:
        """Write what of a text, which begins at `start` of the log, was not written yet."""
        new = text[max(0, self.num_written - start) :]
        if new:
            self.write(new)
            self.num_written += len(new)

    def _look(self) -> JobDetails | None:
        """The job as it is now; None where nothing answers, for a while."""
        try:
            job = self.jobs.info(self.submission_id)
        except NoAnswerError:
            if monotonic() - self.answered > self.patience.lost_s:
                raise
            if not self.is_lost:
                self.is_lost = True
                self.note("the cluster does not answer; trying again")
            return None
        if self.is_lost:
            self.is_lost = False
            self.note("the cluster answers again")
        self.answered = monotonic()
        is_late = monotonic() - self.started > self.patience.pending_s
        if job.status == JobStatus.PENDING and is_late and not self.was_told:
            self.was_told = True
            self.note(job.message or "the job has not started yet")
        return job

    def _catch_up(self) -> None:
        """The rest of the log of a job that has ended, whatever its streams left out."""
        for attempt in range(3):
            try:
                text = self.jobs.log(self.submission_id)
            except NoAnswerError:
                if attempt == 2:
                    self.note("the end of the log could not be fetched")
                sleep(self.patience.retry_s)
                continue
            self._write_new(text, 0)
            return


@contextmanager
def _stream(tail: AsyncIterator[str]) -> Iterator[queue.Queue[object]]:
    """The chunks of a stream, read by a thread, so that waiting for them can be interrupted.

    Whatever ends it, `_ENDED` is the last.
    """
    chunks: queue.Queue[object] = queue.Queue()
    loop = asyncio.new_event_loop()

    async def pump() -> None:
        async for chunk in tail:
            chunks.put(chunk)

    task = loop.create_task(pump())

    def run() -> None:
        # It ends in as many ways as networks fail, and none of them says anything of the job.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            loop.run_until_complete(task)
        with contextlib.suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        chunks.put(_ENDED)

    thread = threading.Thread(target=run, name="job log", daemon=True)
    thread.start()
    try:
        yield chunks
    finally:
        with contextlib.suppress(RuntimeError):  # closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=2.0)
