"""How a model's author generates is said, where a trial samples by its own spec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from trial_results import make_results

from cluster.plan import Generation, ModelSource
from cluster.results.results import MANIFEST
from jobs.report.report_data import report_data
from jobs.spec.generations import generation_of
from jobs.spec.trial_spec import GenerationSpec
from optim.author_settings import author_settings, said, said_taken
from optim.model import load


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"repetition_penalty": 1.1, "suppress_tokens": [10]}, None),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50},
         {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": True, "repetition_penalty": 1.0, "top_k": 0}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": False}),
        ({"max_length": 4096, "min_new_tokens": 5, "stop_strings": ["x"]}, None),
        ({"eos_token_id": [1, 2], "pad_token_id": 0, "bad_words_ids": None}, {}),
    ],
)  # fmt: skip
def test_what_decides_something(
    tiny_model_folder: Path, tmp_path: Path, given: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps(given))
    assert author_settings(str(folder)) == (given if expected is None else expected)


def test_a_file_that_is_none_says_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    for text in ("", "[1]", "{bad"):
        (folder / "generation_config.json").write_text(text)
        assert author_settings(str(folder)) == {}
    assert said({}) is None


def test_the_report_says_so(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out")
    manifest = json.loads(results.store.read(MANIFEST))
    manifest["author_settings"] = {"repetition_penalty": 1.1}
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    assert (
        "The model's author generates by repetition_penalty 1.1: not used here, where the spec "
        "decides."
    ) in report_data(results)["notes"]


def test_an_older_model_says_it_in_its_configuration(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "generation_config.json").unlink()
    assert author_settings(str(folder)) == {}
    config = json.loads((folder / "config.json").read_text()) | {"repetition_penalty": 1.3}
    (folder / "config.json").write_text(json.dumps(config))
    assert author_settings(str(folder)) == {"repetition_penalty": 1.3}
    assert load(str(folder)).model.generation_config.repetition_penalty == 1.3, "so transformers"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"do_sample": True, "top_k": 20}, {"temperature": 1.0, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"temperature": 0.6}, {}),
        ({"repetition_penalty": 1.1, "suppress_tokens": [4, 2], "stop_strings": "\\n"},
         {"repetition_penalty": 1.1, "suppress_tokens": [2, 4], "stop": ["\\n"]}),
    ],
)  # fmt: skip
def test_what_a_spec_takes_and_what_is_said(
    tiny_model_folder: Path, tmp_path: Path, given: dict[str, Any], fields: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps(given))
    source = ModelSource(path=str(folder))
    made = generation_of(GenerationSpec(from_model=True), source, "spec")
    assert made.model_dump(mode="json") == Generation().model_dump(mode="json") | fields
    settings = author_settings(str(folder))
    assert said(settings, made.model_dump(mode="json")) is None, "all of it is used"
    taken = said_taken(settings, made.model_dump(mode="json"))
    assert all(name in taken for name in settings)
    own = GenerationSpec(from_model=True, temperature=0.3, top_k=5, stop=(), suppress_tokens=(7,))
    kept = generation_of(own, source, "spec")
    assert (kept.temperature, kept.top_k, kept.stop, kept.suppress_tokens) == (0.3, 5, (), (7,))
    assert generation_of(GenerationSpec(), source, "spec") == Generation()
    unused = said(settings, kept.model_dump(mode="json")) or ""
    for name in settings.keys() & {"temperature", "do_sample", "top_k", "suppress_tokens"}:
        assert name in unused
    assert "repetition_penalty" not in unused
