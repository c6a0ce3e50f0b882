"""What a vocabulary costs other domains, and vocabularies that the authors' code made."""

from __future__ import annotations

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
from test_adaptivocab_embeddings import TEXTS, model
from test_adaptivocab_preparation import QUICK, prepared, recounted
from transformers import PreTrainedTokenizerFast

from benchmarks.vocabulary.mistral_tokenizers import sentencepiece_v3
from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.artifact_builder import NOTHING
from optim.adaptivocab.corpus import gather
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.selection.removal import choose
from optim.adaptivocab.selection.vocabulary_builder import Builder, Recipe
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import tokenizer_of
from optim.errors import InputError
from optim.model import load, load_tokenizer
from optim.resources import InProcess

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


def test_expanding_costs_other_texts_nothing(tmp_path: Path) -> None:
    expanded = prepared(model("llama"), tmp_path, expand=60, tune=False)
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
