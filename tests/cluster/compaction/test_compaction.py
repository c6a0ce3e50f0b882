"""Compacted files answer as the parts do, whatever happens to either of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from program import Run
from trial_results import make_results

from cluster.compaction import compaction, part_source
from cluster.compaction import parquet_writer as large_file
from cluster.compaction.compaction import compact
from cluster.plan import Cell
from cluster.results.compacted_files import CURRENT, FOLDER, Compacted
from cluster.results.results import Results
from cluster.results.schema import schema
from cluster.results.verification import faults_of
from jobs.queries import cells as jobs_cells
from jobs.queries.cells import CELLS
from jobs.queries.sql import run_sql
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_datasets": 2, "num_prompts": 8, "num_shards": 4, "seeds": (1, 2)}
VIEWS = ("generations", "likelihoods", "cells", "prompts")


def everything(results: Results) -> dict[str, pa.Table]:
    return {view: run_sql(results, f"SELECT * FROM {view} ORDER BY ALL") for view in VIEWS}


def same(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> bool:
    return all(one[view].equals(other[view]) for view in VIEWS)


def rich(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Values of every type, also awkward ones."""
    for i, row in enumerate(rows):
        if cell.kind == "generations":
            row |= {
                "completion_text": ["é\0🙂", "", None, "a\nb"][i % 4],
                "completion_ids": [[1, 2], [], None][i % 3],
                "token_times_s": [0.25, 1e-30] if i % 2 else None,
                "started_at": 1_700_000_000_123_456 + i,
                "num_preemptions": i,
            }


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return make_results(tmp_path / "out", edit=rich, **SMALL)


