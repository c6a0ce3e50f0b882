"""Exports: every row and value comes back, whole or not at all."""

from __future__ import annotations

import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pytest
from program import Run
from trial_results import make_results

from cluster.compaction.compaction import compact
from cluster.plan import Cell
from cluster.results.results import Results
from jobs.queries.cells import CELLS
from jobs.queries.export import TABLES, export_table
from jobs.queries.sql import run_sql
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 6, "num_shards": 3, "seeds": (1, 2)}


def rich(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Values of every type, also awkward ones."""
    for i, row in enumerate(rows):
        if cell.kind == "generations":
            row |= {
                "completion_text": ['é 🙂 "quoted", and\nmore', "", None, "NULL", "1.0"][i % 5],
                "completion_ids": [[1, 2], [], None][i % 3],
                "token_times_s": [0.25, 0.5] if i % 2 else None,
                "started_at": 1_700_000_000_123_456 + i,
                "kv_used_byte_s": 0.1 + 0.2,
            }
        else:
            row["nats"] = [0.1, math.inf][i % 2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("export") / "out", edit=rich, **SMALL)


def rows_of(results: Results, table: str) -> list[dict[str, Any]]:
    return run_sql(results, f"SELECT * FROM {table}").to_pylist()


def key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)


@pytest.mark.parametrize("table", TABLES)
def test_jsonl(results: Results, tmp_path: Path, table: str) -> None:
    out = tmp_path / "x.jsonl"
    expected = rows_of(results, table)
    assert export_table(results, table, "jsonl", out) == len(expected) > 0

    def strict(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = [json.loads(line, parse_constant=strict) for line in out.read_text().splitlines()]
    for row in found:
        if row.get("started_at") and table == "generations":
            row["started_at"] = datetime.fromisoformat(row["started_at"])
        if row.get("nats") == "Infinity":
            row["nats"] = math.inf
    assert sorted(found, key=key) == sorted(expected, key=key)


@pytest.mark.parametrize("table", TABLES)
def test_csv(results: Results, tmp_path: Path, table: str) -> None:
    out = tmp_path / "x.csv"
    whole = run_sql(results, f"SELECT * FROM {table}")
    assert export_table(results, table, "csv", out) == len(whole)
    flat = {f.name: pa.string() if pa.types.is_list(f.type) else f.type for f in whole.schema}
    read = csv.read_csv(
        out,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=flat, strings_can_be_null=True, quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )  # fmt: skip
    found = read.to_pylist()
    for row in found:
        for name, kind in zip(whole.column_names, whole.schema.types, strict=True):
            if pa.types.is_list(kind) and row[name] is not None:
                row[name] = json.loads(row[name])
    assert sorted(found, key=key) == sorted(whole.to_pylist(), key=key)


@pytest.mark.parametrize("table", TABLES)
def test_delta(results: Results, tmp_path: Path, table: str) -> None:
    import deltalake

    out = tmp_path / "x"
    expected = rows_of(results, table)
    assert export_table(results, table, "delta", out) == len(expected)
    found = pa.table(deltalake.DeltaTable(str(out)).to_pyarrow_table())
    assert sorted(found.to_pylist(), key=key) == sorted(expected, key=key)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_compacted_results_are_exported_alike(tmp_path: Path) -> None:
    made = make_results(tmp_path / "out", edit=rich, **SMALL)
    export_table(made, "generations", "jsonl", tmp_path / "before")
    compact(made, CELLS)
    export_table(made, "generations", "jsonl", tmp_path / "after")
    before, after = ((tmp_path / n).read_text().splitlines() for n in ("before", "after"))
    assert sorted(before) == sorted(after)


def test_the_command(results: Results, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "cells.jsonl"
    words = ["export", results.output, "--format", "jsonl", "--table", "cells", "--out", out]
    code, said, err = run(*words)
    assert (code, err) == (0, "")
    assert said.startswith(f"{len(results.committed_keys())} rows of cells in ")
    code, _, err = run(*words)
    assert code == 2
    assert "there already" in " ".join(err.split())


def refused(results: Results, tmp_path: Path, *words: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        export_table(results, *words)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_refusals(results: Results, tmp_path: Path) -> None:
    refused(results, tmp_path, "rows", "csv", tmp_path / "x", match="no table 'rows'")
    refused(results, tmp_path, "cells", "xls", tmp_path / "x", match="no format 'xls'")
    refused(results, tmp_path, "cells", "csv", tmp_path / "no" / "x", match="no such folder")
    refused(results, tmp_path, "cells", "csv", Path("s3://bucket/x"), match="local files")
    refused(results, tmp_path, "cells", "csv", tmp_path, match="there already")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", ["csv", "jsonl", "delta"])
def test_what_fails_leaves_nothing(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export_format: str
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.queries.export.os.rename", full)
    with pytest.raises(InputError, match="no room left"):
        export_table(results, "generations", export_format, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_damaged_parts_are_not_exported(tmp_path: Path, run: Run) -> None:
    made = make_results(tmp_path / "out", **SMALL)
    path = Path(made.store.path(made.parts("generations")[0].name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, _, err = run("export", made.output, "--out", tmp_path / "x.csv")
    assert code == 2
    assert "--repair" in " ".join(err.split())
    assert not (tmp_path / "x.csv").exists()


def test_a_missing_deltalake_is_named(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(InputError, match=r"pip install 'optrial\[delta\]'"):
        export_table(results, "cells", "delta", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
