"""TrialSpec: what may be written, and what a person is told who wrote something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.spec.trial_spec import TrialSpec, json_schema, read_spec
from jobs.spec.yaml_reader import validated
from optim.errors import InputError

LEAST: dict[str, Any] = {"model": "demo", "datasets": ["demo/language"], "output": "out"}

FULL = """
model: {path: org/model, revision: abc123, trust_remote_code: false}
dtype: bfloat16
device: cuda
datasets:
  - demo/language
  - name: maths
    path: openai/gsm8k
    subset: main
    split: test
    revision: e53f048
    prompt: "{question}\\n"
    target: answer
    limit: 200
    sample_seed: 1
    shards: 16
    scorers: [numeric, "regex:#### (\\\\d+)", "my.scores:close_enough"]
configurations:
  - name: baseline
  - {name: larosa, optimizations: [{larosa: {sparsity: 4e-1}}], vs: baseline}
factors:
  vocabulary: [off, tuned, adaptivocab]
  batch_size: [1, 8]
  prefill_chunk: [null, 256]
engine: {cache: static}
baseline: baseline
seeds: 3
generation: {max_new_tokens: 128, temperature: 0.8, top_p: 0.95, top_k: 40, stop: "\\n\\n"}
workers: {count: 2, cpus: 4, gpus: 1}
output: s3://bucket/trial
baseline_check: true
likelihoods: false
shuffle_seed: 7
"""


def spec_of(**changes: Any) -> TrialSpec:
    return validated(TrialSpec, {**LEAST, **changes}, "trial.yaml")


def message(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        spec_of(**changes)
    return str(caught.value)


def read(folder: Path, text: str) -> TrialSpec:
    path = folder / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return read_spec(path)


def yaml_message(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text)
    assert caught.value.source == str(folder / "trial.yaml")
    return str(caught.value)


def test_the_full_spec_is_read(tmp_path: Path) -> None:
    spec = read(tmp_path, FULL)
    assert spec.model.revision == "abc123"
    assert [d.name for d in spec.datasets] == ["language", "maths"]
    assert spec.datasets[1].prompt == "{question}\n"
    assert spec.configurations[1].optimizations[0].settings == {"sparsity": 0.4}
    assert spec.seeds == (0, 1, 2)
    assert spec.generation.stop == ("\n\n",)
    assert spec.workers.gpus == 1


def test_defaults() -> None:
    spec = spec_of()
    assert spec.seeds == (0,)
    assert spec.engine.model_dump() == {"batch_size": 8, "cache": "dynamic", "prefill_chunk": None}
    assert spec.datasets[0].shards is None
    assert spec.baseline_check
    assert spec.likelihoods


def test_a_spec_survives_being_written_back(tmp_path: Path) -> None:
    spec = read(tmp_path, FULL)
    assert read(tmp_path, yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True))) == spec


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/qa.jsonl", "qa"),
        ("qa.jsonl.gz", "qa"),
        ("s3://bucket/qa set.parquet", "qa-set"),
        ("openai/gsm8k", "gsm8k"),
        ("demo/data", "data"),
    ],
)
def test_default_names_of_datasets(path: str, name: str) -> None:
    assert spec_of(datasets=[path]).datasets[0].name == name


def test_levels_of_factors() -> None:
    factors = spec_of(
        factors={
            "larosa": [False, True],
            "vocabulary": ["none", "adaptivocab"],
            "half": {False: None, "deep": {"optimizations": [{"larosa": {"sparsity": 0.5}}]}},
            "prefill_chunk": [None, 64],
            "cache": ["dynamic", "static"],
        }
    ).factors
    assert [level.name for level in factors["larosa"]] == ["off", "on"]
    assert factors["larosa"][1].optimizations[0].name == "larosa"
    assert [level.name for level in factors["vocabulary"]] == ["off", "adaptivocab"]
    assert factors["half"][1].optimizations[0].settings == {"sparsity": 0.5}
    assert factors["prefill_chunk"][0].engine() == {"prefill_chunk": None}
    assert factors["cache"][1].engine() == {"cache": "static"}


def test_yaml_truth_values_are_levels(tmp_path: Path) -> None:
    spec = read(tmp_path, yaml.safe_dump(LEAST) + "factors: {larosa: [off, on], v: {no: , yes: }}")
    assert [level.name for level in spec.factors["larosa"]] == ["off", "on"]
    assert [level.name for level in spec.factors["v"]] == ["off", "on"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"modle": "x"}, ["modle: unknown key", "Did you mean `model`?"]),
        ({"qqq": 1}, ["qqq: unknown key", "Known keys: model, dtype"]),
        ({"datasets": [{"path": "a.jsonl", "promt": "x"}]}, ["datasets[0].promt", "`prompt`"]),
        ({"generation": {"temprature": 1}}, ["generation.temprature", "`temperature`"]),
        ({"model": 5}, ["model: expected a mapping, got the number 5"]),
        ({"datasets": []}, ["datasets: expected at least one entry"]),
        ({"datasets": "a.jsonl"}, ["datasets: expected a list, got the text"]),
        ({"dtype": "int8"}, ["dtype: expected one of", "int8"]),
        ({"seeds": 0}, ["seeds: expected 1 to"]),
        ({"seeds": True}, ["seeds: expected a count or a list"]),
        ({"seeds": []}, ["seeds: the list is empty"]),
        ({"seeds": [1, 1]}, ["seeds: seed 1 stands twice"]),
        ({"seeds": [-1]}, ["seeds: expected seeds from 0"]),
        ({"seeds": ["1"]}, ["seeds[0]: expected a whole number, got the text"]),
        ({"generation": {"temperature": -1}}, ["generation.temperature: expected at least 0"]),
        ({"generation": {"temperature": "hot"}}, ["expected a number, got the text"]),
        ({"generation": {"top_p": 0}}, ["generation.top_p: expected more than 0"]),
        ({"generation": {"top_p": 1.1}}, ["generation.top_p: expected at most 1"]),
        ({"generation": {"top_k": -1}}, ["generation.top_k: expected at least 0"]),
        ({"generation": {"max_new_tokens": 0}}, ["max_new_tokens: expected at least 1"]),
        ({"generation": {"stop": [""]}}, ["generation.stop[0]: expected text that is not empty"]),
        ({"workers": 0}, ["workers.count: expected at least 1"]),
        ({"workers": {"gpus": 0.5}}, ["workers.gpus: expected a whole number"]),
        ({"workers": {"cpus": 0}}, ["workers.cpus: expected more than 0"]),
        ({"device": "cuda"}, ["the workers have no GPU", "workers: {gpus: 1}"]),
        ({"output": "ftp://x/y"}, ["output: expected a folder or an s3:// or gs://"]),
        ({"output": ""}, ["output: expected text that is not empty"]),
        ({"baseline_check": "yes"}, ["baseline_check: expected true or false"]),
        ({"engine": {"batch_size": 0}}, ["engine.batch_size: expected at least 1"]),
        ({"configurations": [{"name": "a b"}]}, ["configurations[0].name: expected letters"]),
        ({"configurations": [{}]}, ["configurations[0].name: is missing"]),
        (
            {"configurations": [{"name": "a", "optimizations": [{"larosa": 0.5}]}]},
            ["configurations[0].optimizations[0]: expected a mapping of settings for `larosa`"],
        ),
        (
            {"configurations": [{"name": "a", "optimizations": [{"larosa": None, "x": 1}]}]},
            ["Indent the settings"],
        ),
        ({"factors": {"batch_size": [True]}}, ["expected a whole number as a level"]),
        ({"factors": {"batch_size": [0]}}, ["factors.batch_size[0].batch_size"]),
        ({"factors": {"batch_size": {"a": 1}}}, ["expected a list of values"]),
        ({"factors": {"larosa": []}}, ["there are no levels"]),
        ({"factors": {"larosa": [False, "off"]}}, ["level off stands twice"]),
        ({"factors": {"larosa": {"x": 5}}}, ["expected a mapping for the level `x`"]),
        ({"factors": {"larosa": [["x"]]}}, ["expected a level's name"]),
        ({"datasets": [{"path": "a.jsonl", "shards": 0}]}, ["shards: expected at least 1"]),
        ({"datasets": [{"path": "a.jsonl", "limit": 0}]}, ["limit: expected at least 1"]),
        ({"datasets": [{"path": "a.jsonl", "limit": True}]}, ["limit: expected a whole number"]),
        (
            {"datasets": [{"path": "a.jsonl", "prompt": "p", "messages": "m"}]},
            ["`prompt` and `messages` exclude each other"],
        ),
        ({"datasets": [{"path": "a.jsonl", "prompt": {"question": None}}]}, ["Quote a template"]),
        ({"datasets": [{"path": "a.jsonl", "prompt": "{q"}]}, ["the brace at character 1"]),
        ({"datasets": [{"path": "a.jsonl", "prompt": "{{}}"}]}, ["names no column"]),
        (
            {"datasets": [{"path": "a.jsonl", "scorers": ["regex:("]}]},
            ["scorers[0]: not a regular"],
        ),
        ({"datasets": [{"path": "a.jsonl", "scorers": ["a b"]}]}, ["expected a scorer's name"]),
    ],
)
def test_bad_values(changes: dict[str, Any], parts: list[str]) -> None:
    text = message(**changes)
    assert text.startswith("trial.yaml: ")
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_several_faults_are_one_error() -> None:
    text = message(seeds=0, dtype="int8", workers={"count": "two"})
    assert text.splitlines()[0] == "trial.yaml: 3 problems"
    assert [line.strip().split(":")[0] for line in text.splitlines()[1:]] == [
        "dtype",
        "seeds",
        "workers.count",
    ]


def test_a_missing_key() -> None:
    with pytest.raises(InputError) as caught:
        validated(TrialSpec, {"datasets": ["demo/data"], "output": "out"}, "trial.yaml")
    assert caught.value.field == "model"
    assert caught.value.problem == "is missing"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "expected a mapping of keys, got the list"),
        ("model: [\n", "not valid YAML: line 2"),
        ("model: a\nmodel: b\n", "line 2: the key 'model' stands twice, first in line 1"),
        ("generation: {top_k: 1, top_k: 2}\n", "the key 'top_k' stands twice"),
        ("model: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("model: &a [*a]\n", "too deep or too large"),
        ('model: "\\ud800"\n', "lone surrogate"),
        ("generation: {temperature: .nan}\n", "generation.temperature: expected a finite number"),
        ("model: !!binary aGk=\n", "model: expected plain data"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, part: str) -> None:
    assert part in yaml_message(tmp_path, text)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too deep or too large" in yaml_message(tmp_path, "\n".join(lines))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_spec(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_spec(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_spec(tmp_path / "latin.yaml")


def test_dates_stay_text_and_exponents_are_numbers(tmp_path: Path) -> None:
    extra = "generation: {temperature: 5e-1}\nbaseline: 2024-01-02\n"
    spec = read(tmp_path, yaml.safe_dump(LEAST) + extra)
    assert spec.generation.temperature == 0.5
    assert spec.baseline == "2024-01-02"


def test_the_schema_is_valid_and_takes_what_the_spec_takes() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(LEAST)
    validator.validate(yaml.safe_load(FULL))
    assert not validator.is_valid({**LEAST, "modle": 1})
    assert "greedy" in str(schema["$defs"]["GenerationSpec"]["properties"]["temperature"])
