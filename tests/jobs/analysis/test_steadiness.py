"""Drift and place in the block are seen where they were planted, and only there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.guards.stability import Steadiness, steadiness, steadiness_data, steadiness_notes
from jobs.queries.sql import connect

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def held(results: Results) -> Steadiness:
    connection = connect(results)
    try:
        return steadiness(connection, results.plan())
    finally:
        connection.close()


def timed(results_folder: Path, drift: float = 0.0, place: float = 0.0) -> Steadiness:
    """Cells that begin one second apart; time grows by `drift` over all, and at each place."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        number = facts["block"] * 4 + facts["order_in_block"]
        facts["order_in_block"] = (facts["order_in_block"] + facts["block"]) % 4
        facts["started_at"] = (BEGAN + timedelta(seconds=number)).isoformat()
        factor = 1 + drift * facts["block"] / 32 + place * (facts["order_in_block"] == 0)
        for row in rows:
            if "tpot_s" in row:
                row["tpot_s"] *= factor

    return held(make_results(results_folder / "out", edit=edit))


def test_a_steady_machine(tmp_path: Path) -> None:
    found = timed(tmp_path)
    assert found.drift is not None
    assert found.drift.p > 0.001
    [alarms] = found.false_alarms
    assert alarms.configuration == "again"
    assert alarms.num_relabellings == 200
    assert alarms.rate is not None
    assert alarms.rate < 0.15
    [line] = [line for line in steadiness_notes(found) if "False alarms" in line]
    assert "again" in line


def test_a_drift_is_said_with_its_size(tmp_path: Path) -> None:
    found = timed(tmp_path, drift=0.3)
    assert found.drift is not None
    assert found.drift.last_third - found.drift.first_third == pytest.approx(0.18, abs=0.05)
    assert any("drifted" in line and "+" in line for line in steadiness_notes(found))


def test_a_place_that_is_slow_is_named(tmp_path: Path) -> None:
    found = timed(tmp_path, place=0.2)
    assert found.place is not None
    assert found.place.p < 0.01
    assert any("number 1 took +" in line for line in steadiness_notes(found))


def test_too_little_to_tell(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_datasets": 1, "num_prompts": 1, "num_shards": 1, "seeds": (1,)}
    found = held(make_results(tmp_path / "out", **options))
    assert found.drift is None
    assert found.place is None
    assert found.false_alarms[0].rate is None
    assert list(steadiness_notes(found)) == []
    assert steadiness_data(found)["drift"] is None
