"""Taking tokenizers apart: kinds, merges, the bytes of every id, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vocabularies
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optim.adaptivocab.tokenizer.base_vocabulary import (
    BYTES,
    BaseVocabulary,
    byte_symbols,
    is_byte_token,
)
from optim.errors import InputError


@pytest.fixture(params=list(vocabularies.BASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_kinds_are_recognised(name: str) -> None:
    wanted = "byte-level" if name in vocabularies.BYTE_LEVEL else "sentencepiece"
    assert vocabularies.base(name).kind == wanted


def test_every_id_has_its_token_string(name: str) -> None:
    base, tokenizer = vocabularies.base(name), vocabularies.BASES[name]()
    assert base.tokens == {i: token for token, i in tokenizer.get_vocab().items()}
    assert base.size == len(tokenizer)
    assert all(base.ids[token] == i for i, token in base.tokens.items())
    assert base.added == frozenset(tokenizer.added_tokens_decoder)


def test_merges_make_the_tokens_that_they_spell(name: str) -> None:
    base = vocabularies.base(name)
    tokens = base.tokens
    assert len(base.merges) == len(
        vocabularies.document(vocabularies.BASES[name]())["model"]["merges"]
    )
    assert all(tokens[left] + tokens[right] == tokens[whole] for left, right, whole in base.merges)
    first = {whole: (left, right) for left, right, whole in reversed(base.merges)}
    assert base.parts == first


def test_ids_stand_for_the_bytes_that_decoding_gives(name: str) -> None:
    base, tokenizer = vocabularies.base(name), vocabularies.BASES[name]()
    decoder = tokenizer.backend_tokenizer
    # In front of each, for decoders that take a leading space away.
    letter = base.ids["a"]
    numbers = sorted(set(base.tokens) - base.added)[:40_000]
    found = decoder.decode_batch([[letter, i] for i in numbers], skip_special_tokens=False)
    num_compared = 0
    for i, text in zip(numbers, found, strict=True):
        try:
            wanted = base.contents[i].decode()
        except UnicodeDecodeError:
            assert "\ufffd" in text
            continue
        assert text == "a" + wanted, base.tokens[i]
        num_compared += 1
    assert num_compared > 0.8 * len(numbers)


def test_added_tokens_stand_for_no_text(name: str) -> None:
    base = vocabularies.base(name)
    assert base.added
    assert all(base.contents[i] == b"" for i in base.added)


def test_ids_of_a_text_stand_for_its_bytes(name: str) -> None:
    base, tokenizer = vocabularies.base(name), vocabularies.BASES[name]()
    text = "\n".join(vocabularies.prose()[:5]) + vocabularies.FOREIGN + "\0\x7f\u0345👍🏽"
    if name == "qwen2":
        text = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    content = base.text(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert content.decode().removeprefix(" ") == text


def test_the_characters_of_bytes_are_those_of_tokenizers() -> None:
    assert set(BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in ("\0", " ", "~", "\x7f", "¡", "\u00ad", "é", "日", "👍"):
        ((symbols, _),) = step.pre_tokenize_str(character)
        assert [BYTES[symbol] for symbol in symbols] == list(character.encode())
        assert "".join(byte_symbols()[byte] for byte in character.encode()) == symbols


@pytest.mark.parametrize(
    ("token", "is_one"),
    [("<0x00>", True), ("<0xFF>", True), ("<0x0A>", True), ("<0x0A>>", False), ("<unk>", False)],
)
def test_byte_tokens_are_told_by_their_form(token: str, is_one: bool) -> None:
    assert is_byte_token(token) is is_one


def test_merges_with_a_blank_between_them_are_read() -> None:
    base = vocabularies.toy(["a+b", "ab+c"])
    parsed = json.loads(base.backend_tokenizer.to_str())
    parsed["model"]["merges"] = [" ".join(pair) for pair in parsed["model"]["merges"]]
    assert BaseVocabulary.of(vocabularies.wrapped(parsed)).merges == BaseVocabulary.of(base).merges


def test_a_tokenizer_is_not_changed_by_taking_it_apart() -> None:
    tokenizer = vocabularies.toy(["a+b"])
    before = tokenizer.backend_tokenizer.to_str()
    base = BaseVocabulary.of(tokenizer)
    base.copy()["model"]["vocab"].clear()
    assert base.document["model"]["vocab"]
    assert tokenizer.backend_tokenizer.to_str() == before


# --- what is refused ------------------------------------------------------------------------------


def plain(model: Any) -> Callable[[], PreTrainedTokenizerFast]:
    return lambda: vocabularies.wrapped(Tokenizer(model), unk_token="<unk>")


LETTERS = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
REFUSED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "Unigram": plain(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
    "WordPiece": plain(models.WordPiece(LETTERS, unk_token="<unk>")),
    "WordLevel": plain(models.WordLevel(LETTERS, unk_token="<unk>")),
    "dropout": lambda: vocabularies.toy(["a+b"], dropout=0.1),
    "prefixes or suffixes": plain(
        models.BPE(vocab=LETTERS, merges=[], continuing_subword_prefix="##", unk_token="<unk>")
    ),
    "suffixes of subwords": plain(
        models.BPE(vocab=LETTERS, merges=[], end_of_word_suffix="</w>", unk_token="<unk>")
    ),
    "without bytes": plain(models.BPE(vocab=LETTERS, merges=[("a", "b")], unk_token="<unk>")),
}


@pytest.mark.parametrize("word", list(REFUSED))
def test_other_models_than_bpe_over_bytes_are_refused_by_name(word: str) -> None:
    with pytest.raises(InputError, match=word) as raised:
        BaseVocabulary.of(REFUSED[word]())
    assert raised.value.field == "model"
    assert raised.value.mend


def test_a_tokenizer_without_a_tokenizer_json_is_refused_by_its_class(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    with pytest.raises(InputError, match=r"a CanineTokenizer without a tokenizer\.json"):
        BaseVocabulary.of(CanineTokenizer())
