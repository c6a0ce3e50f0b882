"""Both tables: their published schema, and that evaluations and reports keep them true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from program import Run
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results
from cluster.results.schema import Column
from cluster.storage.open_store import ObjectStore
from jobs.analysis.tables import EFFECTS, EFFECTS_FILE, update_tables, write_tables
from jobs.queries.summary import SUMMARY, SUMMARY_FILE
from jobs.queries.table_files import TABLES_VERSION, table_schema
from jobs.report.report_data import report_data

TABLES = [(SUMMARY_FILE, SUMMARY), (EFFECTS_FILE, EFFECTS)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = make_results(tmp_path_factory.mktemp("tables") / "out")
    write_tables(made)
    return made


@pytest.mark.parametrize(("name", "columns"), TABLES)
def test_the_file_says_its_version_and_what_columns_mean(
    results: Results, name: str, columns: list[Column]
) -> None:
    table = pq.read_table(results.store.path(name))
    assert table.column_names == [c.name for c in columns]
    assert set(table["schema_version"].to_pylist()) == {TABLES_VERSION}
    assert table.schema.metadata[b"optrial.schema_version"] == str(TABLES_VERSION).encode()
    meanings = [field.metadata[b"meaning"].decode() for field in table.schema]
    assert meanings == [c.meaning for c in columns]


FIRST: dict[str, dict[str, str]] = {
    SUMMARY_FILE: {
        **dict.fromkeys(("schema_version",), "int32"),
        **dict.fromkeys(
            (
                "configuration",
                "dataset",
                "metric",
                "of",
            ),
            "string",
        ),
        **dict.fromkeys(
            (
                "seed",
                "n",
                "num_rows",
                "num_errors",
                "num_warmup",
                "num_stop",
                "num_length",
            ),
            "int64",
        ),
        **dict.fromkeys(
            (
                "mean",
                "sd",
                "min",
                "p50",
                "p90",
                "p95",
                "p99",
                "max",
                "total",
            ),
            "double",
        ),
    },
    EFFECTS_FILE: {
        **dict.fromkeys(("schema_version",), "int32"),
        **dict.fromkeys(
            (
                "configuration",
                "vs",
                "metric",
                "statistic",
                "method",
                "reason",
                "verdict",
                "family",
                "verdict_reason",
                "statement",
            ),
            "string",
        ),
        **dict.fromkeys(
            (
                "reference_mean",
                "mean",
                "estimate",
                "low",
                "high",
                "se",
                "p",
                "log_estimate",
                "margin",
                "p_adjusted",
                "equivalence_p_adjusted",
                "mde",
            ),
            "double",
        ),
        **dict.fromkeys(
            (
                "num_units",
                "num_clusters",
                "num_left_out",
                "df",
                "more_prompts",
                "more_seeds",
            ),
            "int64",
        ),
        **dict.fromkeys(("identical",), "bool"),
    },
}
"""The columns of version 1, with their types."""


@pytest.mark.parametrize(("name", "columns"), TABLES)
def test_a_version_keeps_its_columns(name: str, columns: list[Column]) -> None:
    """Whoever has to change this raises TABLES_VERSION, and begins the list anew."""
    assert TABLES_VERSION == 1
    there = {field.name: str(field.type) for field in table_schema(columns)}
    assert {column: there.get(column) for column in FIRST[name]} == FIRST[name]


def test_effects_are_those_of_the_report(results: Results) -> None:
    found = pq.read_table(results.store.path(EFFECTS_FILE)).to_pylist()
    data = report_data(results)
    shown = [
        (comparison["configuration"], effect["metric"], effect["statistic"], effect["low"])
        for comparison in data["comparisons"]
        for effect in comparison["effects"]
    ]
    keys = ("configuration", "metric", "statistic", "low")
    assert [tuple(row[key] for key in keys) for row in found] == shown
    write_tables(results, data)
    assert pq.read_table(results.store.path(EFFECTS_FILE)).to_pylist() == found
    verdicts = {(row["configuration"], row["metric"]): row["verdict"] for row in found}
    assert verdicts["fast", "kv_committed_peak_bytes"] is not None


def test_metrics_of_both_tables_join(results: Results) -> None:
    summary, effects = (pq.read_table(results.store.path(name)) for name, _ in TABLES)
    in_effects = {(r["configuration"], r["metric"]) for r in effects.to_pylist() if r["num_units"]}
    in_summary = {(r["configuration"], r["metric"]) for r in summary.to_pylist()}
    scores = {(name, "contains") for name in ("again", "fast", "short")}
    assert in_effects - scores <= in_summary
    assert scores <= in_effects, "what outputs are scored by has effects alone"


def test_a_report_brings_the_tables_up_to_date(tmp_path: Path, run: Run) -> None:
    def half(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        return cell.seed != 2

    small = {"num_datasets": 1, "num_prompts": 8, "num_shards": 2}
    results = make_results(tmp_path / "out", edit=half, **small)
    write_tables(results)
    assert seeds_of(results) == {None, 1}
    make_results_again(results, tmp_path, small)
    code, _, err = run("report", results.output)
    assert (code, err) == (0, "")
    assert seeds_of(results) == {None, 1, 2}
    assert not list(Path(results.store.path("_tmp")).iterdir())


def make_results_again(results: Results, tmp_path: Path, options: dict[str, Any]) -> None:
    """What is missing, committed as a resumed run commits it."""
    whole = make_results(tmp_path / "whole", **options)
    for part in whole.parts("generations"):
        results.store.create(part.name, whole.store.read(part.name))


def seeds_of(results: Results) -> set[int | None]:
    return set(pq.read_table(results.store.path(SUMMARY_FILE))["seed"].to_pylist())


def test_results_that_cannot_be_written_to_are_reported_all_the_same(
    tmp_path: Path, run: Run
) -> None:
    small = {"num_datasets": 1, "num_prompts": 8, "num_shards": 2}
    results = make_results(tmp_path / "out", **small)
    stale = tmp_path / "out" / "tables" / "summary.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"as it was")
    temporary = tmp_path / "out" / "_tmp"
    temporary.rmdir()
    temporary.write_text("in the way, as permissions would not stop root")
    code, out, err = run("report", results.output, "--json")
    assert code == 0
    assert json.loads(out)["trial"]["rows"] == 64
    assert "were not updated: it cannot be written" in err
    assert stale.read_bytes() == b"as it was"
    said = update_tables(results)
    assert said is not None
    assert results.output in said


def test_a_bucket_that_is_only_read_is_reported_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"num_datasets": 1, "num_prompts": 8, "num_shards": 2}
    results = make_results("memory://bucket/read", **small)

    def denies(*_: object, **__: object) -> None:
        raise PermissionError(13, "AccessDenied")

    monkeypatch.setattr(ObjectStore, "_put", denies)
    said = update_tables(results)
    fsspec.filesystem("memory").store.clear()
    assert said is not None
    assert "were not updated: it cannot be written: access is denied" in said
