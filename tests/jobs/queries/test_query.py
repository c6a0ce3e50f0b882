"""SQL over results: what the views hold, and that nothing but reading is possible."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from trial_results import make_plan, make_results

from cluster.results.receipts import Receipts
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.results.schema import schema
from jobs.queries.cells import CELLS
from jobs.queries.sql import print_sql, run_sql
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 4, "num_shards": 2, "seeds": (1,)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("query") / "out", **SMALL)


def test_views_hold_the_rows(results: Results) -> None:
    found = run_sql(results, "SELECT * FROM generations ORDER BY configuration, prompt_id, seed")
    whole = results.read("generations").sort_by(
        [("configuration", "ascending"), ("prompt_id", "ascending"), ("seed", "ascending")]
    )
    assert found.column_names == ["configuration", *schema("generations").names]
    assert found.to_pylist() == whole.to_pylist()
    likelihoods = run_sql(results, "SELECT count(*) AS n FROM likelihoods").to_pylist()
    assert likelihoods == [{"n": 4 * 4 * 3}]
    prompts = run_sql(results, "SELECT * FROM prompts ORDER BY row")
    assert prompts.to_pylist() == results.prompts().to_pylist()


def test_cells_are_typed_facts(results: Results) -> None:
    found = run_sql(results, "SELECT * FROM cells ORDER BY key")
    assert found.column_names == [c.name for c in CELLS]
    assert len(found) == 4 * (2 + 2)
    facts = sorted(results.cells() + results.cells("likelihoods"), key=lambda f: str(f["key"]))
    assert found["wall_s"].to_pylist() == [f["wall_s"] for f in facts]
    assert found["device_peak_bytes"].null_count == len(found)
    assert found.schema.field("rows").type == pa.int64()


def test_before_the_first_part_views_are_empty_and_typed(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    plan = make_plan(str(tmp_path))
    manifest = json.dumps({"plan": plan.model_dump(mode="json")})
    results.store.create(MANIFEST, manifest.encode())
    write_prompts(results.store, [])
    for view, table in (("generations", "generations"), ("prompts", "prompts")):
        found = run_sql(results, f"SELECT * FROM {view}")
        assert len(found) == 0
        assert set(schema(table).names) <= set(found.column_names)
    assert run_sql(results, "SELECT sum(e2e_s) + 1 AS s FROM generations").to_pylist() == [
        {"s": None}
    ]
    assert run_sql(results, "SELECT max(wall_s) AS w FROM cells").to_pylist() == [{"w": None}]


def test_a_column_that_older_parts_lack_is_null(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", **SMALL)
    part = results.parts("generations")[0]
    path = results.store.path(part.name)
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["batch_size", "error"]), path)
    for name in Receipts(results.store).names(part.key):
        results.store.delete(name)
    found = run_sql(results, "SELECT count(*) AS n, count(batch_size) AS b FROM generations")
    assert found.to_pylist() == [{"n": 16, "b": 0}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "COPY (SELECT 1) TO '/tmp/optrial-must-not-exist.csv'",
        "COPY (SELECT 1) TO '{folder}/written.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/written.csv'",
        "EXPORT DATABASE '{folder}/written'",
        "ATTACH '{folder}/written.db'",
        "ATTACH '/tmp/optrial-must-not-exist.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "DROP VIEW generations",
        "DELETE FROM cells",
        "SELECT 1; DROP TABLE cells",
        "SELECT * FROM results",
        "SELECT nothing FROM generations",
        "not SQL",
        "",
    ],
)
def test_anything_but_reading_is_refused(results: Results, sql: str) -> None:
    root = Path(results.output)
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError):
        run_sql(results, sql.format(folder=results.output))
    assert sorted(root.rglob("*")) == before
    assert not list(Path("/tmp").glob("optrial-must-not-exist*"))


def test_the_message_is_duckdbs(results: Results) -> None:
    with pytest.raises(InputError, match="nothing"):
        run_sql(results, "SELECT nothing FROM generations")


def test_paths_with_pattern_characters(tmp_path: Path) -> None:
    results = make_results(tmp_path / "it's [1] *odd?" / "out", **SMALL)
    assert run_sql(results, "SELECT count(*) AS n FROM generations").to_pylist() == [{"n": 16}]


def test_object_store() -> None:
    results = make_results("memory://optrial-query/out", **SMALL)
    try:
        sql = "SELECT configuration, count(*) AS n FROM generations GROUP BY ALL ORDER BY ALL"
        found = run_sql(results, sql).to_pylist()
        assert [row["n"] for row in found] == [4, 4, 4, 4]
        assert found[0]["configuration"] == "again"
        with pytest.raises(InputError):
            run_sql(results, "SELECT * FROM read_csv('memory://elsewhere/x.csv')")
    finally:
        fsspec.filesystem("memory").rm("/optrial-query", recursive=True)


@pytest.mark.parametrize(
    ("output_format", "expected"),
    [
        ("csv", '"a","b"\n1,"[""x""]"\n'),
        ("jsonl", '{"a": 1, "b": ["x"]}\n'),
        ("table", '["x"]'),
    ],
)
def test_formats(results: Results, output_format: str, expected: str) -> None:
    out = io.StringIO()
    print_sql(results, "SELECT 1 AS a, ['x'] AS b", output_format, Console(file=out, width=80))
    assert expected in out.getvalue()


def test_unknown_format(results: Results) -> None:
    with pytest.raises(InputError, match="xml"):
        print_sql(results, "SELECT 1", "xml", Console())
