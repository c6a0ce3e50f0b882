"""`optrial replay`: a row made again equals what is stored, and says so where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from cluster.plan import Configuration, Dataset, Generation, ModelSource, Plan
from cluster.results.results import MANIFEST, Results, write_prompts
from cluster.worker.worker import Worker
from jobs.cli.replay import register
from jobs.trial.evaluate import PACKAGES
from jobs.trial.replay import Row, _version, replay
from optim.errors import InputError
from optim.model import fingerprint

PROMPTS = ["one", "two and more", "three " * 4, "four", "five times", "six"]
app = typer.Typer()
register(app)


@app.callback()
def program() -> None:
    """Commands."""


def make(folder: Path, model: Path, **changes: Any) -> Results:
    plan = Plan(
        run_id="run",
        output=str(folder / "out"),
        model=ModelSource(path=str(model), fingerprint=fingerprint(str(model))),
        configurations=(
            Configuration(name="one", batch_size=1, fingerprint="1"),
            Configuration(name="three", batch_size=3, fingerprint="3", cache="static", vs="one"),
        ),
        datasets=(
            Dataset(name="d", num_prompts=7, first_row=0, num_shards=2, fingerprint="f",
                    has_targets=True),
            Dataset(name="e", num_prompts=2, first_row=7, num_shards=1, fingerprint="g"),
        ),
        seeds=(3, 4),
        generation=Generation(max_new_tokens=12, temperature=0.9, completion_ids=True),
    ).model_copy(update=changes)  # fmt: skip
    results = Results(plan.output)
    versions = {name: _version(name) for name in PACKAGES}
    manifest = {"plan": plan.model_dump(mode="json"), "versions": versions}
    results.store.create(MANIFEST, json.dumps(manifest).encode())
    rows = [
        {"dataset": "d", "row": i, "prompt_id": f"p{i}", "prompt": text, "is_chat": False,
         "target": " end", "choices": [" a", " bc"] if i == 1 else None}
        for i, text in enumerate(PROMPTS)
    ]  # fmt: skip
    rows.append({"dataset": "d", "row": 6, "prompt_id": "line-7", "error": "line 7: bad"})
    rows += [
        {"dataset": "e", "row": i, "prompt_id": f"q{i}", "prompt": "so", "is_chat": False}
        for i in range(2)
    ]
    write_prompts(results.store, rows)
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    for block in plan.blocks():
        worker.run(block.model_dump_json(), [cell.key for cell in block.cells])
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Results:
    return make(tmp_path_factory.mktemp("replay"), tiny_model_folder)


def tamper(results: Results, folder: Path, **columns: Any) -> Results:
    """A copy of the trial in which columns of the rows of p1 have other values."""
    copy = Results(str(folder / "copy"))
    for name in (MANIFEST, "inputs/prompts.parquet"):
        copy.store.create(name, results.store.read(name))
    for kind in ("generations", "likelihoods"):
        for part in results.parts(kind):
            data = results.store.read(part.name)
            table = pq.read_table(pa.BufferReader(data))
            rows = table.to_pylist()
            for row in rows:
                if row["prompt_id"] == "p1":
                    row |= {name: value for name, value in columns.items() if name in row}
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, table.schema), sink)
            copy.store.create(part.name, sink.getvalue().to_pybytes())
    return copy


@pytest.mark.parametrize("configuration", ["one", "three"])
@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("prompt_id", ["p0", "p5", "line-7"])
def test_a_row_is_made_again(
    results: Results, configuration: str, seed: int, prompt_id: str
) -> None:
    found = replay(results, Row(configuration, "d", prompt_id, seed))
    (stored,), (made,) = found.stored, found.made
    assert found.is_equal, found.differences
    assert made.get("completion_text") == stored["completion_text"]
    assert made.get("completion_ids") == stored["completion_ids"]
    assert stored["seed"] == seed
    assert (stored["error"] is not None) == (prompt_id == "line-7")
    assert found.circumstances == []


def test_likelihoods_are_made_again(results: Results) -> None:
    found = replay(results, Row("three", "d", "p1"))
    assert found.is_equal
    assert [row["candidate"] for row in found.made] == [-1, 0, 1]
    assert all(row["nats"] > 0 for row in found.made)


@pytest.mark.parametrize("shared", ["seeds", "configurations"])
def test_rows_that_shared_prompts(tmp_path: Path, tiny_model_folder: Path, shared: str) -> None:
    results = make(tmp_path, tiny_model_folder, share_prompts=shared)
    for seed in (3, 4):
        assert replay(results, Row("three", "d", "p2", seed)).is_equal


def test_rows_that_were_added_later(tmp_path: Path, tiny_model_folder: Path) -> None:
    results = make(tmp_path, tiny_model_folder)
    first = results.plan()
    added = Dataset(name="d+1", num_prompts=1, first_row=9, num_shards=1, fingerprint="h")
    plan = first.model_copy(
        update={"seeds": (3, 4, 5), "seed_arms": {5: ("three",)},
                "datasets": (*first.datasets, added)}
    )  # fmt: skip
    row = {"dataset": "d+1", "row": 0, "prompt_id": "r0", "prompt": "last", "is_chat": False}
    assert results.extend(plan, [row])
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    done = results.committed_keys()
    for block in plan.blocks():
        keys = [cell.key for cell in block.cells if cell.key not in done]
        worker.run(block.model_dump_json(), keys)
    for wanted in (Row("three", "d", "p1", 5), Row("one", "d+1", "r0", 4)):
        assert replay(results, wanted).is_equal
    with pytest.raises(InputError, match="does not run this row"):
        replay(results, Row("one", "d", "p1", 5))


def test_what_differs_is_named(results: Results, tmp_path: Path) -> None:
    (row,) = replay(results, Row("one", "d", "p1", 3)).stored
    text = row["completion_text"]
    copy = tamper(results, tmp_path, completion_text=f"{text[:3]}?{text[4:]}", nats=1.5)
    found = replay(copy, Row("one", "d", "p1", 3))
    assert [each.what for each in found.differences] == ["completion_text"]
    assert found.differences[0].now == text
    likelihoods = replay(copy, Row("one", "d", "p1"))
    assert [each.what for each in likelihoods.differences] == [
        f"candidate {c}: nats" for c in (-1, 0, 1)
    ]
    assert replay(copy, Row("one", "d", "p0", 3)).is_equal, "the other rows are as they were"


def test_circumstances_are_named(results: Results, tmp_path: Path) -> None:
    copy = tamper(results, tmp_path, device="NVIDIA H100")
    manifest = copy.manifest()
    manifest["versions"]["torch"] = "1.0"
    manifest |= {"python": "2.7", "hardware": {"processor": "abacus", "workers": [{"threads": 9}]}}
    manifest["plan"]["model"]["fingerprint"] = "another"
    copy.store.replace(MANIFEST, json.dumps(manifest).encode())
    found = {
        each.what: each.stored for each in replay(copy, Row("one", "d", "p1", 3)).circumstances
    }
    assert found == {
        "device": "NVIDIA H100", "processor": "abacus", "threads": 9, "python": "2.7",
        "version of torch": "1.0", "model's files": "another",
    }  # fmt: skip


def test_command(results: Results, tmp_path: Path) -> None:
    call = CliRunner().invoke
    done = call(app, ["replay", results.output, "three", "d", "p0", "4"])
    assert done.exit_code == 0, done.output
    assert "Equal to what is stored" in done.output
    done = call(app, ["replay", results.output, "three", "d", "p1", "--likelihoods", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["equal"]
    copy = tamper(results, tmp_path, completion_text="[bold]else")
    done = call(app, ["replay", copy.output, "three", "d", "p1", "4"])
    assert done.exit_code == 1
    assert "completion_text: from character 0 on" in done.output
    assert "[bold]else" in done.output
    assert "Machine, versions, code and model are those that are recorded." in done.output


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row("on", "d", "p0", 3), "Did you mean `one`"),
        (Row("one", "f", "p0", 3), "DATASET: there is no `f`.*There are: d, e"),
        (Row("one", "d", "p9x", 3), "PROMPT_ID: there is no `p9x`"),
        (Row("one", "d", "p0", 5), "SEED: there is no `5`"),
        (Row("one", "e", "q0"), "`e` has no likelihoods. Give a seed: 3, 4"),
        (Row("one", "d", "line-7"), "nothing of this prompt to score"),
    ],
)
def test_what_is_no_row(results: Results, row: Row, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        replay(results, row)


def test_a_row_that_was_not_run(results: Results, tmp_path: Path) -> None:
    copy = Results(str(tmp_path / "new"))
    for name in (MANIFEST, "inputs/prompts.parquet"):
        copy.store.create(name, results.store.read(name))
    with pytest.raises(InputError, match="has not been run yet"):
        replay(copy, Row("one", "d", "p0", 3))


def test_several_seeds_need_one(results: Results) -> None:
    done = CliRunner().invoke(app, ["replay", results.output, "one", "d", "p0"])
    assert isinstance(done.exception, InputError)
    assert "Give one of 3, 4, or --likelihoods" in str(done.exception)
