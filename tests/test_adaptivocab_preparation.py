"""Preparing an adapted model: what is written, what is told of it, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_adaptivocab_embeddings as embeddings
import torch
from official_files import published
from safetensors.torch import load_file
from test_adaptivocab_embeddings import ROWS, SIZE, TEXTS, model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.mistral_tokenizers import sentencepiece_v3
from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.base import BaseVocabulary
from optim.adaptivocab.building import Builder, Recipe
from optim.adaptivocab.corpus import gather
from optim.adaptivocab.export import tokenizer_of
from optim.adaptivocab.folders import measure
from optim.adaptivocab.making import NOTHING
from optim.adaptivocab.manifest import Manifest, TokenCount
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.removal import choose, num_removable
from optim.adaptivocab.segments import cut
from optim.errors import InputError
from optim.model import LanguageModel, load, load_tokenizer, wrap
from optim.resources import InProcess

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


@pytest.mark.parametrize("selector", ["paper", "words"])
def test_published_selections_are_patches(selector: str, tmp_path: Path) -> None:
    out = prepared(model("qwen3"), tmp_path, replace=30, selector=selector, tune=False)
    manifest = Artifact.open(out).manifest
    assert (manifest.encoding, manifest.method) == ("patch", "greedy")
    assert manifest.held_out.saving > 0
    tokens = load(str(out)).tokenizer
    assert tokens.decode(tokens(TEXTS[5])["input_ids"]) == TEXTS[5]


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
    monkeypatch.setattr("optim.adaptivocab.tuning.REPORT_EVERY_S", 0.0)
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


# --- other domains -------------------------------------------------------------------------------


PACKAGES = ("asyncio", "email", "http", "importlib", "json", "unittest", "xml")


@cache
def domains() -> tuple[list[str], list[str], list[str]]:
    """The language reference; sources of the standard library to protect; and others of them."""
    library = Path(os.__file__).parent
    files = [file for name in PACKAGES for file in sorted((library / name).rglob("*.py"))]
    sources = [file.read_text(encoding="utf-8") for file in files]
    judged = sources[::4]
    return list(TEXTS), [text for text in sources if text not in judged], judged


class Protected(InProcess):
    """Reads the texts to protect from memory."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts

    def read(self, path: str) -> Any:
        return iter(self.texts)


def test_protected_texts_keep_their_tokens_with_a_real_vocabulary() -> None:
    domain, protected, judged = domains()
    tokenizer = sentencepiece_v3().backend_tokenizer
    base = BaseVocabulary.of(sentencepiece_v3())
    counter = Builder(base, NOTHING, [], [], [], InProcess(), lambda stage: None)
    before = counter.num_tokens(tokenizer, judged)
    inflations = []
    for corpora in ([domain, protected], [domain]):
        texts = [text for corpus in corpora for text in corpus]
        counts_V = counter.encoded(tokenizer, texts, cut=False).counts_V(base.size)
        removal = choose(base, counts_V, 10_000)
        ids, recipe = sorted(removal.ids), Recipe("hierarchical", 500, longest=3)
        builder = Builder(base, removal, ids, domain[:60], domain[60:70], InProcess(), print)
        built = builder.build(recipe)
        assert built.document is not None
        after = counter.num_tokens(tokenizer_of(built.document), judged)
        inflations.append(after / before - 1)
    with_protection, without = inflations
    assert with_protection <= 0.02
    assert with_protection < without


def test_protection_reaches_the_manifest(tmp_path: Path) -> None:
    lm, out = model("llama"), tmp_path / "artifact"
    others = tuple(part for text in domains()[1][:9] for part in text.split("\n\n\n"))
    settings = QUICK | {"replace": 60, "tune": False, "protect": ("other.txt",)}
    preparation = AdaptivocabPreparation.model_validate(settings)
    preparation.run(lm, TEXTS, out, source="test", resources=Protected(others))
    manifest = Artifact.open(out).manifest
    assert manifest.protected is not None
    assert manifest.protected.source == "other.txt"
    corpus = gather(others, int(0.06 * (1 << 20)), 0.05)
    assert manifest.protected.sha256 == corpus.sha256
    adapted = load_tokenizer(str(out))
    assert manifest.off_domain == recounted(lm.tokenizer, adapted, corpus.held_out)
    plain = Artifact.open(prepared(lm, tmp_path / "plain", replace=60, tune=False))
    used = Counter(i for text in corpus.train for i in lm.tokenizer(text)["input_ids"])
    lost = [sum(used[t.id] for t in each.tokens.removed) for each in (Artifact.open(out), plain)]
    assert lost[0] < lost[1], "what protected texts use is removed as if nothing did"


def test_expanding_costs_other_texts_nothing(expanded: Path) -> None:
    lm, adapted = model("llama"), load_tokenizer(str(expanded))
    new = {token.id for token in Artifact.open(expanded).tokens.new}
    num_same = 0
    for text in domains()[1][:200]:
        before, after = lm.tokenizer(text)["input_ids"], adapted(text)["input_ids"]
        assert len(after) <= len(before)
        if new.isdisjoint(after):
            assert after == before
            num_same += 1
    assert num_same, "every text has a new token, so that nothing is shown"


# --- the authors' file ---------------------------------------------------------------------------


