"""The summary against numpy, its totals, and its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results import Results
from jobs.summary import SUMMARY, SUMMARY_FILE, columns_markdown, write_summary

ROOT = Path(__file__).parent.parent


def spoil(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """In set0, shard 0, seed 1: the first row fails and the second is of a cold engine."""
    if (cell.kind, cell.dataset, cell.shard, cell.seed) == ("generations", "set0", 0, 1):
        metrics = ("completion_tokens", "completion_bytes", "ttft_s", "tpot_s", "e2e_s", "queue_s")
        rows[0] |= dict.fromkeys(metrics, None)
        rows[0] |= {"error": "it broke", "finish_reason": "error", "completion_text": None}
        rows[1] |= {"warmup": True, "e2e_s": 1000.0, "finish_reason": "length"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = make_results(tmp_path_factory.mktemp("summary") / "out", edit=spoil, num_shards=2)
    write_summary(made)
    return made


def rows_of(results: Results) -> dict[tuple[str, str, int | None], dict[str, Any]]:
    table = pq.read_table(results.store.path(SUMMARY_FILE))
    assert table.column_names == [c.name for c in SUMMARY]
    assert all((field.metadata or {}).get(b"meaning") for field in table.schema)
    return {(r["configuration"], r["dataset"], r["seed"]): r for r in table.to_pylist()}


def test_one_row_per_configuration_dataset_seed_and_totals(results: Results) -> None:
    assert len(rows_of(results)) == 4 * (2 * 2 + 2 + 1)


@pytest.mark.parametrize(
    "group", [("fast", "set0", 1), ("fast", "set0", None), ("fast", "*", None)]
)
def test_statistics_equal_numpys(results: Results, group: tuple[str, str, int | None]) -> None:
    configuration, dataset, seed = group
    rows = [
        r
        for r in results.read("generations").to_pylist()
        if r["configuration"] == configuration
        and dataset in ("*", r["dataset"])
        and seed in (None, r["seed"])
    ]
    found = rows_of(results)[group]
    assert found["n"] == len(rows)
    assert found["num_errors"] == sum(r["error"] is not None for r in rows)
    assert found["num_warmup"] == sum(r["warmup"] for r in rows)
    assert found["num_length"] == sum(r["finish_reason"] == "length" for r in rows)
    for measure in ("completion_tokens", "completion_bytes", "ttft_s", "tpot_s", "e2e_s"):
        is_time = measure.endswith("_s")
        values = [r[measure] for r in rows if not r["error"] and not (is_time and r["warmup"])]
        assert found[f"{measure}_n"] == len(values)
        assert found[f"{measure}_mean"] == pytest.approx(np.mean(values))
        assert found[f"{measure}_sd"] == pytest.approx(np.std(values, ddof=1))
        for q in (50, 90, 95, 99):
            assert found[f"{measure}_p{q}"] == pytest.approx(np.percentile(values, q))


def test_throughput_is_totals_over_time(results: Results) -> None:
    cells = [c for c in results.cells() if (c["configuration"], c["dataset"]) == ("short", "set1")]
    found = rows_of(results)["short", "set1", None]
    wall_s = sum(c["wall_s"] for c in cells)
    assert found["num_cells"] == len(cells) == 4
    assert found["wall_s"] == pytest.approx(wall_s)
    for name, amount in (
        ("completion_tokens_per_s", "completion_tokens"),
        ("base_tokens_per_s", "base_completion_tokens"),
        ("completion_bytes_per_s", "completion_bytes"),
    ):
        assert found[name] == pytest.approx(sum(c[amount] for c in cells) / wall_s)
    assert found["kv_committed_peak_bytes_max"] == 10000
    assert rows_of(results)["fast", "*", None]["kv_committed_peak_bytes_mean"] == 9000
    assert found["weight_bytes_shared"] == 5000


def test_without_parts_there_is_an_empty_table(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", edit=lambda *_: False, num_shards=1)
    write_summary(results)
    assert rows_of(results) == {}


def test_the_documentation_is_current() -> None:
    assert (ROOT / "docs" / "summary.md").read_text() == columns_markdown()
