"""The published selection is that of a plain recount by hand and by brute force."""

from __future__ import annotations

import pydoc_data.topics
from collections import Counter
from collections.abc import Sequence
from itertools import product
from unittest import mock

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from optim.adaptivocab.encoded_texts import EncodedTexts, encode
from optim.adaptivocab.selection import paper
from optim.adaptivocab.selection.paper import select
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, Kind
from optim.errors import InputError
from optim.model import DEMO

Gram = tuple[int, ...]

TOKENS = ["a", "Ġb", "c", "1", "22", "Ġ", "d", "Ġe"]
DIGITS, SPACED = {3, 4}, {1, 5, 7}
"""What holds of `TOKENS`, said again for the oracle."""


def vocabulary(
    tokens: Sequence[str] = TOKENS, kind: Kind = "byte-level", added: Sequence[int] = ()
) -> BaseVocabulary:
    return BaseVocabulary(kind, {}, dict(enumerate(tokens)), frozenset(added), ())


def corpus(*chunks: Sequence[int]) -> EncodedTexts:
    """Each chunk a text of its own."""
    numbers = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks]).astype(np.int32)
    ids = np.array([i for chunk in chunks for i in chunk], dtype=np.int32)
    return EncodedTexts(ids, numbers, numbers, num_bytes=0)


def by_brute_force(
    chunks: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    longest: int,
    words_only: bool,
    least_overlap: int,
    most: int,
) -> list[Gram]:
    """Alg. 1 with every pair of occurrences compared and every score looked at each time."""
    found = [
        (tuple(chunk[start : start + n]), number, start, start + n)
        for number, chunk in enumerate(chunks)
        for n in range(2, longest + 1)
        for start in range(len(chunk) - n + 1)
    ]
    frequency = Counter(gram for gram, *_ in found if not set(gram) <= DIGITS)
    if words_only:
        frequency = Counter({g: f for g, f in frequency.items() if not SPACED & set(g[1:])})
    order = sorted(frequency, key=lambda gram: (-frequency[gram], len(gram), gram))[:most]
    found = [occurrence for occurrence in found if occurrence[0] in order]
    overlap: Counter[tuple[Gram, Gram]] = Counter()
    for (one, chunk, start, end), (other, other_chunk, other_start, other_end) in product(
        found, found
    ):
        if chunk == other_chunk and set(range(start, end)) & set(range(other_start, other_end)):
            overlap[one, other] += 1
    scores = {gram: frequency[gram] * len(gram) for gram in order}
    chosen: list[Gram] = []
    while scores and len(chosen) < num_tokens:
        best = max(scores, key=lambda gram: (scores[gram], -order.index(gram)))
        del scores[best]
        chosen.append(best)
        for other in scores:
            if overlap[best, other] >= least_overlap:
                scores[other] -= overlap[best, other] * len(other)
    return chosen


# Few ids, and chunks that repeat each other, so that n-grams recur.
CHUNKS = st.lists(
    st.lists(st.integers(0, len(TOKENS) - 1), max_size=9), min_size=1, max_size=4
).flatmap(lambda kinds: st.lists(st.sampled_from(kinds), max_size=9))


@settings(max_examples=400, deadline=None)
@given(
    chunks=CHUNKS,
    num_tokens=st.integers(0, 40),
    longest=st.integers(2, 5),
    words_only=st.booleans(),
    least_overlap=st.integers(1, 5),
    per_id=st.integers(1, 5),
    slice_tokens=st.integers(1, 50),
)
def test_it_chooses_what_brute_force_chooses(
    chunks: list[list[int]],
    num_tokens: int,
    longest: int,
    words_only: bool,
    least_overlap: int,
    per_id: int,
    slice_tokens: int,
) -> None:
    with mock.patch.object(paper, "SLICE_TOKENS", slice_tokens):
        chosen = select(
            corpus(*chunks),
            vocabulary(),
            num_tokens,
            longest=longest,
            words_only=words_only,
            least_overlap=least_overlap,
            num_candidates_per_id=per_id,
        )
    assert chosen == by_brute_force(
        chunks,
        num_tokens,
        longest=longest,
        words_only=words_only,
        least_overlap=least_overlap,
        most=per_id * len(TOKENS),
    )


A, B, C, D = 0, 2, 6, 8
LETTERS = vocabulary([*TOKENS, "f"])
"""In which A to D are letters without a space."""


def test_what_holds_a_chosen_token_looks_worthless_though_it_still_saves() -> None:
    # F: ab 20, abc 10, bc 10, dd 1. After ab, S[abc] = 30 - 10*3 = 0 and S[bc] = 20 - 10*2 = 0,
    # though abc would save one more token in ten places, and dd saves one in one.
    texts = corpus(*[[A, B, C]] * 10, *[[A, B]] * 10, [D, D])
    assert select(texts, LETTERS, 2) == [(A, B), (D, D)]
    # Of the two without worth the shorter one is next.
    assert select(texts, LETTERS, 9) == [(A, B), (D, D), (B, C), (A, B, C)]


def test_every_pair_of_occurrences_that_overlap_counts() -> None:
    # aaaa: F[aa] = 3, F[aaa] = 2, so both score 6, and the more frequent goes first. All of the
    # six pairs of their occurrences overlap: S[aaa] = 6 - 6*3 = -12. bb and bc each score 2.
    texts = corpus([A, A, A, A], [B, B], [B, C])
    assert select(texts, LETTERS, 4) == [(A, A), (B, B), (B, C), (A, A, A)]


