"""Every column and every type of an answer, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import duckdb
import pytest
from program import Run
from trial_results import make_results

from jobs.queries.formats import Answer, unique

PAIRED = (
    "SELECT a.prompt_id, a.e2e_s, b.e2e_s FROM generations a JOIN generations b "
    "USING (dataset, prompt_id, seed) WHERE a.configuration = 'baseline' "
    "AND b.configuration = 'fast' ORDER BY 1 LIMIT 3"
)


def test_columns_of_one_name_keep_their_own_numbers(tmp_path: Path, run: Run) -> None:
    results = make_results(tmp_path / "out", num_datasets=1, num_prompts=8, num_shards=2)
    named = PAIRED.replace("a.e2e_s, b.e2e_s", "a.e2e_s AS left_s, b.e2e_s AS right_s")
    _, wanted, _ = run("query", results.output, named, "--format", "jsonl")
    pairs = [[*json.loads(line).values()] for line in wanted.splitlines()]
    assert all(left > right for _, left, right in pairs), "`fast` is"

    _, lines, _ = run("query", results.output, PAIRED, "--format", "jsonl")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert list(rows[0]) == ["prompt_id", "e2e_s", "e2e_s_1"]
    assert [[*row.values()] for row in rows] == pairs
    _, text, _ = run("query", results.output, PAIRED, "--format", "csv")
    header, *cells = csv.reader(io.StringIO(text))
    assert header == ["prompt_id", "e2e_s", "e2e_s_1"]
    assert [[name, float(a), float(b)] for name, a, b in cells] == pairs
    _, table, _ = run("query", results.output, PAIRED)
    for _, left, right in pairs:
        assert f"{left}" in table
        assert f"{right}" in table


TYPES = {
    "INTERVAL '1 month 2 days'": ("1 month 2 days", "1 month 2 days"),
    "'a\\x00b'::BLOB": ("a\\x00b", "a\\x00b"),
    "(10::HUGEINT * 10000000000000000000000)": ("1" + "0" * 23, 10**23),
    "1.50::DECIMAL(10, 2)": ("1.50", 1.5),
    "'101'::BIT": ("101", "101"),
    "'4f8a1b1e-0000-4000-8000-000000000000'::UUID": 2 * ("4f8a1b1e-0000-4000-8000-000000000000",),
    "MAP {'k': 1}": ('{"k":1}', {"k": 1}),
    "{'a': 1, 'b': INTERVAL '1 day'}": ('{"a":1,"b":"1 day"}', {"a": 1, "b": "1 day"}),
    "[1.0, 'inf'::DOUBLE]": ("[1.0, null]", [1.0, None]),
    "'x'::ENUM('x', 'y')": ("x", "x"),
    "DATE 'infinity'": ("infinity", "infinity"),
    "TIMESTAMPTZ '2026-01-02 03:04:05+00'": 2 * ("2026-01-02 03:04:05+00",),
    "'inf'::DOUBLE": ("inf", None),
    "true": ("true", True),
    "NULL": ("", None),
    "'a \"quoted\" [text], with\nlines'": 2 * ('a "quoted" [text], with\nlines',),
}


@pytest.mark.parametrize("expression", TYPES)
def test_every_type_is_written_in_every_format(expression: str) -> None:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    answer = Answer(connection, f"SELECT {expression} AS v, 1 AS w -- a comment")
    as_csv, as_json = TYPES[expression]
    [_, [value, _]] = csv.reader(io.StringIO(answer.csv().decode()))
    assert value == as_csv
    lines, num_lost = answer.lines()
    assert json.loads(lines[0], parse_constant=pytest.fail) == {"v": as_json, "w": 1}
    assert num_lost == ("inf'" in expression)
    assert answer.table().row_count == 1


def test_order_is_the_query_s() -> None:
    answer = Answer(duckdb.connect(), "SELECT i, i FROM range(50000) t(i) ORDER BY i DESC")
    found = [json.loads(line) for line in answer.lines()[0]]
    assert found == [{"i": i, "i_1": i} for i in reversed(range(50_000))]


@pytest.mark.parametrize(
    "query", ["DESCRIBE SELECT 1 AS a", "SUMMARIZE SELECT 1 AS a", "FROM range(3)", "VALUES (1)"]
)
def test_other_ways_to_ask(query: str) -> None:
    answer = Answer(duckdb.connect(), query)
    assert len(answer.lines()[0]) == answer.arrow().num_rows > 0


def test_names_are_unique_and_none_of_the_others() -> None:
    assert unique(["a", "a", "a_1", "b", "a"]) == ["a", "a_2", "a_1", "b", "a_3"]
