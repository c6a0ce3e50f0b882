"""An adapter beside weights is refused wherever a model is read, before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import yaml
from program import Run

from optim.errors import InputError
from optim.model import fingerprint, load, load_tokenizer
from optim.registry import optimization

CONFIG = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(tiny_model_folder, made)
    (made / "adapter_config.json").write_text(json.dumps(CONFIG))
    return made


def refused(run: Run, *words: str | Path) -> str:
    """Exit code 2 and one sentence; what it says."""
    code, out, err = run(*words)
    assert code == 2, err
    assert "Traceback" not in out + err
    assert err.count("error:") == 1
    return " ".join(err.split())


@pytest.mark.parametrize("read", [load, load_tokenizer, fingerprint])
def test_whole_weights_with_an_adapter(folder: Path, read: object) -> None:
    with pytest.raises(InputError) as caught:
        read(str(folder))  # type: ignore[operator]
    assert str(folder / "adapter_config.json") in str(caught.value)
    assert "merge_and_unload" in str(caught.value)
    (folder / "adapter_config.json").unlink()
    read(str(folder))  # type: ignore[operator]


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match="is an adapter alone") as caught:
        load(str(tmp_path))
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("name", ["larosa", "adaptivocab", "tuned"])
def test_an_artifact_with_an_adapter(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match="merge_and_unload") as caught:
        optimization(name, {"artifact": str(tmp_path)}).content()
    assert caught.value.field is not None
    assert caught.value.field.endswith("artifact")


def test_a_trial_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a"}\n')
    spec = tmp_path / "trial.yaml"
    out = tmp_path / "out"
    spec.write_text(
        yaml.safe_dump({"model": str(folder), "datasets": [str(data)], "output": str(out)})
    )
    said = refused(run, "evaluate", spec)
    assert "adapter_config.json" in said
    assert "Merge it" in said
    assert not out.exists()


@pytest.mark.parametrize("name", ["larosa", "adaptivocab"])
def test_no_artifact_is_prepared(
    ray_cluster: None, run: Run, folder: Path, tmp_path: Path, name: str
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": t}) + "\n" for t in tiny_models.prompts(40)))
    before = sorted(tmp_path.rglob("*"))
    said = refused(
        run, "prepare", name, "--model", folder, "--data", texts, "--out", tmp_path / "made"
    )
    assert "adapter_config.json" in said
    assert "Merge it" in said
    assert sorted(tmp_path.rglob("*")) == before
