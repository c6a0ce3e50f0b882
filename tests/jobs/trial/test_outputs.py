"""Where a trial may go in an object store."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from cluster.results.results import MANIFEST, Results
from cluster.storage.driver_lock import LOCK_FILE
from jobs.trial.output_folder import require_place
from optim.errors import InputError


@pytest.fixture
def results() -> Iterator[Results]:
    yield Results("memory://bucket/place")
    fsspec.filesystem("memory").store.clear()


def test_a_prefix_that_holds_other_objects_is_refused(results: Results) -> None:
    results.store.replace("data/important.txt", b"x")
    with pytest.raises(InputError, match="not the results of a trial") as raised:
        require_place(results)
    assert (raised.value.source, raised.value.field) == ("memory://bucket/place", "output")
    require_place(Results("memory://bucket/other"))


def test_a_trial_and_what_a_driver_begins_with_are_none(results: Results) -> None:
    require_place(results)
    results.store.replace(LOCK_FILE, b"{}")
    results.store.replace("_tmp/probe-1", b"1")
    require_place(results)
    results.store.replace("generations/part", b"x")
    results.store.replace(MANIFEST, b"{}")
    require_place(results)
