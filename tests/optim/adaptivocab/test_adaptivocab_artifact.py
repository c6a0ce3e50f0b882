"""Artifacts of adaptivocab: what is refused, what transformers loads, what is applied."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from test_adaptivocab_embeddings import ROWS, TEXTS, logits, model, rows
from test_adaptivocab_preparation import contents, prepared

import optim.adaptivocab
from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.optimization import Adaptivocab, Tuned
from optim.errors import InputError
from optim.model import LanguageModel, Vocabulary, load, weight_bytes
from optim.registry import optimization


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(model("llama"), tmp_path_factory.mktemp("a"), replace=60)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact without tuning, whose tokenizer is a layer of patches."""
    folder = tmp_path_factory.mktemp("p")
    return prepared(model("llama"), folder, expand=40, encoding="patch", tune=False)


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def adapted(folder: Path, architecture: str = "llama") -> LanguageModel:
    return Adaptivocab(artifact=str(folder)).apply(model(architecture))


def refusal(folder: Path, architecture: str = "llama") -> InputError:
    """What both of an artifact's optimisations say of it."""
    errors = []
    for kind in (Adaptivocab, Tuned):
        with pytest.raises(InputError) as caught:
            kind(artifact=str(folder)).apply(model(architecture))
        assert caught.value.mend
        errors.append(caught.value)
    assert errors[0].problem == errors[1].problem
    return errors[0]


# --- what is refused -----------------------------------------------------------------------------


def test_no_artifact(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert "optrial prepare adaptivocab" in str(error)
    assert error.field == "optimizations.adaptivocab.artifact"
    (tmp_path / "empty").mkdir()
    assert "has no adaptivocab.json" in str(refusal(tmp_path / "empty"))
    with pytest.raises(InputError, match="it is not there"):
        Adaptivocab(artifact=str(tmp_path / "none")).content()


def test_an_artifact_of_another_model(artifact: Path) -> None:
    assert "was made from another model" in str(refusal(artifact, "mistral"))
    for kind in (Adaptivocab, Tuned):
        with pytest.raises(InputError) as caught:
            kind(artifact=str(artifact)).apply(tiny_models.model("llama"))
        assert caught.value.field == f"optimizations.{kind.name}.artifact"


def test_every_file_that_was_changed_or_is_missing_is_named(copied: Path) -> None:
    manifest = Artifact.open(copied).manifest
    assert set(manifest.files) == contents(copied).keys() - {"adaptivocab.json"}
    for name in manifest.files:
        path = copied / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        error = refusal(copied)
        assert error.source == str(path)
        assert "sha256 differs" in str(error)
        path.write_bytes(data + b" ")
        assert refusal(copied).source == str(path)
        path.unlink()
        error = refusal(copied)
        assert error.source == str(path)
        assert "is missing" in str(error)
        path.write_bytes(data)
    assert adapted(copied).fingerprint


@pytest.mark.parametrize("name", ["model-00001.safetensors", "chat_template.jinja", "tuned/x.json"])
def test_a_file_that_was_put_there(copied: Path, name: str) -> None:
    (copied / name).write_text("mine")
    error = refusal(copied)
    assert error.source == str(copied / name)
    assert "was not written" in str(error)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"mode": "neither"}, "mode"),
        ({"files": {}}, "lacks config.json"),
        ({"files": {"../x": {}}}, "outside of its folder"),
        ({"files": {"/etc/passwd": {}}}, "outside of its folder"),
    ],
)
def test_a_manifest_that_is_none(copied: Path, change: dict[str, object], problem: str) -> None:
    path = copied / "adaptivocab.json"
    written = json.loads(path.read_text())
    if isinstance(files := change.get("files"), dict) and files:
        entry = {"num_bytes": 1, "sha256": ""}
        change = {"files": written["files"] | dict.fromkeys(files, entry)}
    path.write_text(json.dumps(written | change))
    error = refusal(copied)
    assert error.source == str(path)
    assert problem in str(error)
    path.write_text("{")
    assert refusal(copied).source == str(path)


