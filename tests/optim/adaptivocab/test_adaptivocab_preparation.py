"""Preparing an adapted model: what is written, what is told of it, what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_adaptivocab_embeddings as embeddings
import torch
from safetensors.torch import load_file
from test_adaptivocab_embeddings import ROWS, SIZE, TEXTS, model
from transformers import PreTrainedTokenizerFast

from optim.adaptivocab.artifact import Artifact, Manifest, TokenCount
from optim.adaptivocab.corpus import gather
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.training.model_folders import measure
from optim.adaptivocab.training.segments import cut
from optim.model import LanguageModel, load, load_tokenizer

QUICK = {"segment_bytes": 128, "batch_bytes": 512, "tune_mib": 0.004, "corpus_mib": 0.06,
         "longest": 4, "learning_rate": 0.01}  # fmt: skip
"""Eight steps of four segments."""


def prepared(lm: LanguageModel, folder: Path, **changes: object) -> Path:
    out = folder / "artifact"
    preparation = AdaptivocabPreparation.model_validate(QUICK | changes)
    preparation.run(lm, TEXTS, out, source="test")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def sha256(texts: list[str]) -> str:
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return hashlib.sha256(digests).hexdigest()


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(model("llama-tied"), tmp_path_factory.mktemp("r"), replace=60)


@pytest.fixture(scope="module")
def expanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(model("llama"), tmp_path_factory.mktemp("e"), expand=40)


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replaced", "expanded"])
def test_two_runs_are_the_same_bytes(
    mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    first: Path = request.getfixturevalue(mode)
    if mode == "replaced":
        again = prepared(model("llama-tied"), tmp_path, replace=60)
    else:
        again = prepared(model("llama"), tmp_path, expand=40)
    assert contents(again) == contents(first)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"], "something was left behind"


def test_the_demo_model_is_adapted(tmp_path: Path) -> None:
    lm = load("demo")
    out = prepared(lm, tmp_path, expand=100, tune_mib=0.002, corpus_mib=0.1,
                   learning_rate=5e-4)  # fmt: skip
    manifest = Artifact.open(out).manifest
    assert manifest.num_new == 100
    assert manifest.held_out.saving > 0.03
    assert manifest.quality.adapted_tuned is not None
    assert manifest.quality.adapted_tuned < manifest.quality.adapted
    adapted = load(str(out))
    assert adapted.end_ids == lm.end_ids
    assert adapted.tokenizer.decode(adapted.tokenizer(TEXTS[3])["input_ids"]) == TEXTS[3]


def test_segments_are_shorter_where_the_model_has_no_room(tmp_path: Path) -> None:
    """The models here have 256 positions, and a segment of 2 KiB more tokens."""
    lm = model("llama")
    assert max(len(lm.tokenizer(text)["input_ids"]) for text in cut(TEXTS, 2048)) > 256
    manifest = Artifact.open(prepared(lm, tmp_path, expand=40, segment_bytes=2048)).manifest
    assert manifest.tuning is not None
    assert manifest.control is not None
    assert manifest.tuning["text_bytes"] == manifest.control["text_bytes"] > 2048
    assert manifest.quality.adapted_tuned is not None


def test_rows_of_kept_ids_are_the_models_own(tmp_path: Path) -> None:
    for architecture, mode in (("llama", "replace"), ("phi", "replace"), ("gpt2", "expand")):
        lm = model(architecture)
        out = prepared(lm, tmp_path / architecture, **{mode: 50}, tune=False)
        tokens = Artifact.open(out).tokens
        new = {token.id for token in tokens.new}
        kept = [i for i in range(ROWS) if i not in new]
        assert (len(new & set(range(SIZE))) == 50 - (ROWS - SIZE)) == (mode == "replace")
        adapted = load(str(out))
        for side, old_VD in embeddings.rows(lm).items():
            assert torch.equal(embeddings.rows(adapted)[side][kept], old_VD[kept])
        assert not (out / "tuned").exists()
        base_ids, own_ids = lm.tokenizer.get_vocab(), adapted.tokenizer.get_vocab()
        stays = {token: i for token, i in base_ids.items() if i not in new}
        assert {token: own_ids[token] for token in stays} == stays
        assert {i for i in own_ids.values() if i not in new} == set(stays.values())


def test_rows_that_no_token_has_are_taken_first(replaced: Path) -> None:
    tokens = Artifact.open(replaced).tokens
    assert [token.id for token in tokens.new][: ROWS - SIZE] == list(range(SIZE, ROWS))
    assert len(tokens.removed) == 60 - (ROWS - SIZE)
    assert {t.id for t in tokens.removed} == {t.id for t in tokens.new if t.id < SIZE}
    assert load_file(replaced / "model.safetensors")["lm_head.weight"].shape[0] == ROWS


def test_the_manifest_is_true(replaced: Path) -> None:
    lm, manifest = model("llama-tied"), Artifact.open(replaced).manifest
    texts = gather(TEXTS, int(0.06 * (1 << 20)), 0.05)
    read = [text for text in TEXTS if text in {*texts.train, *texts.dev, *texts.held_out}]
    assert manifest.base == lm.identity()
    assert (manifest.mode, manifest.num_new, manifest.is_tied) == ("replace", 60, False)
    assert manifest.data.source == "test"
    assert manifest.data.sha256 == sha256(read)
    assert manifest.data.num_bytes == sum(len(text.encode()) for text in read)
    assert manifest.data.is_cut
    assert manifest.settings == QUICK | {"replace": 60}
    for counted, part in ((manifest.dev, texts.dev), (manifest.held_out, texts.held_out)):
        assert counted == recounted(lm.tokenizer, load_tokenizer(str(replaced)), part)
    assert 0 < manifest.held_out.saving < 1
    found = (manifest.quality.base, manifest.quality.adapted_tuned, manifest.quality.tuned)
    segments = list(cut(texts.held_out, 128))
    assert found == tuple(
        measure(each, segments) for each in (lm, load(str(replaced)), load(str(replaced / "tuned")))
    )


def recounted(
    base: PreTrainedTokenizerFast, adapted: PreTrainedTokenizerFast, texts: list[str]
) -> TokenCount:
    return TokenCount(
        num_bytes=sum(len(text.encode()) for text in texts),
        base_tokens=sum(len(base.tokenize(text)) for text in texts),
        tokens=sum(len(adapted.tokenize(text)) for text in texts),
    )


@pytest.mark.parametrize("mode", ["replaced", "expanded"])
def test_the_control_is_tuned_on_the_same_bytes(mode: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(mode)
    manifest = Artifact.open(folder).manifest
    assert manifest.tuning is not None
    assert manifest.control is not None
    same = ("text_bytes", "num_steps", "segments_per_step", "num_segments")
    assert [manifest.tuning[name] for name in same] == [manifest.control[name] for name in same]
    assert manifest.tuning["text_bytes"] <= 0.004 * (1 << 20)
    assert manifest.tuning["num_tokens"] < manifest.control["num_tokens"]
    quality = manifest.quality
    assert quality.tuned is not None
    assert quality.adapted_tuned is not None
    assert quality.tuned < quality.base
    assert quality.adapted_tuned < quality.adapted
    lm = load(str(folder / "tuned"))
    base = model("llama-tied" if mode == "replaced" else "llama")
    assert lm.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert not lm.model.config.tie_word_embeddings, "it has the room that the adapted model has"


def test_without_a_control_there_is_none(tmp_path: Path) -> None:
    manifest = Artifact.open(prepared(model("llama"), tmp_path, expand=20, control=False)).manifest
    assert manifest.control is None
    assert manifest.quality.tuned is None
    assert manifest.tuning is not None


def test_what_is_measured_on_has_a_limit_that_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optim.countdown.REPORT_EVERY_S", 0.0)
    monkeypatch.setattr("optim.adaptivocab.training.tuning.REPORT_EVERY_S", 0.0)
    said: list[str] = []
    settings = QUICK | {"expand": 20, "measure_mib": 0.001, "segment_bytes": 64}
    preparation = AdaptivocabPreparation.model_validate(settings)
    preparation.run(model("llama"), TEXTS, tmp_path / "a", source="test", on_stage=said.append)
    manifest = Artifact.open(tmp_path / "a").manifest
    assert manifest.held_out.num_bytes > 1100
    assert manifest.measured_bytes is not None
    assert 1048 - 64 < manifest.measured_bytes <= 1048
    [ahead] = [each for each in said if each.startswith("ahead: ")]
    assert manifest.tuning is not None
    tuned, measured = manifest.tuning["text_bytes"], manifest.measured_bytes
    assert ahead == (
        f"ahead: tuning two models on {tuned / (1 << 20):.3g} MiB of text, "
        f"bits per byte on {measured / (1 << 20):.3g} MiB of held-out text"
    )
    assert said.index(ahead) < next(n for n, each in enumerate(said) if ": tuning: step" in each)
    assert any("tuning: step 2 of" in each and each.endswith("s to go") for each in said)
    assert "untouched: measuring bits per byte, 0.00 of 0.00 MiB, 0 s to go" in said


@pytest.mark.parametrize("selector", ["paper", "words"])
def test_published_selections_are_patches(selector: str, tmp_path: Path) -> None:
    out = prepared(model("qwen3"), tmp_path, replace=30, selector=selector, tune=False)
    manifest = Artifact.open(out).manifest
    assert (manifest.encoding, manifest.method) == ("patch", "greedy")
    assert manifest.held_out.saving > 0
    tokens = load(str(out)).tokenizer
    assert tokens.decode(tokens(TEXTS[5])["input_ids"]) == TEXTS[5]


def test_a_process_that_only_tunes_knows_the_tokenizer(tmp_path: Path) -> None:
    out = prepared(model("llama"), tmp_path, expand=20, encoding="patch", tune=False)
    script = (
        "import sys; from pathlib import Path;"
        "from optim.adaptivocab.training.model_folders import *;"
        "print(measure_folder(Path(sys.argv[1]), [sys.argv[2]], 'cpu'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out), TEXTS[0][:100]], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) > 0


# --- interruptions -------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_from_its_checkpoint(replaced: Path, tmp_path: Path) -> None:
    lm, out = model("llama-tied"), tmp_path / "artifact"
    preparation = AdaptivocabPreparation.model_validate(QUICK | {"replace": 60})
    often = preparation.model_copy(update={"checkpoint_steps": 3})

    def stop_in_control(stage: str) -> None:
        # The adapted model is tuned first, and by now.
        if stage.startswith("measuring bits per byte after"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        often.run(lm, TEXTS, out, source="test", on_stage=stop_in_control)
    assert [path.name for path in tmp_path.iterdir()] == [".artifact.tuning"]
    stages: list[str] = []
    preparation.run(lm, TEXTS, out, source="test", on_stage=stages.append)
    assert [stage for stage in stages if "goes on" in stage] == [
        f"{name}: tuning: goes on from step 8" for name in ("adapted", "control")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert contents(out) == contents(replaced)


def test_an_interruption_in_the_midst_of_tuning(
    expanded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optim.adaptivocab.training.tuning.REPORT_EVERY_S", 0.0)
    lm, out = model("llama"), tmp_path / "artifact"
    settings = QUICK | {"expand": 40, "checkpoint_steps": 2}
    preparation = AdaptivocabPreparation.model_validate(settings)

    def stop_at(words: str) -> Any:
        def on_stage(stage: str) -> None:
            if stage.startswith(words):
                raise InterruptedError

        return on_stage

    for name, step in (("adapted", 5), ("control", 7)):
        stop = stop_at(f"{name}: tuning: step {step} of")
        with pytest.raises(InterruptedError):
            preparation.run(lm, TEXTS, out, source="test", on_stage=stop)
        assert not out.exists()
    stages: list[str] = []
    preparation.run(lm, TEXTS, out, source="test", on_stage=stages.append)
    resumed = [stage for stage in stages if "goes on" in stage]
    assert resumed == [
        "adapted: tuning: goes on from step 8",
        "control: tuning: goes on from step 6",
    ]
    made, plain = contents(out), contents(expanded)
    for name in made.keys() - {"adaptivocab.json"}:
        assert made[name] == plain[name]
    manifests = [json.loads(each.pop("adaptivocab.json")) for each in (made, plain)]
    assert manifests[0].pop("settings") == manifests[1].pop("settings") | {"checkpoint_steps": 2}
    assert manifests[0] == manifests[1]


def test_no_pickle_is_written(replaced: Path) -> None:
    kinds = {path.suffix for path in replaced.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert Manifest.model_validate_json((replaced / "adaptivocab.json").read_bytes()).files
