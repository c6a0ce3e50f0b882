"""`optrial prepare`: artifacts from texts of every kind, and every bad input with one error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from program import Run

from jobs.__main__ import main
from jobs.data.demo_corpus import held_out_documents
from jobs.data.texts import Reading, read_corpus
from optim.errors import InputError
from optim.larosa.artifact import Artifact, Manifest
from optim.larosa.preparation import LarosaPreparation
from optim.model import fingerprint

Prepare = Callable[..., tuple[int, str, str]]

QUICK = (
    *("--sequences", "4", "--tokens", "64", "--held-out", "1"),
    *("--levels", "0.4", "--no-break-even"),
)
TEXTS = tiny_models.prompts(40, seed=3)
"""A token is a byte: some 1200, where the settings above want 320."""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


@pytest.fixture
def prepare(
    ray_cluster: None,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_model_folder: Path,
    texts: Path,
) -> Prepare:
    """Run `optrial prepare larosa` in this process: exit code, standard output and error.

    The current folder is the test's own.
    """
    monkeypatch.chdir(tmp_path)

    def call(*words: str, **changes: Path | str) -> tuple[int, str, str]:
        options = {"model": tiny_model_folder, "data": texts, "out": tmp_path / "made" / "artifact"}
        given = [w for key, value in (options | changes).items() for w in (f"--{key}", str(value))]
        return run("prepare", "larosa", *given, *QUICK, *words)

    return call


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- what is made --------------------------------------------------------------------------------


def test_an_artifact_end_to_end(
    ray_cluster: None, tmp_path: Path, tiny_model_folder: Path, texts: Path
) -> None:
    import ray

    out = tmp_path / "made" / "artifact"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs", "prepare", "larosa", "--model", str(tiny_model_folder)),
            *("--data", str(texts), "--out", str(out), *QUICK),
            *("--address", ray.get_runtime_context().gcs_address),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    artifact = Artifact.open(out)
    manifest = artifact.manifest
    assert manifest.input == fingerprint(str(tiny_model_folder))
    calibration = manifest.calibration
    assert calibration.source == str(texts)
    assert (calibration.num_sequences, calibration.sequence_length) == (4, 64)
    assert [level.sparsity for level in manifest.levels] == pytest.approx([0.4])
    assert manifest.break_even == []
    assert f"{out} is ready ({artifact.fingerprint[:12]})." in done.stdout
    assert f"optimizations: [{{larosa: {{artifact: {out}}}}}]" in one_line(done.stdout)
    assert "calibrating layer 3 of 3" in done.stdout, "it says what it is at"
    left = sorted(path.name for path in out.parent.iterdir())
    assert left == [out.name, f"{out.name}.recipe.json"], "something was left behind"


def test_every_option_reaches_the_artifact(prepare: Prepare, tmp_path: Path, texts: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join(TEXTS))
    code, _, err = prepare(
        *("--data", "more.txt", "--variant", "topk", "--span", "2", "--levels", "0.6"),
        *("--dtype", "bfloat16"),
        out="made",
    )
    assert code == 0, err
    manifest = Artifact.open(tmp_path / "made").manifest
    assert manifest.calibration.source == f"{texts}, {more}"
    assert (manifest.variant, manifest.span, manifest.dtype) == ("topk", 2, "bfloat16")
    assert [level.sparsity for level in manifest.levels] == pytest.approx([0.4, 0.6])


def test_the_column_of_the_texts_can_be_named(prepare: Prepare, tmp_path: Path) -> None:
    rows = [{"text": "", "answer": text} for text in TEXTS]
    data = jsonl(tmp_path / "answers.jsonl", rows)
    assert prepare("--column", "answer", data=data)[0] == 0
    assert prepare(out=tmp_path / "made" / "same")[0] == 0
    named, same = (Artifact.open(tmp_path / "made" / n).manifest for n in ("artifact", "same"))
    assert named.calibration.sha256 == same.calibration.sha256
    assert without_origin(named) == without_origin(same)


def without_origin(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(exclude={"calibration": {"source"}})


def test_the_help_lists_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["optrial", "prepare", "larosa", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    text = one_line(capsys.readouterr().out)
    for name, field in LarosaPreparation.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert one_line(field.description or "absent") in text
    for name in ("model", "data", "out", "column", "dtype", "device", "cpus", "gpus", "address"):
        assert f"--{name} " in text


# --- what is refused -----------------------------------------------------------------------------


def refused(prepare: Prepare, *expected: str, words: tuple[str, ...] = (), **changes: Any) -> None:
    """Exit code 2, one line of error that says each of `expected`, nothing written."""
    before = sorted(Path().rglob("*"))
    code, printed, err = prepare(*words, **changes)
    assert code == 2, err
    assert "Traceback" not in printed + err
    assert err.startswith("error:")
    assert err.count("\n") == 1
    for part in expected:
        assert part in err
    assert "is ready" not in printed
    assert sorted(Path().rglob("*")) == before, "something was written"


def test_a_column_that_is_not_there(prepare: Prepare, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [{"body": TEXTS[0], "title": "t"}])
    refused(prepare, "d.jsonl", "`bodi`", "`body`", "body, title", words=("--column", "bodi"),
            data=data)  # fmt: skip
    refused(prepare, "d.jsonl", "--column", "body, title", data=data)


def test_data_that_cannot_be_read(prepare: Prepare, tmp_path: Path) -> None:
    refused(prepare, "none.jsonl", "no such file", data=tmp_path / "none.jsonl")
    refused(prepare, "none.txt", "No such file", data=tmp_path / "none.txt")
    (tmp_path / "notes.md").write_text("notes")
    refused(prepare, "notes.md", ".jsonl", data=tmp_path / "notes.md")


def test_text_that_is_not_utf8(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9 ".encode("latin-1") * 400)
    refused(prepare, "latin.txt", "not UTF-8", "byte 3", data=path)


def test_a_line_that_is_not_json(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text": bad}\n')
    refused(prepare, "bad.jsonl", "line 2", "not valid JSON", data=path)


def test_text_that_is_too_short(prepare: Prepare, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "short.jsonl", [{"text": "short"}])
    refused(prepare, "too short", "6 tokens", "--data", data=data)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--span", "-1"), ("--span", "0, got -1")),
        (("--tokens", "3"), ("--tokens", "16, got 3")),
        (("--levels", "1.5"), ("--levels", "got 1.5")),
    ],
    ids=lambda value: value[0],
)
def test_settings_out_of_range(
    prepare: Prepare, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    refused(prepare, *expected, "optrial prepare larosa --help", words=words)


def test_a_folder_that_is_not_empty(prepare: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "full" / "artifact"
    out.mkdir(parents=True)
    (out / "mine").write_text("kept")
    refused(prepare, str(out), "not empty", out=out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert [path.name for path in out.parent.iterdir()] == ["artifact"]


def test_more_than_the_cluster_has(prepare: Prepare) -> None:
    refused(prepare, "--cpus", "5 CPUs", "has 4", words=("--cpus", "5"))
    refused(prepare, "--gpus", "1 GPUs", "has 0", words=("--gpus", "1"))


def test_a_model_that_is_none(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(prepare, "not a model", "config.json", model=tmp_path / "empty")
    refused(prepare, "not a model", "no such folder", model=tmp_path / "none")


# --- the texts -----------------------------------------------------------------------------------


def test_a_text_file_is_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "notes.TXT"
    path.write_bytes("a line\nand its next\n\nüber\n\n \n\nWindows\r\n\r\nlast\n".encode())
    assert list(read_corpus(str(path))) == ["a line\nand its next", "über", "Windows", "last\n"]


def test_rows_are_their_text_else_prompt_and_target(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "prompt": "p", "target": "t"}, {"text": ""}, {"text": 5}, {"text": "ä\n\nb"},
    ]  # fmt: skip
    assert list(read_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))) == ["a", "ä\n\nb"]
    rows = [{"prompt": "1 + 1 =", "target": " 2"}, {"prompt": "alone", "target": None}]
    path = str(jsonl(tmp_path / "b.jsonl", rows))
    assert list(read_corpus(path)) == ["1 + 1 = 2", "alone"]
    assert list(read_corpus(path, Reading("target"))) == [" 2"]
    assert list(read_corpus(path, Reading("prompt"))) == ["1 + 1 =", "alone"]


def test_tables_are_read_as_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('id,text,other\n1,"a, b",x\n2,,y\n3,007,z\n')
    assert list(read_corpus(str(path))) == ["a, b", "007"]
    assert list(read_corpus(str(path), Reading("other"))) == ["x", "y", "z"]
    pq.write_table(pa.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), tmp_path / "t.parquet")
    assert list(read_corpus(str(tmp_path / "t.parquet"))) == ["a", "b"]


def test_a_bad_row_stops_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("text,other\na,b\nalone\n")
    texts = read_corpus(str(path))
    assert next(texts) == "a"
    with pytest.raises(InputError, match=r"table\.csv.*line 3: expected 2 cells, got 1"):
        next(texts)


def test_the_demos_texts_hold_nothing_of_the_held_out_ones() -> None:
    whole = "\0".join(read_corpus("demo/training"))
    assert len(whole) > 1_000_000
    held_out = [document.text for document in held_out_documents()]
    assert len(held_out) > 100
    assert not [text for text in held_out if text in whole]
