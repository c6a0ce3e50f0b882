"""Texts and what is kept of them: parts of a corpus, encoded texts, and the table of tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import vocabularies

from optim.adaptivocab.corpus import gather
from optim.adaptivocab.encoded_texts import EncodedTexts, batches, encode, joined, replaced
from optim.adaptivocab.selection import vocabulary_builder as building
from optim.adaptivocab.selection.removal import Removal
from optim.adaptivocab.selection.vocabulary_builder import Builder, shards_of
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.tokens import TOKENS, Tokens, table
from optim.errors import InputError
from optim.resources import InProcess

# --- encoded texts --------------------------------------------------------------------------------


def same(one: EncodedTexts, two: EncodedTexts) -> bool:
    arrays = ("ids_T", "chunk_T", "text_T")
    equal = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays)
    return equal and one.num_bytes == two.num_bytes


def test_shards_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tokenizer = vocabularies.base("demo"), vocabularies.demo().backend_tokenizer
    nothing = Removal([], {}, 0, 0)
    made = Builder(base, nothing, [], [], [], InProcess(), lambda stage: None)
    texts = ["", *vocabularies.prose()[:20], ""]
    whole = made.encoded(tokenizer, texts, cut=True)
    monkeypatch.setattr(building, "SHARD_CHARACTERS", 3000)
    assert len(shards_of(texts)) > 5
    assert [text for shard in shards_of(texts) for text in shard] == texts
    apart = made.encoded(tokenizer, texts, cut=True)
    assert np.array_equal(whole.ids_T, apart.ids_T)
    assert whole.num_bytes == apart.num_bytes == sum(len(text.encode()) for text in texts)
    assert np.array_equal(whole.joins_T(), apart.joins_T())
    assert np.array_equal(np.diff(whole.text_T) > 0, np.diff(apart.text_T) > 0)


def test_chunks_are_pieces_and_added_tokens_are_chunks_of_their_own() -> None:
    base, tokenizer = vocabularies.base("demo"), vocabularies.demo()
    text = "the statement<|endoftext|>of the"
    texts = [text, "", "a b"]
    found = encode(tokenizer.backend_tokenizer, texts, barriers=base.added, cut=True)
    ids = tokenizer(texts)["input_ids"]
    assert found.ids_T.tolist() == [i for row in ids for i in row]
    assert found.num_texts == 3
    pieces: dict[int, bytes] = {}
    for number, chunk in zip(found.ids_T.tolist(), found.chunk_T.tolist(), strict=True):
        pieces[chunk] = pieces.get(chunk, b"") + (base.contents[number] or b"<>")
    wanted = [b"the", b" statement", b"<>", b"of", b" the", b"a", b" b"]
    assert list(pieces.values()) == wanted
    uncut = encode(tokenizer.backend_tokenizer, texts, barriers=base.added, cut=False)
    assert len(set(uncut.chunk_T.tolist())) == 4


def test_removed_tokens_are_written_as_their_parts() -> None:
    arrays = [np.array(values, dtype=np.int32) for values in ([5, 3, 5, 9], [0, 0, 1, 1], [0] * 4)]
    texts = EncodedTexts(*arrays, num_bytes=7)
    found = replaced(texts, {5: (1, 2, 3), 900: (1, 2)})
    assert found.ids_T.tolist() == [1, 2, 3, 3, 1, 2, 3, 9]
    assert found.chunk_T.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(found.text_T) == 8
    assert same(replaced(texts, {}), texts)


def test_joined_corpora_share_no_chunk_and_no_text() -> None:
    tokenizer = vocabularies.demo().backend_tokenizer
    parts = [encode(tokenizer, texts, barriers=(), cut=True) for texts in (["a b"], [], ["c", "d"])]
    found = joined(parts)
    assert found.text_T.tolist() == [0, 0, 1, 2]
    assert found.chunk_T.tolist() == [0, 1, 2, 3]


def test_batches_are_of_so_many_characters() -> None:
    found = list(batches(["aa", "b", "cccc", "d"], characters=3))
    assert found == [["aa", "b"], ["cccc", "d"]]
    assert list(batches([])) == []


# --- corpus ---------------------------------------------------------------------------------------


def texts_of(num_texts: int) -> list[str]:
    return [f"text number {number}" for number in range(num_texts)]


@pytest.mark.parametrize(
    ("num_texts", "share", "num_apart"), [(3, 0.01, 1), (100, 0.1, 10), (3, 0.5, 1), (9, 0.9, 4)]
)
def test_texts_are_parted_whole(num_texts: int, share: float, num_apart: int) -> None:
    found = gather(texts_of(num_texts), 1 << 20, share)
    assert len(found.dev) == len(found.held_out) == num_apart
    parts = [*found.train, *found.dev, *found.held_out]
    assert sorted(parts) == sorted(texts_of(num_texts))
    assert found.num_bytes == sum(map(len, parts))
    assert not found.is_cut


def test_a_text_stays_in_its_part_whatever_the_order() -> None:
    texts = texts_of(50)
    one, two = gather(texts, 1 << 20, 0.1), gather(texts[::-1], 1 << 20, 0.1)
    for part in ("train", "dev", "held_out"):
        assert set(getattr(one, part)) == set(getattr(two, part))
    assert one.sha256 != two.sha256
    assert one == gather(iter(texts), 1 << 20, 0.1)


def test_equal_texts_are_one_and_empty_ones_none() -> None:
    found = gather(["a", " \n", "b", "a", "", "c", "c"], 1 << 20, 0.1)
    assert sorted([*found.train, *found.dev, *found.held_out]) == ["a", "b", "c"]
    digest = b"".join(hashlib.sha256(text.encode()).digest() for text in "abacc")
    assert found.sha256 == hashlib.sha256(digest).hexdigest()


def test_no_more_than_so_many_bytes_are_read() -> None:
    stages: list[str] = []
    found = gather(["éé", "aaaa", "bb", "never"], 10, 0.1, on_stage=stages.append)
    assert (found.num_bytes, found.is_cut) == (10, True)
    assert "longer than 10 bytes" in stages[0]
    assert "never" not in [*found.train, *found.dev, *found.held_out]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([], "is empty"), (["", " "], "is empty"), (["a", "b", "a"], "has only 2 different texts")],
)
def test_too_few_texts_are_refused(texts: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        gather(texts, 1 << 20, 0.1, field="--protect")
    assert raised.value.field == "--protect"


# --- the table of tokens --------------------------------------------------------------------------


def toy_table() -> Tokens:
    base = BaseVocabulary.of(vocabularies.toy(["a+b", "ab+c", "Ġ+a"]))
    ids = base.ids
    gone = ids["abc"]
    parts = [(ids["ab"], ids["c"], ids["Ġa"]), (ids["Ġa"], ids["c"])]
    removed = {gone: (ids["ab"], ids["c"])}
    return table(base, [gone, base.size], ["abcĠa", "Ġac"], parts, removed, [gone])


def test_base_lengths_count_removed_tokens_as_the_base_has_them() -> None:
    tokens = toy_table()
    assert [(token.name, token.base_length) for token in tokens.new] == [("abcĠa", 2), ("Ġac", 2)]
    assert [token.name for token in tokens.removed] == ["abc"]
    assert tokens.expansions() == {token.id: token.parts for token in tokens.new}


def test_keys_are_above_every_id_and_of_the_bytes() -> None:
    keys = [token.key for token in toy_table().new]
    assert all(1 << 62 <= key < 1 << 63 for key in keys)
    assert len(set(keys)) == 2
    assert keys == [token.key for token in toy_table().new]


def test_the_engine_s_vocabulary_is_the_base_s_but_for_new_tokens() -> None:
    tokens = toy_table()
    found = tokens.vocabulary(12)
    keys_V, lengths_V = torch.arange(12), torch.ones(12, dtype=torch.int32)
    for token in tokens.new:
        keys_V[token.id], lengths_V[token.id] = token.key, token.base_length
    assert torch.equal(found.keys_V, keys_V)
    assert torch.equal(found.base_lengths_V, lengths_V)
    assert found.base_lengths_V.dtype == torch.int32


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    tokens = toy_table()
    tokens.write(tmp_path)
    data = (tmp_path / TOKENS).read_bytes()
    assert Tokens.model_validate_json(data) == tokens
    tokens.write(tmp_path)
    assert (tmp_path / TOKENS).read_bytes() == data
    assert len(data.splitlines()) > len(tokens.new) + len(tokens.removed)
    empty = Tokens(new=())
    empty.write(tmp_path)
    assert Tokens.model_validate_json((tmp_path / TOKENS).read_bytes()) == empty
