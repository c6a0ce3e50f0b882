"""What a preparation refuses, in one clear error and with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_adaptivocab_embeddings import ROWS, SIZE, TEXTS, model
from test_adaptivocab_preparation import QUICK, prepared
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from optim.adaptivocab.artifact import Artifact
from optim.adaptivocab.preparation import AdaptivocabPreparation
from optim.adaptivocab.selection.removal import num_removable
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.errors import InputError
from optim.model import LanguageModel, wrap


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
