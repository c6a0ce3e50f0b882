"""Following a job's log over streams that break: all of it, and each character once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.jobserver.client import NoAnswerError, UnknownJobError
from cluster.jobserver.log_follower import Patience, follow

QUICK = Patience(poll_s=0.01, silence_s=0.2, close_s=0.1, retry_s=0.005, pending_s=0.05, lost_s=0.3)
LOG = "".join(f"line {i}\n" for i in range(9)) + "the end, without a new line"


def details(status: JobStatus, message: str | None = None) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, status=status, entrypoint="x", message=message)


@dataclass
class Job:
    """A job that ends when its last stream has begun; each stream is what a test says it is."""

    streams: list[Callable[[], AsyncIterator[str]]]
    text: str = LOG
    status: JobStatus = JobStatus.SUCCEEDED
    ends_with_last_stream: bool = True
    opened: int = 0
    looks: int = 0
    faults: dict[int, Exception] = field(default_factory=dict)
    """Of the n-th look at the status."""

    def info(self, submission_id: str) -> JobDetails:
        self.looks += 1
        if (fault := self.faults.get(self.looks)) is not None:
            raise fault
        is_over = self.ends_with_last_stream and self.opened >= len(self.streams)
        return details(self.status if is_over else JobStatus.RUNNING)

    def log(self, submission_id: str) -> str:
        return self.text

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        stream = self.streams[min(self.opened, len(self.streams) - 1)]
        self.opened += 1
        return stream()


def sends(
    *chunks: str, error: Exception | None = None, hangs: bool = False
) -> Callable[[], AsyncIterator[str]]:
    async def stream() -> AsyncIterator[str]:
        for chunk in chunks:
            yield chunk
        if hangs:
            await asyncio.sleep(3600)
        if error is not None:
            raise error

    return stream


def followed(job: Job, patience: Patience = QUICK) -> tuple[str, list[str], JobDetails]:
    written: list[str] = []
    notes: list[str] = []
    ended = follow(job, "id", written.append, notes.append, patience)
    return "".join(written), notes, ended


def test_a_stream_that_ends_while_the_job_runs_is_opened_again() -> None:
    job = Job([sends(LOG[:20]), sends(LOG[:40]), sends(LOG)])
    assert followed(job)[0] == LOG
    assert job.opened == 3


def test_a_stream_that_breaks_within_a_line_repeats_nothing() -> None:
    job = Job(
        [
            sends("line 0\nli", error=RuntimeError("closed with code 1006")),
            sends(error=OSError("no route")),
            sends("line", " 0\nline 1\nl", error=ValueError("a message is too long")),
            sends(LOG),
        ]
    )
    assert followed(job)[0] == LOG


def test_a_stream_that_stays_open_after_the_job_is_left() -> None:
    job = Job([sends(LOG[:30], hangs=True)], status=JobStatus.FAILED)
    text, _, ended = followed(job)
    assert text == LOG, "what the stream left out is fetched"
    assert ended.status == JobStatus.FAILED


def test_a_stream_that_falls_silent_is_opened_again() -> None:
    job = Job([sends(LOG[:30], hangs=True), sends(LOG)])
    assert followed(job)[0] == LOG
    assert job.opened == 2


def test_no_answer_for_a_while_is_told_once_each_way() -> None:
    gone = NoAnswerError("no job server answers")
    job = Job([sends(LOG[:30]), sends(LOG)], faults={2: gone, 3: gone})
    text, notes, _ = followed(job)
    assert text == LOG
    assert notes == ["the cluster does not answer; trying again", "the cluster answers again"]


def test_no_answer_for_long_is_given_up() -> None:
    gone = NoAnswerError("no job server answers")
    job = Job([sends(LOG[:30])], faults=dict.fromkeys(range(2, 10000), gone))
    job.ends_with_last_stream = False
    with pytest.raises(NoAnswerError):
        followed(job)


def test_a_job_that_is_forgotten_is_an_error() -> None:
    job = Job([sends(LOG[:30])], faults={1: UnknownJobError("the cluster knows no such job")})
    with pytest.raises(UnknownJobError):
        followed(job)


def test_a_job_that_waits_says_why() -> None:
    class Waiting(Job):
        def info(self, submission_id: str) -> JobDetails:
            self.looks += 1
            if self.looks > 20:
                return details(JobStatus.SUCCEEDED)
            return details(JobStatus.PENDING, "It may be waiting for resources")

    text, notes, _ = followed(Waiting([sends(hangs=True)]))
    assert text == LOG
    assert notes == ["It may be waiting for resources"]


def test_an_interrupt_leaves_at_once() -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    job = Job([sends(LOG, hangs=True)], ends_with_last_stream=False)
    with pytest.raises(KeyboardInterrupt):
        follow(job, "id", interrupted, patience=QUICK)


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(alphabet="ab\n\u00e9\U0001f600", max_size=60),
    cuts=st.lists(st.lists(st.integers(0, 60), max_size=5), max_size=4),
)
def test_whatever_breaks_where_all_is_written_once(text: str, cuts: list[list[int]]) -> None:
    """Every stream is a beginning of the log in chunks of any size, and breaks off."""
    streams = []
    for each in cuts:
        ends = sorted({min(cut, len(text)) for cut in each})
        chunks = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        streams.append(sends(*chunks, error=ConnectionResetError()))
    assert followed(Job([*streams, sends(text)], text=text))[0] == text
