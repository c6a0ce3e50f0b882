"""Places that cannot be used are refused by what is wrong with them, before anything runs."""

from __future__ import annotations

import errno

import pytest

from cluster.object_store import ObjectStore
from jobs.ray_session import _cannot_start
from optim.errors import InputError


@pytest.mark.parametrize("address", ["memory://bucket/run[1]", "memory://b/a*", "memory://b/{x}"])
def test_an_address_that_is_a_pattern(address: str) -> None:
    """What is written there could never be read: listing takes it for a pattern."""
    with pytest.raises(InputError, match=r"is a pattern to what reads it\. Choose one without"):
        ObjectStore(address)


def test_why_ray_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    long = OSError("AF_UNIX path length cannot exceed 107 bytes: /scratch/ray/…")
    assert str(_cannot_start(long)) == (
        "/scratch: TMPDIR: Ray cannot start: its sockets' paths would be longer than 107 bytes "
        "there. Set RAY_TMPDIR to a folder with a short path, such as /tmp"
    )
    home = OSError(errno.EROFS, "Read-only file system", "/home/me/.ray")
    assert str(_cannot_start(home)) == (
        "/home/me/.ray: HOME: Ray cannot start: Read-only file system. Set HOME to a folder that "
        "can be written to"
    )
    temporary = OSError(errno.EROFS, "Read-only file system", "/scratch/ray")
    assert "Set RAY_TMPDIR to a folder that can be written to" in str(_cannot_start(temporary))
