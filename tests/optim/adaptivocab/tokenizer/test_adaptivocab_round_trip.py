"""Text through an adapted vocabulary and back, of any kind of base, on strings of every plane."""

from __future__ import annotations

import random
from functools import cache
from pydoc_data.topics import topics

import pytest
from test_adaptivocab_patched import BASES, patched

NUM_STRINGS = 20_000
LOSSLESS = {"byte level", "tekken"}
"""Bases that give any text back; SentencePiece's put a space before it and take one away."""
PIECES = (
    "Ġ", "▁", "<0xE2>", "<s>", "</s>", "<|endoftext|>", "<unk>", "[INST]", "⟨4096⟩",
    "e\u0301\u0323\u0308", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "\ufeff", "\0", "\u200f",
    "\u202e", "\u2066", "\r\n", "\r", "\n\n\n", "\t\t", " ", "   ", "\u00a0", "\u3000", "\u2028",
    "\x1b[0m",
    "self.", "the ", "statement", "日本語", "नमस्ते", "مرحبا", "ﷺ", "ﬁ", "İ", "ß", "１２", "½", "�",
)  # fmt: skip
PLANES = [(0, 0xD7FF), (0xE000, 0xFFFF), *((p << 16, (p << 16) + 0xFFFF) for p in range(1, 17))]


@pytest.fixture(params=list(BASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def string(generator: random.Random, document: str) -> str:
    """Up to 12 parts: pieces, characters of all planes, runs, cuts of a document."""
    parts = []
    for _ in range(generator.randrange(13)):
        kind = generator.randrange(5)
        if kind == 0:
            start = generator.randrange(len(document))
            parts.append(document[start : start + generator.randrange(60)])
        elif kind == 1:
            low, high = generator.choice(PLANES)
            parts += [chr(generator.randint(low, high)) for _ in range(generator.randrange(4))]
        elif kind == 2:
            parts.append(generator.choice(" \n\t\r a0") * generator.randrange(9))
        else:
            parts.append(generator.choice(PIECES))
    return "".join(parts)


@cache
def strings() -> list[str]:
    generator, document = random.Random(20260), "\n".join(topics.values())
    return ["", *PIECES, *(string(generator, document) for _ in range(NUM_STRINGS))]


@cache
def encoded(name: str) -> tuple[list[list[int]], list[list[int]]]:
    """The strings' base ids and adapted ids."""
    base, adapted, plain = BASES[name](), patched(name), {"add_special_tokens": False}
    return base(strings(), **plain)["input_ids"], adapted(strings(), **plain)["input_ids"]


def test_the_strings_are_of_every_plane_and_kind() -> None:
    text = "".join(strings())
    assert {ord(c) >> 16 for c in text} == set(range(17))
    assert all(piece in text for piece in PIECES)
    assert len(set(strings())) > 0.8 * NUM_STRINGS


def test_ids_expand_to_the_decomposed_base_ids_and_their_strings(name: str) -> None:
    adapted = patched(name)
    num_new = num_split = 0
    for wanted, ids in zip(*encoded(name), strict=True):
        decomposed = adapted.segmenter.decompose(wanted)
        assert adapted.segmenter.expand(ids) == decomposed
        if decomposed != wanted:
            num_split += 1
            assert _spelled(name, decomposed) == _spelled(name, wanted)
        num_new += len(ids) < len(decomposed)
    assert num_new > NUM_STRINGS / 5
    assert num_split > NUM_STRINGS / 1000


def test_text_comes_back_as_from_the_base(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    base_ids, ids = encoded(name)
    made = adapted.batch_decode(ids, **plain)
    assert made == (strings() if name in LOSSLESS else base.batch_decode(base_ids, **plain))


def test_special_tokens_that_are_typed_stay_text_where_they_are_split(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    typed = [f"a {special}\n{special}{special} b" for special in base.all_special_tokens]
    for text in typed:
        ids = adapted.encode(text, **plain)
        assert not set(ids) & set(base.added_tokens_decoder)
        assert adapted.decode(ids) == base.decode(base.encode(text, **plain))


@pytest.mark.parametrize("seed", range(3))
def test_ids_that_no_text_gives_are_decoded_as_what_they_stand_for(name: str, seed: int) -> None:
    base, adapted = BASES[name](), patched(name)
    generator = random.Random(seed)
    ids = [generator.randrange(len(adapted)) for _ in range(3000)]
    for start in range(0, 3000, 10):
        some = ids[start : start + generator.randrange(10)]
        for skip in (False, True):
            wanted = base.decode(adapted.segmenter.expand(some), skip_special_tokens=skip)
            assert adapted.decode(some, skip_special_tokens=skip) == wanted


def test_a_text_of_a_megabyte_comes_back(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    text = ("\n".join(topics.values()) * 3)[:1_000_000]
    ids = adapted.encode(text, add_special_tokens=False)
    assert len(ids) < 0.95 * len(base.encode(text, add_special_tokens=False))
    made = adapted.decode(ids, clean_up_tokenization_spaces=False)
    assert made == text


def test_a_text_of_ten_megabytes_comes_back() -> None:
    adapted = patched("byte level")
    text = ("\n".join(topics.values()) * 30)[:10_000_000]
    assert len(text) == 10_000_000
    assert adapted.decode(adapted.encode(text)) == text


def _spelled(name: str, ids: list[int]) -> str:
    return "".join(BASES[name]().convert_ids_to_tokens(ids))
