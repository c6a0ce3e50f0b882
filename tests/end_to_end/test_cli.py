"""The command line: real trials end to end, and every bad input with one clear error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import pyarrow.parquet as pq
import pytest
import yaml
from program import Run

from cluster.results.results import Results
from cluster.results.verification import faults_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def trial(tmp_path: Path, tiny_model_folder: Path) -> Callable[..., Path]:
    """Write a small spec and its prompts; changes are top-level keys of the spec."""

    def write(lines: list[str] | None = None, **changes: Any) -> Path:
        if lines is None:
            lines = [
                json.dumps({"id": f"p{i}", "prompt": f"prompt {i}", "target": " x"})
                for i in range(16)
            ]
        data = tmp_path / "prompts.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
        spec = {
            "model": str(tiny_model_folder),
            "datasets": [{"path": str(data), "shards": 8}],
            "configurations": [{"name": "baseline", "batch_size": 2}],
            "seeds": 2,
            "generation": {"max_new_tokens": 6, "temperature": 0.8},
            "output": str(tmp_path / "out"),
        } | changes
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}))
        return path

    return write


def one_line(text: str) -> str:
    return " ".join(text.split())


def refused(run: Run, spec: Path, *expected: str) -> None:
    """Exit code 2, one error that says each of `expected`, no traceback, nothing written."""
    code, _, err = run("evaluate", spec)
    assert code == 2, err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    for part in expected:
        assert part in one_line(err)
    assert not (spec.parent / "out").exists(), "something was half-written"


def test_a_trial_end_to_end(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    spec = trial()
    code, out, err = run("evaluate", spec)
    assert code == 0, err
    assert "baseline.repeat" in out
    output = tmp_path / "out"
    results = Results(str(output))
    table = results.read("generations").to_pylist()
    assert len(table) == 16 * 2 * 2
    texts = {
        name: {(r["prompt_id"], r["seed"]): r["completion_text"] for r in table
               if r["configuration"] == name}
        for name in ("baseline", "baseline.repeat")
    }  # fmt: skip
    assert texts["baseline"] == texts["baseline.repeat"], "the A/A pair"
    names = {path.name for path in output.iterdir()}
    assert {
        "manifest.json",
        "inputs",
        "generations",
        "tables",
        "progress.json",
        "_SUCCESS",
    } <= names
    summary = pq.read_table(output / "tables" / "summary.parquet")
    assert set(summary["configuration"].to_pylist()) == {"baseline", "baseline.repeat"}
    assert json.loads((output / "progress.json").read_text())["cells_done"] == 16 * 2 + 16

    code, out, _ = run("evaluate", spec)
    assert code == 0
    assert "Nothing to do" in out
    code, out, _ = run("verify", output)
    assert code == 0
    assert out.startswith("48 parts, 0 faults\n")
    code, out, _ = run("report", output)
    assert code == 0
    assert "baseline.repeat" in out
    code, out, _ = run("report", output, "--json")
    assert code == 0
    assert json.loads(out)
    sql = "SELECT count(*) AS n FROM generations JOIN prompts USING (dataset, prompt_id)"
    code, out, _ = run("query", output, sql)
    assert code == 0
    assert "64" in out
    code, out, _ = run("score", output, "--scorer", "contains")
    assert code == 0
    assert "contains" in out


def test_row_faults_become_error_rows(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    good = [json.dumps({"id": f"p{i}", "prompt": f"prompt {i}"}) for i in range(8)]
    spec = trial(
        [
            *good,
            "{bad json",
            json.dumps({"id": "null", "prompt": None}),
            json.dumps({"id": "list", "prompt": ["a"]}),
            json.dumps({"id": "long", "prompt": "y" * 1_000_000}),
            json.dumps({"id": "nul", "prompt": "a\0b"}),
            '{"id": "surrogate", "prompt": "a\\ud800b"}',
            json.dumps({"id": "p0", "prompt": "again"}),
        ],
        max_row_errors=0.5,
    )
    code, out, err = run("evaluate", spec)
    assert code == 0, err
    assert "4 rows failed (1 prompt; baseline, baseline.repeat): line 9: not valid JSON" in (
        one_line(out)
    )
    table = Results(str(tmp_path / "out")).read("generations").to_pylist()
    errors = {r["prompt_id"]: r["error"] for r in table if r["error"]}
    assert set(errors) == {"line-9", "null", "list", "long", "surrogate", "p0-2"}
    assert "line 9" in errors["line-9"]
    assert "1000000 tokens" in errors["long"]
    assert "context window is 256" in errors["long"]
    fine = {r["prompt_id"] for r in table if r["error"] is None}
    assert fine == {f"p{i}" for i in range(8)} | {"nul"}
    assert len(table) == 15 * 2 * 2
    assert run("evaluate", spec, "--max-row-errors", "100")[0] == 0
    # Counted over the trial: a job that is tried again must not turn green by running nothing.
    code, out, _ = run("evaluate", spec, "--max-row-errors", "3")
    assert code == 1
    assert "24 rows have an error, and 3 may" in one_line(out)
    code, out, _ = run("evaluate", spec, "--max-row-errors", "10%")
    assert code == 1
    assert "baseline lost 12 of 30 rows, and 10 % may be, and 1 other configuration" in (
        one_line(out)
    )
    assert (
        "expected a number of rows or a share"
        in run("evaluate", spec, "--max-row-errors", "few")[2]
    )
    figures.note(
        9, "rows", "exit code 0; each bad row has its error; all good rows are there",
        bad_rows=len(errors), good_rows=len(fine),
    )  # fmt: skip


def test_a_dataset_of_faulty_rows_is_refused(run: Run, trial: Callable[..., Path]) -> None:
    chats = [{"messages": [{"from": "human", "value": f"hi {i}"}]} for i in range(4)]
    lines = [json.dumps(row) for row in chats]
    spec = trial(lines)
    said = "none of its 4 rows can be run; line 1: message 1 of `messages` has `from` and `value`"
    refused(run, spec, "datasets.prompts", said, "rename them", "Mend the rows")
    assert run("plan", spec, "--pilot-prompts", "0")[0] == 2
    good = [json.dumps({"prompt": f"p{i}"}) for i in range(9)]
    refused(
        run,
        trial([*good, '{"prompt": null}']),
        "1 of 10 rows cannot be run, and 5 % may; line 10: `prompt` is no text but null",
        "or allow more by `max_row_errors`",
    )


def test_unknown_key(run: Run, trial: Callable[..., Path]) -> None:
    refused(run, trial(sedes=3), "trial.yaml", "sedes", "seeds")


def test_wrong_type(run: Run, trial: Callable[..., Path]) -> None:
    refused(run, trial(seeds="many"), "trial.yaml", "seeds")


def test_missing_spec(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path / "none.yaml", "none.yaml", "no such file")


def test_missing_dataset(run: Run, trial: Callable[..., Path]) -> None:
    refused(run, trial(datasets=["./none.jsonl"]), "none.jsonl")


def test_empty_dataset(run: Run, trial: Callable[..., Path]) -> None:
    refused(run, trial([""]), "prompts.jsonl")


def test_missing_column(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    dataset = {"path": str(tmp_path / "prompts.jsonl"), "prompt": "promt"}
    refused(run, trial(datasets=[dataset]), "promt", "prompt")


def test_not_a_model(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    refused(run, trial(model=str(tmp_path)), "not a model", "config.json")


def test_broken_weights(run: Run, trial: Callable[..., Path], tiny_model_folder: Path) -> None:
    folder = trial().parent / "broken"
    folder.mkdir()
    for file in tiny_model_folder.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:200] if file.suffix == ".safetensors" else data)
    refused(run, trial(model=str(folder)), "cannot be loaded")


def test_model_that_does_not_fit(
    run: Run, trial: Callable[..., Path], tiny_model_folder: Path
) -> None:
    folder = trial().parent / "huge"
    folder.mkdir()
    for file in tiny_model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 100}
    (folder / "config.json").write_text(json.dumps(config))
    refused(run, trial(model=str(folder)), "GB", "one device")


def test_more_gpus_than_there_are(run: Run, trial: Callable[..., Path]) -> None:
    workers = {"count": 1, "gpus": 8}
    refused(run, trial(workers=workers), "8 GPUs", "has 0")


def test_unknown_cache(run: Run, trial: Callable[..., Path]) -> None:
    configurations = [{"name": "a", "cache": "sttic"}]
    refused(run, trial(configurations=configurations), "sttic", "dynamic")


def test_output_of_another_trial(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    assert run("evaluate", trial(seeds=1))[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    changed = trial(seeds=1, generation={"max_new_tokens": 7, "temperature": 0.8})
    code, _, err = run("evaluate", changed)
    assert code == 2
    assert "another trial" in one_line(err)
    figures.note(14, "changed", "exit code 2, with the difference", code=code)
    assert "max_new_tokens: 6 -> 7" in one_line(err)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_output_that_is_something_else(
    run: Run, trial: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    code, _, err = run("evaluate", trial(output=str(tmp_path / "notes")))
    assert code == 2
    assert "not the results of a trial" in one_line(err)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_unwritable_output(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run, trial(output=str(tmp_path / "file" / "out")), "cannot be written")


def test_results_that_are_none(run: Run, tmp_path: Path) -> None:
    for command in (["report"], ["verify"], ["score"]):
        code, _, err = run(*command, tmp_path)
        assert code == 2
        assert "not a results folder" in one_line(err)
    assert run("query", tmp_path, "SELECT 1")[0] == 2


def test_bad_sql(run: Run, trial: Callable[..., Path], tmp_path: Path) -> None:
    assert run("evaluate", trial(seeds=1))[0] == 0
    code, _, err = run("query", tmp_path / "out", "SELECT nothing FROM generations")
    assert code == 2
    assert "nothing" in err
    code, _, err = run("query", tmp_path / "out", "SELECT * FROM read_text('/etc/hostname')")
    assert code == 2


def test_schema_is_json(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert "configurations" in json.loads(out)["properties"]


def test_the_program_itself_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "evaluate", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_trial_is_resumed(
    run: Run, trial: Callable[..., Path], tmp_path: Path, stop: signal.Signals
) -> None:
    """Ctrl-C (to the whole process group, as a terminal sends it) keeps what is committed."""
    spec = trial(seeds=20)
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that; a
    # signal that is handled here is the default there, as for what a terminal starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "evaluate", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    parts = tmp_path / "out" / "generations"
    deadline = time.monotonic() + 120
    while len(list(parts.rglob("part-*"))) < 20:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asked = time.monotonic()
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)
    else:
        process.send_signal(stop)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "the same command goes on from there" in one_line(out)
    assert time.monotonic() - asked < 30
    results = Results(str(tmp_path / "out"))
    committed = results.committed_keys()
    assert 20 <= len(committed) < 20 * 16
    mtimes = {p: p.stat().st_mtime_ns for p in parts.rglob("part-*")}

    code, out, err = run("evaluate", spec)
    assert code == 0, err
    assert "resuming" in out
    assert list(faults_of(results)) == []
    assert {p: p.stat().st_mtime_ns for p in mtimes} == mtimes, "nothing was run again"
