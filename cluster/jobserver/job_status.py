"""What a job of a cluster came to, in words and as an exit code."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports Ray, which takes its time
    from ray.job_submission import JobDetails


def exit_code(job: JobDetails) -> int:
    """Of a job that has ended: its driver's where Ray knows it, as a shell gives it, else 1."""
    if job.status.value == "SUCCEEDED":
        return 0
    code = job.driver_exit_code
    if not code:
        return 1
    return 128 - code if code < 0 else code


def outcome(job: JobDetails) -> str:
    """Its status, and of a failure what is known of the reason."""
    if job.status.value != "FAILED":
        return job.status.value
    if job.driver_exit_code is not None:  # the reason stands in its log
        return f"FAILED, exit code {job.driver_exit_code}"
    return f"FAILED before it ran: {job.message or job.error_type}"


def moment(milliseconds: int | None) -> str:
    """Milliseconds since the epoch, by this machine's clock and zone; empty for None."""
    if milliseconds is None:
        return ""
    found = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
    return found.strftime("%Y-%m-%d %H:%M:%S")


def duration(job: JobDetails) -> str:
    """From its start to its end, or until now."""
    if job.start_time is None:
        return ""
    end = job.end_time or datetime.now(UTC).timestamp() * 1000
    return f"{(end - job.start_time) / 1000:.0f} s"


def last_line(log: str) -> str:
    """The last line with anything in it."""
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