def test_overlaps_that_are_seen_too_rarely_do_not_count() -> None:
    texts = corpus(*[[A, B]] * 5, *[[A, B, C]] * 2, [B, C], *[[D, D]] * 2)
    # ab 7 (S 14), bc 3 (S 6, 2 if its two overlaps count), dd 2 (S 4).
    assert select(texts, LETTERS, 3, longest=2) == [(A, B), (B, C), (D, D)]
    assert select(texts, LETTERS, 3, longest=2, least_overlap=2) == [(A, B), (D, D), (B, C)]


def test_only_the_most_frequent_are_candidates() -> None:
    # One per id: with nine ids, nine of ten pairs; of those seen once the largest ids are out.
    pairs = [[A, B], [A, C], [A, D], [B, A], [B, C], [B, D], [C, A], [C, B], [C, D], [D, A], [D, A]]
    chosen = select(corpus(*pairs), LETTERS, 20, num_candidates_per_id=1)
    assert chosen == [(D, A), *sorted(map(tuple, pairs[:8]))]


def test_nothing_crosses_chunks() -> None:
    texts = EncodedTexts(
        np.array([A, B, C] * 10, dtype=np.int32),
        np.repeat(np.arange(20, dtype=np.int32), [2, 1] * 10),
        np.zeros(30, dtype=np.int32),
        num_bytes=0,
    )
    assert select(texts, LETTERS, 10) == [(A, B)]


def test_numbers_are_left_out_and_what_has_them_is_not() -> None:
    chosen = select(corpus([3, 4, 3, 0]), vocabulary(), 10)
    assert set(chosen) == {(3, 0), (4, 3, 0)}
    digits = vocabulary(["٣", "²", "a"], "sentencepiece")
    assert set(select(corpus([0, 1, 2]), digits, 10)) == {(1, 2), (0, 1, 2)}


def test_bytes_no_break_spaces_and_added_tokens_are_left_out() -> None:
    names = ["▁a", "b", "<0x0A>", "x\u00a0", "<s>"]
    texts = corpus([0, 1, 2, 0, 1, 3, 0, 1, 4, 0, 1])
    base = vocabulary(names, "sentencepiece", added=[4])
    assert select(texts, base, 10) == [(0, 1)]
    # A byte-level vocabulary spells that space as two bytes, which two tokens may share; a token
    # that looks like a byte is text in it.
    bytewise = vocabulary(["a", "Â", "ł", "Âł", "<0x0A>"])
    assert select(corpus([0, 1, 2, 0]), bytewise, 10) == [(0, 1), (2, 0)]
    assert select(corpus([0, 3, 0]), bytewise, 10) == []
    assert select(corpus([0, 4]), bytewise, 10) == [(0, 4)]


@pytest.mark.parametrize(("kind", "space"), [("byte-level", "Ġ"), ("sentencepiece", "▁")])
def test_words_only_lets_no_token_but_the_first_begin_with_a_space(kind: Kind, space: str) -> None:
    base = vocabulary(["x", f"{space}x", "y", space], kind)
    texts = corpus([1, 0, 2, 1, 2, 3, 0])
    words = {(1, 0), (0, 2), (1, 0, 2), (1, 2), (3, 0)}
    assert set(select(texts, base, 50, words_only=True)) == words
    assert set(select(texts, base, 50)) > words


def test_fewer_come_back_where_there_are_fewer() -> None:
    assert select(corpus([A, B]), LETTERS, 5) == [(A, B)]
    assert select(corpus([A, B]), LETTERS, 0) == []
    assert select(corpus([A], [B]), LETTERS, 5) == []
    assert select(corpus([A]), LETTERS, 5, longest=6) == []
    assert select(corpus(), LETTERS, 5) == []


def test_a_token_of_one_base_token_is_refused() -> None:
    with pytest.raises(InputError, match="longest: must be at least 2, got 1"):
        select(corpus([A, B]), LETTERS, 5, longest=1)


def test_the_order_of_texts_and_the_slices_of_counting_change_nothing() -> None:
    tokenizer = tiny_models.tokenizer()
    base = BaseVocabulary.of(tokenizer)
    topics = sorted(pydoc_data.topics.topics.values())[:12]
    backend = tokenizer.backend_tokenizer
    there, back = (
        encode(backend, order, barriers=base.added, cut=False) for order in (topics, topics[::-1])
    )
    chosen = select(there, base, 1000, longest=4)
    assert len(chosen) == len(set(chosen)) == 1000
    assert chosen == select(back, base, 1000, longest=4)
    with mock.patch.object(paper, "SLICE_TOKENS", 1009):
        assert chosen == select(there, base, 1000, longest=4)


def num_tokens_after(texts: EncodedTexts, chosen: list[Gram]) -> int:
    """Greedy, the longest first."""
    known, ids, joins = set(chosen), texts.ids_T.tolist(), [*texts.joins_T().tolist(), False]
    place = number = 0
    while place < len(ids):
        two = joins[place]
        three = two and joins[place + 1] and tuple(ids[place : place + 3]) in known
        place += 3 if three else 2 if two and tuple(ids[place : place + 2]) in known else 1
        number += 1
    return number


def test_words_alone_save_much_less_of_texts_that_were_not_seen() -> None:
    # The paper's ablation, of as many tokens: 14.5 % against 25.8 % on average.
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    base = BaseVocabulary.of(tokenizer)
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    seen, unseen = (
        encode(tokenizer.backend_tokenizer, part, barriers=base.added, cut=False)
        for part in ([t for i, t in enumerate(topics) if i % 5], topics[::5])
    )
    stages: list[str] = []
    every = num_tokens_after(unseen, select(seen, base, 10_000, on_stage=stages.append))
    words = num_tokens_after(unseen, select(seen, base, 10_000, words_only=True))
    assert 1 - words / len(unseen) > 0.15
    assert (words - every) / len(unseen) > 0.08
    assert stages[0] == "counting sequences of 2 tokens"
    assert len(stages) == 2 + 10
