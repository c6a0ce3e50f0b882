"""The summary against numpy, its totals, and what it leaves out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.queries.measures import MEASURES
from jobs.queries.sql import connect
from jobs.queries.summary import SUMMARY_FILE, summary_rows, write_summary
from jobs.spec.metrics import METRICS

Key = tuple[str, str, int | None, str]


def spoil(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """In set0, shard 0, seed 1: one row fails, one is of a cold engine, one time is no number."""
    if (cell.kind, cell.dataset, cell.shard, cell.seed) == ("generations", "set0", 0, 1):
        metrics = ("completion_tokens", "completion_bytes", "ttft_s", "tpot_s", "e2e_s", "queue_s")
        rows[0] |= dict.fromkeys(metrics, None)
        rows[0] |= {"error": "it broke", "finish_reason": "error", "completion_text": None}
        rows[1] |= {"warmup": True, "e2e_s": 1000.0, "finish_reason": "length"}
        rows[2] |= {"tpot_s": math.nan}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = make_results(tmp_path_factory.mktemp("summary") / "out", edit=spoil, num_shards=2)
    write_summary(made)
    return made


def rows_of(results: Results) -> dict[Key, dict[str, Any]]:
    table = pq.read_table(results.store.path(SUMMARY_FILE))
    keys = ("configuration", "dataset", "seed", "metric")
    rows = table.to_pylist()
    found = {tuple(row[key] for key in keys): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_one_row_per_configuration_dataset_seed_and_metric(results: Results) -> None:
    found = rows_of(results)
    of_tokens = {key[:3] for key in found if key[3] == "completion_tokens"}
    datasets = [("set0", None), ("set0", 1), ("set0", 2), ("set1", None), ("set1", 1), ("set1", 2)]
    groups = [("*", None), *datasets]
    names = ("baseline", "again", "fast", "short")
    assert of_tokens == {(name, *group) for name in names for group in groups}
    of_bits = {key[:3] for key in found if key[3] == "bits_per_byte"}
    assert of_bits == {(name, *group) for name in names for group in groups if group[1] is None}


def test_the_rows_are_in_order(results: Results) -> None:
    table = pq.read_table(results.store.path(SUMMARY_FILE)).to_pylist()
    order = {measure.name: place for place, measure in enumerate(MEASURES)}
    keys = [
        (
            r["configuration"],
            order[r["metric"]],
            r["dataset"],
            -1 if r["seed"] is None else r["seed"],
        )
        for r in table
    ]
    assert keys == sorted(keys)


def test_every_metric_of_the_effects_is_summarised() -> None:
    names = [measure.name for measure in MEASURES]
    described = {metric.name for metric in METRICS if metric.source != "failure"}
    assert described <= set(names), "of failures it has their number"
    assert len(set(names)) == len(names)


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
    for name in ("completion_tokens", "completion_bytes", "ttft_s", "tpot_s", "e2e_s"):
        is_time = name.endswith("_s")
        values = [r[name] for r in rows if not r["error"] and not (is_time and r["warmup"])]
        values = [value for value in values if math.isfinite(value)]
        found = rows_of(results)[*group, name]
        assert (found["n"], found["of"]) == (len(values), "row")
        assert found["num_rows"] == len(rows)
        assert found["num_errors"] == sum(r["error"] is not None for r in rows) > 0
        assert found["num_warmup"] == sum(r["warmup"] for r in rows) > 0
        assert found["num_length"] == sum(r["finish_reason"] == "length" for r in rows) > 0
        assert found["num_stop"] == sum(r["finish_reason"] == "stop" for r in rows)
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (found["min"], found["max"]) == (min(values), max(values))
        assert found["total"] == pytest.approx(np.sum(values))
        for q in (50, 90, 95, 99):
            assert found[f"p{q}"] == pytest.approx(np.percentile(values, q))
    assert rows_of(results)[*group, "tpot_s"]["n"] == rows_of(results)[*group, "e2e_s"]["n"] - 1


def test_a_ratios_mean_is_total_over_total(results: Results) -> None:
    cells = [c for c in results.cells() if (c["configuration"], c["dataset"]) == ("short", "set1")]
    found = rows_of(results)
    wall_s = sum(c["wall_s"] for c in cells)
    for name, amount in (
        ("completion_tokens_per_s", "completion_tokens"),
        ("base_tokens_per_s", "base_completion_tokens"),
        ("completion_bytes_per_s", "completion_bytes"),
    ):
        row = found["short", "set1", None, name]
        assert row["mean"] == pytest.approx(sum(c[amount] for c in cells) / wall_s)
        assert (row["n"], row["of"], row["total"]) == (len(cells), "cell", None)
        rates = [c[amount] / c["wall_s"] for c in cells]
        assert row["p50"] == pytest.approx(np.median(rates))
    warm = [
        r
        for r in results.read("generations").to_pylist()
        if r["configuration"] == "short" and not r["error"] and not r["warmup"]
    ]
    time_per_byte = sum(r["e2e_s"] for r in warm) / sum(r["completion_bytes"] for r in warm)
    assert found["short", "*", None, "e2e_s_per_byte"]["mean"] == pytest.approx(time_per_byte)


def test_what_was_spent_on_empty_texts_counts_in_the_mean_of_a_ratio(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations" and cell.shard == 0:
            rows[0] |= {"completion_bytes": 0, "completion_text": ""}

    results = make_results(tmp_path / "out", edit=edit, num_datasets=1, num_shards=2, seeds=(1,))
    write_summary(results)
    rows = [r for r in results.read("generations").to_pylist() if r["configuration"] == "fast"]
    found = rows_of(results)["fast", "*", None, "e2e_s_per_byte"]
    assert found["n"] == len(rows) - 1
    totals = [sum(r[name] for r in rows) for name in ("e2e_s", "completion_bytes")]
    assert found["mean"] == pytest.approx(totals[0] / totals[1])


def test_reading_one_measure_at_a_time_gives_the_same(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect(results)
    together = summary_rows(connection)
    monkeypatch.setattr("jobs.queries.summary._VALUES_AT_ONCE", 1)
    assert summary_rows(connection) == together
    connection.close()


def test_memory_and_quality(results: Results) -> None:
    found = rows_of(results)
    assert found["fast", "*", None, "kv_committed_peak_bytes"]["max"] == 9000
    assert found["baseline", "set0", 1, "kv_committed_peak_bytes"]["mean"] == 10000
    assert found["fast", "*", None, "weight_bytes_shared"]["max"] == 5000
    assert found["short", "*", None, "bits_per_byte"]["mean"] == pytest.approx(2.0)
    assert found["short", "*", None, "bits_per_byte"]["n"] == 48


def test_a_single_value_has_no_spread(tmp_path: Path) -> None:
    results = make_results(
        tmp_path / "out", num_datasets=1, num_prompts=1, num_shards=1, seeds=(1,)
    )
    write_summary(results)
    row = rows_of(results)["baseline", "*", None, "completion_tokens"]
    assert (row["n"], row["sd"]) == (1, None)
    assert row["min"] == row["p99"] == row["max"] == row["total"]


def test_without_parts_there_is_an_empty_table(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", edit=lambda *_: False, num_shards=1)
    write_summary(results)
    assert rows_of(results) == {}


def test_where_every_row_failed_only_what_cells_have_is_there(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        for row in rows:
            row |= {"error": "no", "finish_reason": "error"}
        facts |= {"wall_s": 0.0}
        return cell.kind == "generations"

    results = make_results(tmp_path / "out", edit=edit, num_datasets=1, num_shards=1)
    write_summary(results)
    found = rows_of(results)
    assert {row["of"] for row in found.values()} == {"cell"}
    assert all(row["num_rows"] == row["num_errors"] > 0 for row in found.values())
    assert not any(key[3] == "completion_bytes_per_s" for key in found)
