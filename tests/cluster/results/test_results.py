"""Commit, read and verify: what is published is whole, once, and told apart from damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.plan import Cell, Configuration, Dataset, Generation, ModelSource, Plan
from cluster.results.receipts import Receipts
from cluster.results.results import MANIFEST, PROMPTS_FILE, Results, part_name, write_prompts
from cluster.results.schema import deterministic_columns, schema
from cluster.results.verification import faults_of
from optim.errors import InputError


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        run_id="r",
        output=str(tmp_path / "out"),
        model=ModelSource(path="demo"),
        configurations=(Configuration(name="007", fingerprint="x"),),
        datasets=(Dataset(name="d", num_prompts=5, first_row=0, num_shards=2, fingerprint="f"),),
        seeds=(0, 1),
        generation=Generation(),
    )


@pytest.fixture
def results(plan: Plan) -> Results:
    made = Results(plan.output)
    manifest = {"plan": plan.model_dump(mode="json")}
    made.store.create(MANIFEST, json.dumps(manifest).encode())
    prompt = {"dataset": "d", "prompt": "x", "is_chat": False}
    write_prompts(made.store, [prompt | {"row": i, "prompt_id": f"p{i}"} for i in range(5)])
    return made


def rows(cell: Cell, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"dataset": "d", "prompt_id": f"p{i}", "seed": cell.seed, "cell": cell.key} | columns
        for i in range(cell.start, cell.stop)
    ]


def commit_all(plan: Plan, results: Results) -> list[Cell]:
    cells = [cell for block in plan.blocks() for cell in block.cells]
    for cell in cells:
        results.commit(cell, rows(cell, completion_text="é\0🙂"), {"wall_s": 1.5})
    return cells


def test_shards_cut_every_row_once() -> None:
    dataset = Dataset(name="d", num_prompts=103, first_row=0, num_shards=8, fingerprint="")
    ranges = [dataset.rows(shard) for shard in range(8)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(103))
    assert {stop - start for start, stop in ranges} == {12, 13}


def test_cell_keys_name_the_work(plan: Plan) -> None:
    keys = {cell.key for block in plan.blocks() for cell in block.cells}
    assert len(keys) == 4
    again = plan.model_copy(update={"output": "elsewhere", "run_id": "other"})
    assert {cell.key for block in again.blocks() for cell in block.cells} == keys
    changed = plan.model_copy(
        update={"configurations": (Configuration(name="007", fingerprint="y"),)}
    )
    assert not keys & {cell.key for block in changed.blocks() for cell in block.cells}


def test_what_is_committed_reads_back(plan: Plan, results: Results) -> None:
    cells = commit_all(plan, results)
    table = results.read("generations")
    assert len(table) == 10
    assert set(table["configuration"].to_pylist()) == {"007"}, "a name of digits stays a string"
    assert set(table["completion_text"].to_pylist()) == {"é\0🙂"}
    assert table.schema.field("token_times_s").type == pa.list_(pa.float32())
    assert results.committed_keys() == {cell.key for cell in cells}
    assert [fact["wall_s"] for fact in results.cells()] == [1.5] * 4
    assert list(faults_of(results)) == []


def test_no_part_is_an_empty_table(results: Results) -> None:
    assert results.read("generations").num_rows == 0
    assert results.read("generations", ["seed"]).column_names == ["configuration", "seed"]
    assert results.cells() == []


def test_first_commit_wins(plan: Plan, results: Results) -> None:
    cell = next(plan.blocks()).cells[0]
    first = results.commit(cell, rows(cell, completion_text="one"), {})
    second = results.commit(cell, rows(cell, completion_text="two"), {})
    assert not first.is_duplicate
    assert second.is_duplicate
    assert set(results.read("generations")["completion_text"].to_pylist()) == {"one"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "footer"])
def test_verify_finds_damage(plan: Plan, results: Results, damage: str) -> None:
    cells = commit_all(plan, results)
    path = Path(results.store.path(part_name(cells[1])))
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "flipped":
        data[len(data) // 3] ^= 0x10
    else:
        data = data[:-8]
    path.write_bytes(data)
    names = {fault.name for fault in faults_of(results)}
    assert names == {part_name(cells[1])}


def test_verify_finds_what_is_missing_and_what_does_not_belong(
    plan: Plan, results: Results
) -> None:
    cells = commit_all(plan, results)
    results.store.delete(part_name(cells[0]))
    stranger = cells[1].model_copy(update={"key": "0123456789abcdef"})
    results.commit(stranger, rows(stranger), {})
    problems = {fault.name: fault.problem for fault in faults_of(results)}
    assert set(problems) == {part_name(cells[0]), part_name(stranger)}
    assert "missing" in problems[part_name(cells[0])]


def test_lost_receipt_is_rebuilt_from_a_sound_part(plan: Plan, results: Results) -> None:
    cells = commit_all(plan, results)
    [name] = Receipts(results.store).names(cells[0].key)
    before = results.store.read(name)
    results.store.delete(name)
    assert list(faults_of(results)) == []
    assert results.store.read(name) == before


def test_damage_without_a_receipt_is_found_by_page_checksums(plan: Plan, results: Results) -> None:
    cells = commit_all(plan, results)
    results.store.delete(*Receipts(results.store).names(cells[0].key))
    path = Path(results.store.path(part_name(cells[0])))
    data = bytearray(path.read_bytes())
    data[30] ^= 0x01
    path.write_bytes(data)
    assert {fault.name for fault in faults_of(results)} == {part_name(cells[0])}


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a results folder"):
        Results(str(tmp_path)).manifest()
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Results(str(tmp_path)).manifest()


def test_a_plan_that_cannot_be_read_is_named_with_its_mend(results: Results) -> None:
    def refused(name: str, problem: str) -> None:
        with pytest.raises(InputError, match=problem) as raised:
            results.plan()
        assert raised.value.source == results.store.path(name)
        assert raised.value.mend is not None

    manifest = json.loads(results.store.read(MANIFEST))
    plan = manifest["plan"]
    for changed, field in (({"newer": 1}, "plan.newer"), ({"seeds": ["x"]}, "plan.seeds.0")):
        manifest["plan"] = plan | changed
        results.store.replace(MANIFEST, json.dumps(manifest).encode())
        refused(MANIFEST, f"{field}: not a plan of this version")
    results.store.replace(MANIFEST, json.dumps(manifest | {"plan": plan}).encode())
    for text, problem in (("{", "not valid JSON"), ("[]", "not a plan"), ("{}", "not a plan")):
        results.store.replace("extensions/0001.json", text.encode())
        refused("extensions/0001.json", problem)
    results.store.replace("extensions/0001.json", json.dumps(plan)[:-20].encode())
    refused("extensions/0001.json", "not valid JSON")


def test_no_flipped_bit_makes_other_prompts(results: Results) -> None:
    path = Path(results.store.path(PROMPTS_FILE))
    data, before = path.read_bytes(), results.prompts()
    num_refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = results.prompts()
        except InputError as error:
            num_refused += error.source == str(path) and error.field == "output"
            continue
        assert found.equals(before), f"byte {position}"
    assert num_refused > 100


def test_absent_prompts_are_an_error(results: Results) -> None:
    results.store.delete(PROMPTS_FILE)
    with pytest.raises(InputError, match="are not there") as raised:
        results.prompts()
    assert raised.value.field == "output", "no cell is to blame"
    assert [fault.name for fault in faults_of(results) if "prompts" in fault.name] == [PROMPTS_FILE]


def test_prompts_that_were_added_must_be_there(plan: Plan, results: Results) -> None:
    added = plan.datasets[0].model_copy(
        update={"name": "d+1", "num_prompts": 1, "num_shards": 1, "first_row": 5}
    )
    larger = plan.model_copy(update={"datasets": (*plan.datasets, added)})
    row = {"dataset": "d+1", "row": 0, "prompt_id": "q", "prompt": "x", "is_chat": False}
    assert results.extend(larger, [row])
    more = larger.model_copy(update={"seeds": (0, 1, 2)})
    assert results.extend(more, [])
    main, file = results.prompt_files()
    assert main == PROMPTS_FILE
    assert len(results.prompts()) == 6
    results.store.delete(file)
    with pytest.raises(InputError, match="are not there"):
        results.prompts()
    assert file in [fault.name for fault in faults_of(results)]


def test_prompts_keep_their_schema_where_columns_are_empty(results: Results) -> None:
    row = {"dataset": "d", "row": 0, "prompt_id": "p", "prompt": "x", "is_chat": False}
    write_prompts(results.store, [row])
    table = results.prompts()
    assert table.schema.field("choices").type == pa.list_(pa.string())
    assert table.schema.equals(schema("prompts"))


def test_parts_carry_meaning_and_determinism_of_columns(plan: Plan, results: Results) -> None:
    cell = commit_all(plan, results)[0]
    stored = pq.read_schema(results.store.path(part_name(cell)))
    marked = [f.name for f in stored if f.metadata[b"deterministic"] == b"true"]
    assert marked == deterministic_columns("generations")
    assert all(field.metadata[b"meaning"] for field in stored)
    assert "configuration" not in stored.names, "the partition column is not repeated"