def test_answers_are_the_same_and_parts_are_not_opened(
    results: Results, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(results)
    code, out, err = run("compact", results.output)
    assert (code, err) == (0, "")
    num_parts = len(results.committed_keys())
    assert f"{num_parts} parts in 8 files" in out
    assert same(everything(results), before)

    opened: list[str] = []
    read = Results.cell_facts
    monkeypatch.setattr(Results, "cell_facts", lambda self, part: opened.append(part) or read)
    assert len(run_sql(results, "SELECT * FROM cells")) == num_parts
    assert not opened, "footers were compacted too"


def test_files_are_few_sorted_and_as_published(results: Results) -> None:
    compact(results, CELLS)
    current = Compacted.current(results.store)
    assert current is not None
    assert {(file.kind, file.configuration) for file in current.files} == {
        (kind, name)
        for kind in ("generations", "likelihoods")
        for name in ("again", "baseline", "fast", "short")
    }
    for file in current.files:
        with pq.ParquetFile(
            results.store.path(file.name), page_checksum_verification=True
        ) as found:
            assert found.schema_arrow.equals(schema(file.kind), check_metadata=False)
            assert found.metadata.row_group(0).column(0).compression == "ZSTD"
            table = found.read()
        keys = ["dataset", "seed", "shard", "prompt_id", "candidate"]
        keys = [key for key in keys if key in table.column_names]
        rows = list(zip(*(table[key].to_pylist() for key in keys), strict=True))
        assert rows == sorted(rows)


def test_row_groups_and_files_are_cut(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(results)
    monkeypatch.setattr(large_file, "ROWS_PER_GROUP", 5)
    monkeypatch.setattr(large_file, "ROWS_PER_FILE", 16)
    monkeypatch.setattr(part_source, "_ROWS_AT_ONCE", 3)
    made = compact(results, CELLS)
    assert made.num_files > 8
    assert same(everything(results), before)


def half(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
    rich(cell, rows, facts)
    return cell.seed != 2


def test_new_parts_are_read_beside_and_added(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", edit=half, **SMALL)
    num_first = compact(results, CELLS).num_parts
    first = set(results.store.list(FOLDER))
    make_results(results.output, edit=rich, **SMALL)
    whole = everything(make_results(tmp_path / "whole", edit=rich, **SMALL))
    assert same(everything(results), whole), "parts that came since are read as they are"

    made = compact(results, CELLS)
    assert made.num_new == made.num_parts - num_first > 0
    assert first & set(results.store.list(FOLDER)), "files of the first stay in use"
    assert same(everything(results), whole)
    assert compact(results, CELLS).num_new == 0
    again = compact(results, CELLS, full=True)
    assert again.num_new == again.num_parts
    assert not first & set(results.store.list(FOLDER)), "older generations are removed"
    assert same(everything(results), whole)


def test_many_additions_are_made_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_MOST_FILES", 2)
    counts = []
    for last in range(1, 5):
        options = {**SMALL, "seeds": (1, 2, 3, 4)}
        results = make_results(
            tmp_path / "out", edit=lambda c, rows, facts, n=last: (c.seed or 0) <= n, **options
        )
        compact(results, CELLS)
        current = Compacted.current(results.store)
        assert current is not None
        counts.append(sum(f.kind == "generations" for f in current.files) // 4)
    assert counts == [1, 2, 1, 2]
    assert run_sql(results, "SELECT count(*) AS n FROM generations").to_pylist() == [
        {"n": len(results.read("generations"))}
    ]


def test_rows_whose_part_is_gone_or_another_do_not_count(results: Results, run: Run) -> None:
    compact(results, CELLS)
    first, second = results.parts("generations")[:2]
    for part in (first, second):
        path = Path(results.store.path(part.name))
        path.write_bytes(path.read_bytes()[:100])
    assert run("verify", results.output, "--repair")[0] == 1
    sql = "SELECT count(*) AS n FROM generations WHERE cell IN ('{}', '{}')"
    sql = sql.format(first.key, second.key)
    assert run_sql(results, sql).to_pylist() == [{"n": 0}]
    assert first.key not in run_sql(results, "SELECT key FROM cells")["key"].to_pylist()

    def other(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        for row in rows:
            row["completion_text"] = "run again"
        return cell.key == first.key

    make_results(results.output, edit=other, **SMALL)
    sql = "SELECT completion_text AS t, count(*) AS n FROM generations WHERE cell = '{}' GROUP BY 1"
    expected = [{"t": "run again", "n": 2}]
    assert run_sql(results, sql.format(first.key)).to_pylist() == expected
    compact(results, CELLS)
    assert run_sql(results, sql.format(first.key)).to_pylist() == expected
    assert len(run_sql(results, "FROM generations")) == len(results.read("generations"))


def test_a_copy_of_the_folder_needs_no_new_compaction(results: Results, tmp_path: Path) -> None:
    compact(results, CELLS)
    before = everything(results)
    shutil.copytree(results.output, tmp_path / "copy")
    copy = Results(str(tmp_path / "copy"))
    assert same(everything(copy), before)
    assert compact(copy, CELLS).num_new == 0


def test_damage(results: Results, run: Run) -> None:
    compact(results, CELLS)
    current = Compacted.current(results.store)
    assert current is not None
    path = Path(results.store.path(current.files[0].name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="--full"):
        run_sql(results, "SELECT 1")
    code, out, _ = run("verify", results.output, "--repair")
    assert code == 1
    assert "(1 derived)" in out
    assert len(run_sql(results, "FROM generations")) == len(results.read("generations"))
    assert compact(results, CELLS).num_new > 0
    assert run("verify", results.output)[0] == 0


def test_files_that_are_missing_are_as_no_compaction(results: Results) -> None:
    before = everything(results)
    compact(results, CELLS)
    current = Compacted.current(results.store)
    assert current is not None
    results.store.delete(current.files[0].name)
    assert Compacted.current(results.store) is None
    assert same(everything(results), before)
    assert [fault.kind for fault in faults_of(results)] == ["derived"]
    results.store.replace(CURRENT, b"{")
    assert same(everything(results), before)


def test_a_damaged_part_stops_it_and_changes_nothing(results: Results) -> None:
    compact(results, CELLS)
    before = results.store.list("tables")
    path = Path(results.store.path(results.parts("generations")[5].name))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="--repair"):
        compact(results, CELLS, full=True)
    assert results.store.list("tables") == before
    assert results.store.list("_tmp") == []


def test_foreign_parts_stay_as_they_are(results: Results) -> None:
    part = results.parts("generations")[0]
    results.store.create(
        part.name.replace(part.key, "0123456789abcdef"), results.store.read(part.name)
    )
    before = everything(results)
    assert compact(results, CELLS).num_skipped == 1
    assert same(everything(results), before)


def test_a_part_in_another_configurations_folder_is_none(results: Results) -> None:
    before = everything(results)
    part = results.parts("generations")[0]
    elsewhere = part.name.replace(part.configuration, "short")
    assert elsewhere != part.name
    results.store.create(elsewhere, results.store.read(part.name))
    made = compact(results, CELLS)
    assert made.num_skipped == 1
    assert same(everything(results), before)


def test_what_an_older_version_took_for_a_cell_does_not_count(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(results)
    part = results.parts("generations")[0]
    elsewhere = part.name.replace(part.configuration, "short")
    results.store.create(elsewhere, results.store.read(part.name))
    with monkeypatch.context() as older:
        every = [*results.parts("generations"), *results.parts("likelihoods")]
        older.setattr(Results, "cell_parts", lambda self: (every, []))
        compact(results, CELLS)
        assert not same(everything(results), before)
    assert same(everything(results), before)
    compact(results, CELLS)
    assert same(everything(results), before)
    monkeypatch.setattr(jobs_cells, "CELLS", CELLS[:-1])  # facts are then read from the footers
    num_cells = "SELECT count(*) AS n FROM cells"
    assert run_sql(results, num_cells).to_pylist() == [{"n": len(before["cells"])}]


def test_facts_that_came_later(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version with another column of `cells` reads it from the footers, until compacted anew."""
    before = everything(results)["cells"]
    compact(results, [column for column in CELLS if column.name != "wall_s"])
    assert everything(results)["cells"].equals(before)
    opened: list[object] = []
    read = Results.cell_facts
    monkeypatch.setattr(
        Results, "cell_facts", lambda self, part: opened.append(part) or read(self, part)
    )
    assert compact(results, CELLS).num_new == len(before)
    assert everything(results)["cells"].equals(before)
    assert not opened
    assert jobs_cells.CELLS is CELLS


def test_other_folders_are_refused(tmp_path: Path, run: Run) -> None:
    code, _, err = run("compact", tmp_path)
    assert code == 2
    assert "not a results folder" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_what_it_says_of_itself(results: Results) -> None:
    compact(results, CELLS)
    folder = json.loads(results.store.read(CURRENT))["folder"]
    about = json.loads(results.store.read(f"{folder}/generation.json"))
    for file in (*about["files"], about["cells"], about["covered"]):
        found = results.store.entry(file["name"])
        assert found is not None
        assert found.num_bytes == file["num_bytes"]
        assert len(file["sha256"]) == 64