def test_a_control_that_was_not_made(patched: Path) -> None:
    with pytest.raises(InputError, match="no tuned control") as caught:
        Tuned(artifact=str(patched)).apply(model("llama"))
    assert caught.value.field == "optimizations.tuned.artifact"
    assert "--tune" in str(caught.value)


def test_settings_that_are_none() -> None:
    with pytest.raises(InputError, match="no setting 'sparsity'"):
        optimization("adaptivocab", {"artifact": "x", "sparsity": 0.5})
    with pytest.raises(InputError) as caught:
        optimization("tuned", {"artifact": ""})
    assert caught.value.field == "optimizations.tuned.artifact"


# --- what transformers loads ---------------------------------------------------------------------


def test_transformers_alone_loads_a_native_one(artifact: Path) -> None:
    """In a process that never imports any of this project."""
    assert Artifact.open(artifact).manifest.encoding == "native"
    program = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt")["input_ids"]
made = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
assert not [name for name in sys.modules if name.split(".")[0] in ("optim", "cluster", "jobs")]
print(ids.tolist()[0], made.tolist()[0], tokenizer.decode(ids[0]) == sys.argv[2], sep="\\n")
"""
    text = TEXTS[2][:200]
    done = subprocess.run(
        [sys.executable, "-c", program, artifact, text], capture_output=True, text=True,
        check=True, cwd=artifact, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    ids, made, is_same = done.stdout.splitlines()
    lm = adapted(artifact)
    assert json.loads(ids) == lm.tokenizer(text)["input_ids"]
    assert len(json.loads(made)) == len(json.loads(ids)) + 5
    assert is_same == "True"


def test_importing_the_package_lets_transformers_load_a_patched_one(patched: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(patched)
    ids = tokenizer(TEXTS[2][:200], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(patched)(input_ids=ids).logits
    torch.testing.assert_close(found, logits(adapted(patched), ids))


def test_ids_of_configs_agree(artifact: Path) -> None:
    base = model("llama").model
    for folder in (artifact, artifact / "tuned"):
        lm = load(str(folder))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(lm.model.config, name) == getattr(base.config, name)
            assert getattr(lm.tokenizer, name) == getattr(base.config, name)
        assert lm.model.generation_config.eos_token_id == base.generation_config.eos_token_id


def test_nothing_unpickles() -> None:
    """Neither by `pickle`, but for the class of the reader that runs nothing, nor by torch."""
    package = Path(optim.adaptivocab.__file__).parent
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                assert (owner, node.attr) not in {
                    (module, name)
                    for module in ("pickle", "torch", "dill", "cloudpickle", "joblib", "marshal")
                    for name in ("load", "loads", "save", "dump", "dumps")
                }, f"{file.name}:{node.lineno}"
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                allowed = {"pickle", "pickletools"} if file.name == "inert_pickle.py" else set()
                barred = {"pickle", "pickletools", "dill", "cloudpickle", "joblib", "marshal"}
                assert not names & barred - allowed, f"{file.name}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("pickle", "marshal"), f"{file.name}:{node.lineno}"


# --- what is applied -----------------------------------------------------------------------------


def test_unchanged_parameters_are_the_bases_own(artifact: Path) -> None:
    lm = model("llama")
    made = adapted(artifact)
    theirs = {id(parameter) for parameter in lm.model.parameters()}
    middle = list(made.model.model.layers[1].parameters())
    assert all(id(parameter) in theirs for parameter in [*middle, made.model.model.norm.weight])
    shared, private = weight_bytes(made.model, lm.model)
    assert shared >= sum(parameter.nbytes for parameter in middle)
    changed = [made.model.get_input_embeddings(), made.model.get_output_embeddings(),
               made.model.model.layers[0], made.model.model.layers[2]]  # fmt: skip
    own = sum(p.nbytes for module in changed for p in module.parameters())
    assert private <= own + sum(buffer.nbytes for buffer in made.model.buffers())


def test_the_base_stays_as_it_is(artifact: Path) -> None:
    lm = model("llama")
    ids = torch.tensor([lm.tokenizer(TEXTS[4][:100])["input_ids"]])
    before, size = logits(lm, ids), len(lm.tokenizer)
    for kind in (Adaptivocab, Tuned):
        made = kind(artifact=str(artifact)).apply(lm)
        assert torch.equal(logits(lm, ids), before)
        assert not torch.equal(logits(made, ids), before)
    assert len(lm.tokenizer) == size
    assert lm.fingerprint == ""


def test_what_is_applied_is_what_was_written(artifact: Path) -> None:
    made, tuned = adapted(artifact), Tuned(artifact=str(artifact)).apply(model("llama"))
    for lm, folder in ((made, artifact), (tuned, artifact / "tuned")):
        again = load(str(folder))
        ids = torch.tensor([lm.tokenizer(TEXTS[4][:100])["input_ids"]])
        assert torch.equal(logits(lm, ids), logits(again, ids))
        assert lm.tokenizer.get_vocab() == again.tokenizer.get_vocab()
        assert lm.identity() == again.identity()
    assert len({made.identity(), tuned.identity(), model("llama").identity()}) == 3


def test_the_dtype_and_the_attention_are_those_of_the_model(artifact: Path) -> None:
    import dataclasses

    lm = model("llama")
    half = load(str(artifact / "tuned"), dtype="bfloat16")
    half.model.set_attn_implementation("eager")
    half = dataclasses.replace(half, fingerprint=lm.identity(), origin=None)
    made = Adaptivocab(artifact=str(artifact)).apply(half)
    assert made.model.dtype == torch.bfloat16
    assert made.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("folder", ["artifact", "patched"])
def test_keys_and_lengths_of_the_vocabulary(folder: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    made, tokens = adapted(path), Artifact.open(path).tokens
    num_rows = rows(made)["head"].shape[0]
    keys, lengths = made.vocabulary.keys_V.tolist(), made.vocabulary.base_lengths_V.tolist()
    assert len(keys) == len(lengths) == num_rows
    new = {token.id: token for token in tokens.new}
    base = model("llama").tokenizer
    for number in range(num_rows):
        if number not in new:
            assert (keys[number], lengths[number]) == (number, 1)
            continue
        assert keys[number] > 1 << 61
        text = made.tokenizer.decode([number])
        if "\ufffd" not in text:
            assert lengths[number] == len(base.tokenize(text))
    assert len(set(keys)) == num_rows


def test_the_control_has_the_bases_vocabulary(artifact: Path) -> None:
    tuned = Tuned(artifact=str(artifact)).apply(model("llama"))
    base = Vocabulary.base(ROWS)
    assert torch.equal(tuned.vocabulary.keys_V, base.keys_V)
    assert torch.equal(tuned.vocabulary.base_lengths_V, base.base_lengths_V)
    assert tuned.tokenizer(TEXTS[0])["input_ids"] == model("llama").tokenizer(TEXTS[0])["input_ids"]


@pytest.mark.parametrize("budget", [1, 2, 7, 24])
@pytest.mark.parametrize("folder", ["artifact", "patched"])
def test_the_budget_in_base_tokens_is_never_overshot(
    folder: str, budget: int, request: pytest.FixtureRequest
) -> None:
    made = adapted(request.getfixturevalue(folder))
    lengths = made.vocabulary.base_lengths_V.tolist()
    params = SamplingParams(temperature=1.5, max_new_tokens=budget)
    requests = [Request(str(i), text[:60], params, seed=i) for i, text in enumerate(TEXTS[:24])]
    num_long = num_spent = 0
    for done in Engine(made, batch_size=4).generate(requests):
        assert done.error is None
        spent = sum(lengths[i] for i in done.ids)
        assert spent == done.base_tokens_spent <= budget
        assert done.ended_by_token or spent == budget, "one base token always fits"
        num_long += sum(lengths[i] > 1 for i in done.ids)
        num_spent += spent
    assert num_spent
    assert num_long or budget == 1