def official(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    path = folder / "patch_tokenizer.pkl"
    path.write_bytes(pickle.dumps(published(tokenizer, num=40)))
    return path


def test_the_authors_file_becomes_an_artifact(tmp_path: Path) -> None:
    lm = model("llama")
    path = official(tmp_path, lm.tokenizer)
    out = prepared(lm, tmp_path, official=str(path))
    artifact = Artifact.open(out)
    assert (artifact.manifest.encoding, artifact.manifest.method) == ("patch", "greedy")
    assert artifact.manifest.num_new > 20
    assert artifact.manifest.notes, "what is wrong with the file is told"
    base_ids = lm.tokenizer.get_vocab()
    wanted = {
        tuple(base_ids[t] for t in gram) for gram in published(lm.tokenizer, num=40)["ngram_dict"]
    }
    assert {token.parts for token in artifact.tokens.new} <= wanted
    adapted = load(str(out))
    for text in (TEXTS[0], "naïve 字 \U0001f600", ""):
        ids = adapted.tokenizer(text)["input_ids"]
        assert adapted.tokenizer.decode(ids) == text
    used = {i for text in TEXTS[:60] for i in adapted.tokenizer(text)["input_ids"]}
    assert {token.id for token in artifact.tokens.new} <= used
    assert used.isdisjoint(
        {t.id for t in artifact.tokens.removed} - {t.id for t in artifact.tokens.new}
    )
    logits = embeddings.logits(adapted, torch.tensor([adapted.tokenizer(TEXTS[0])["input_ids"]]))
    assert logits.isfinite().all()


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, canary = tmp_path / "patch_tokenizer.pkl", tmp_path / "canary"
    tree = published(model("llama").tokenizer, num=40)
    path.write_bytes(pickle.dumps(tree | {"existing_tokenizer": Canary(canary)}))
    with pytest.raises(InputError, match="mkdir") as caught:
        prepared(model("llama"), tmp_path, official=str(path))
    assert caught.value.source == str(path)
    assert not canary.exists()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    os.rmdir(pickle.loads(path.read_bytes())["existing_tokenizer"] or canary)  # noqa: S301  It would have run.


# --- what is refused -----------------------------------------------------------------------------


def refusal(
    folder: Path,
    lm: LanguageModel | None = None,
    texts: tuple[str, ...] = TEXTS,
    **changes: object,
) -> InputError:
    """The error, with nothing written."""
    before = sorted(folder.rglob("*"))
    preparation = AdaptivocabPreparation.model_validate(QUICK | changes)
    with pytest.raises(InputError) as caught:
        preparation.run(lm or model("llama"), texts, folder / "artifact", source="test")
    assert sorted(folder.rglob("*")) == before, "something was written"
    assert caught.value.mend
    return caught.value


def test_a_corpus_that_is_empty_or_too_small(tmp_path: Path) -> None:
    error = refusal(tmp_path, texts=("", " \n"))
    assert error.field == "--data"
    assert "is empty" in str(error)
    assert "only 1 different texts" in str(refusal(tmp_path, texts=("a text",) * 9))
    few = tuple(part for text in TEXTS[:6] for part in text.split("\n\n"))
    error = refusal(tmp_path, texts=few, expand=3000)
    assert error.field == "--data"
    possible = int(str(error).partition("ask for ")[2].split()[0])
    assert 50 < possible < 3000
    settings = QUICK | {"expand": possible, "tune": False}
    preparation = AdaptivocabPreparation.model_validate(settings)
    preparation.run(model("llama"), few, tmp_path / "artifact", source="test")
    assert Artifact.open(tmp_path / "artifact").manifest.num_new == possible


def test_more_replacements_than_there_are_tokens_to_remove(tmp_path: Path) -> None:
    lm = model("llama")
    most = num_removable(BaseVocabulary.of(lm.tokenizer)) + ROWS - SIZE
    error = refusal(tmp_path, replace=most + 1)
    assert error.field == "--replace"
    assert f"Ask for {most} or fewer" in str(error)
    assert most == ROWS - 256 - 2
    out = prepared(lm, tmp_path, replace=most, corpus_mib=1, tune=False, longest=None)
    assert Artifact.open(out).manifest.num_removed == SIZE - 256 - 2


def test_a_unigram_base_is_refused_by_name(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    error = refusal(tmp_path, wrap(model("llama").model, tokenizer))
    assert error.field == "model"
    assert "Unigram" in str(error)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(tmp_path: Path) -> None:
    import tiny_models

    small = tiny_models.model("llama")
    error = refusal(tmp_path, wrap(small.model, model("llama").tokenizer))
    assert error.field == "model"
    assert f"ids up to {SIZE - 1}, and the model has 258 rows" in str(error)


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "mine").write_text("kept")
    error = refusal(tmp_path)
    assert error.field == "--out"
    assert "not empty" in str(error)
    assert (tmp_path / "artifact" / "mine").read_text() == "kept"


def test_other_corpora_and_processes_need_a_cluster(tmp_path: Path) -> None:
    assert "reads other corpora" in str(refusal_of(tmp_path, protect=("other.txt",)))
    assert "2 processes are asked for" in str(refusal_of(tmp_path, expand=10, workers=2))


def refusal_of(folder: Path, **changes: object) -> InputError:
    preparation = AdaptivocabPreparation.model_validate(QUICK | changes)
    with pytest.raises(InputError) as caught:
        preparation.run(model("llama"), TEXTS, folder / "artifact", source="test")
    assert not (folder / "artifact").exists()
    return caught.value


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="replace or expand, not both"):
        AdaptivocabPreparation(replace=5, expand=5)
    for mode in ("replace", "expand"):
        with pytest.raises(ValueError, match="the authors' file says"):
            AdaptivocabPreparation.model_validate({"official": "a.pkl", mode: 5})


def test_no_pickle_is_written(replaced: Path) -> None:
    kinds = {path.suffix for path in replaced.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert Manifest.model_validate_json((replaced / "adaptivocab.json").read_bytes()).files
