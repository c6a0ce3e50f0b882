"""How a model's author generates is said, where a trial samples by its own spec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from trial_results import make_results

from cluster.results import MANIFEST
from jobs.report_data import report_data
from optim.author_settings import author_settings, said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"repetition_penalty": 1.1, "suppress_tokens": [10]}, None),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50},
         {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": True, "temperature": 1.0, "repetition_penalty": 1.0}, {}),
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
