"""No secret is written: not to the manifest, logs, rows, tables or the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from program import Run

import optim.model
from jobs.spec.trial_spec import TrialSpec
from jobs.trial.planning import make_plan
from optim.errors import InputError

ENVIRONMENT = {
    "HF_TOKEN": "hf_ThisIsNoTokenAtAll",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/notakey",
    "MY_DB_PASSWORD": "correct-horse-battery",
    "SERVICE_API_KEY": "sk-0123456789abcdef",
}


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def contents(folder: Path) -> dict[str, bytes]:
    """File -> its bytes, and for Parquet what they hold."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(pa.BufferReader(data))
            assert table.num_rows or "likelihoods" in str(path)
            data += f"{table.to_pylist()}{table.schema.metadata}".encode()
        found[str(path.relative_to(folder))] = data
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_that_a_trial_writes_holds_a_secret(
    run: Run, tmp_path: Path, tiny_model_folder: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": f"p{i}", "prompt": f"prompt {i}", "target": " x"} for i in range(8)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": None}]))
    spec = {
        "max_row_errors": 0.2,
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 2}],
        "configurations": [{"name": "baseline"}, {"name": "other", "batch_size": 2,
                                                  "vs": "baseline"}],
        "generation": {"max_new_tokens": 4},
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, out, err = run("evaluate", path)
    assert code == 0, err
    page, text = tmp_path / "page.html", tmp_path / "report.md"
    assert run("report", tmp_path / "out", "--html", page, "--markdown", text)[0] == 0
    _, as_json, _ = run("report", tmp_path / "out", "--json")
    written = contents(tmp_path / "out") | {
        "page": page.read_bytes(), "markdown": text.read_bytes(),
        "screen": (out + err + as_json).encode(),
    }  # fmt: skip
    names = set(written)
    assert {"manifest.json", "progress.json", "inputs/prompts.parquet"} <= names
    assert any(name.startswith("_logs/") for name in names)
    assert any(name.startswith("generations/") for name in names)
    for name, data in written.items():
        for variable, value in ENVIRONMENT.items():
            assert value.encode() not in data, f"{variable} is in {name}"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"output": "s3://AKIA12345678:topsecret99@bucket/run"}, "output"),
        ({"model": "https://me:topsecret99@host/model"}, "model.path"),
        ({"datasets": ["s3://key:topsecret99@bucket/x.jsonl"]}, "datasets[0].path"),
        ({"datasets": ["https://host/x.jsonl?X-Amz-Signature=topsecret99"]}, "datasets[0].path"),
        (
            {"configurations": [{"name": "base"}, {"name": "other", "optimizations":
             [{"mine": {"url": "http://u:topsecret99@host"}}], "vs": "base"}]},
            "configurations[1].optimizations[0].settings.url",
        ),
    ],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_without_repeating_it(
    run: Run, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "one"}) + "\n")
    spec = {"model": "demo", "datasets": [str(prompts)], "output": str(tmp_path / "out")} | change
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, out, err = run("evaluate", path)
    assert code == 2
    said = " ".join((out + err).split())
    assert f"trial.yaml: {field}: holds" in said
    assert "environment" in said
    assert "topsecret99" not in said
    assert not (tmp_path / "out").exists()


def test_what_an_artifact_is_made_of_holds_no_password(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "prepare", "larosa", "--model", "demo", "--data", "s3://key:topsecret99@bucket/x.jsonl",
        "--out", tmp_path / "artifact",
    )  # fmt: skip
    assert code == 2
    assert "--data[0]: holds a user name and a password" in " ".join(err.split())
    assert "topsecret99" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_the_value_of_a_secret_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "one"}) + "\n")
    spec = TrialSpec.model_validate(
        {
            "model": "demo",
            "datasets": [{"path": str(prompts), "prompt": "Key sk-0123456789abcdef: {prompt}"}],
            "output": str(tmp_path / "out"),
        }
    )
    with pytest.raises(InputError, match="variable SERVICE_API_KEY") as caught:
        make_plan(spec, "trial.yaml")
    assert "sk-0123456789abcdef" not in str(caught.value)
