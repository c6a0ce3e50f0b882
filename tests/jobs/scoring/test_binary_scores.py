"""Right or wrong, of one seed: McNemar's exact test and Wilson's interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from trial_results import make_results

from cluster.plan import Cell
from jobs.scoring.binary import WILSON, binary_difference, is_binary
from jobs.scoring.scores import score_statistics


def some_wrong(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """`fast` answers the first prompt of every shard wrongly, nobody else any."""
    for row in rows[:1] if cell.configuration == "fast" else ():
        if "completion_text" in row:
            row["completion_text"] = "no idea"


def scores(folder: Path, seeds: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    results = make_results(folder, edit=some_wrong, seeds=seeds, num_datasets=1)
    return {row["configuration"]: row for row in score_statistics(results, ["contains"])}


def test_one_seed_is_tested_exactly(tmp_path: Path) -> None:
    found = scores(tmp_path / "out", (1,))
    fast = found["fast"]
    assert fast["mean"].estimate == pytest.approx(16 / 24)
    assert fast["mean"].method == WILSON
    # Wilson's interval of 16 of 24, from R: prop.test(16, 24, correct = FALSE).
    assert fast["mean"].low == pytest.approx(0.46711, abs=5e-5)
    assert fast["mean"].high == pytest.approx(0.82030, abs=5e-5)
    assert (fast["binary"].only_reference, fast["binary"].only_configuration) == (8, 0)
    assert fast["binary"].p == pytest.approx(stats.binomtest(8, 8).pvalue)
    assert fast["difference"].p == fast["binary"].p
    assert found["baseline"]["mean"].high == 1, "all of 24 are right"
    assert found["baseline"]["mean"].low == pytest.approx(0.862, abs=1e-3)


def test_means_over_several_seeds_are_not(tmp_path: Path) -> None:
    fast = scores(tmp_path / "out", (1, 2))["fast"]
    assert fast["binary"] is None
    assert fast["mean"].method != WILSON


def test_what_is_binary() -> None:
    assert is_binary({"a": 0.0, "b": 1.0})
    assert not is_binary({"a": 0.5})
    assert not is_binary({})
    assert binary_difference({"a": 1.0}, {"b": 1.0}) is None
    assert binary_difference({"a": 0.3}, {"a": 1.0}) is None
    found = binary_difference({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 1.0, "c": 1.0})
    assert found is not None
    assert (found.only_reference, found.only_configuration, found.p) == (1, 1, 1.0)
