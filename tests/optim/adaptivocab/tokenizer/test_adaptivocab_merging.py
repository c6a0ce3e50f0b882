"""Merges in plain Python against those of the tokenizers library."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from optim.adaptivocab.tokenizer.base_vocabulary import merged


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
    st.text("abcd", max_size=60),
)
def test_merging_is_what_tokenizers_does(pairs: list[tuple[int, int]], text: str) -> None:
    names = list("abcd")
    merges: list[tuple[str, str]] = []
    for left, right in pairs:
        pair = names[left % len(names)], names[right % len(names)]
        if pair not in merges and len("".join(pair)) < 12:
            merges.append(pair)
            names += [] if "".join(pair) in names else ["".join(pair)]
    ids = {name: i for i, name in enumerate(names)}
    ranks = {(ids[a], ids[b]): (rank, ids[a + b]) for rank, (a, b) in enumerate(merges)}
    wanted = Tokenizer(models.BPE(vocab=ids, merges=merges)).encode(text).ids
    assert merged([ids[letter] for letter in text], ranks) == wanted


def test_merging_takes_no_square_time() -> None:
    ranks = {(0, 0): (0, 1), (1, 1): (1, 2), (2, 2): (2, 3)}
    assert merged([0] * 200_000, ranks) == [3] * 25_000
