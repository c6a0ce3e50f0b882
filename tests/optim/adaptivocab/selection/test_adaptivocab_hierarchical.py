"""The selection by marginal gain against one that counts everything anew each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import vocabularies
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optim.adaptivocab.encoded_texts import EncodedTexts, encode
from optim.adaptivocab.selection.hierarchical import Rules, Selection, barriers, is_number, select
from optim.adaptivocab.selection.pairs import Pairs
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import extended, reduced, tokenizer_of

TOY = BaseVocabulary.of(vocabularies.toy(["a+b", "b+c"], alphabet="abc 1"))
A, B, C, SPACE, ONE, AB, BC = (TOY.ids[name] for name in ("a", "b", "c", "Ġ", "1", "ab", "bc"))
Text = Sequence[Sequence[int]]
"""The chunks of a text."""


def corpus(*texts: Text) -> EncodedTexts:
    ids, chunks, owners = [], [], []
    num_chunks = 0
    for number, text in enumerate(texts):
        for chunk in text:
            ids += chunk
            chunks += [num_chunks] * len(chunk)
            owners += [number] * len(chunk)
            num_chunks += 1
    arrays = (np.array(values, dtype=np.int32) for values in (ids, chunks, owners))
    return EncodedTexts(*arrays, num_bytes=0)


def chosen(texts: EncodedTexts, num_tokens: int, **options: object) -> Selection:
    options = {"removed": {}, "is_native": False, "rules": Rules(least_texts=1)} | options
    rules = options.pop("rules")
    return select(texts, TOY, num_tokens, rules, **options)  # type: ignore[arg-type]


# --- the oracle -----------------------------------------------------------------------------------


class Oracle(NamedTuple):
    selection: Selection
    saved: list[int]
    """By every merge."""
    left: list[list[int]]
    """Chunks as they are at the end."""


def occurrences(chunk: Sequence[int], pair: tuple[int, int]) -> list[int]:
    """From left to right, none over another."""
    found, place = [], 0
    while place < len(chunk) - 1:
        is_here = (chunk[place], chunk[place + 1]) == pair
        if is_here:
            found.append(place)
        place += 2 if is_here else 1
    return found


def merged(chunk: list[int], pair: tuple[int, int], whole: int) -> list[int]:
    for place in reversed(occurrences(chunk, pair)):
        chunk = [*chunk[:place], whole, *chunk[place + 2 :]]
    return chunk


def by_brute_force(
    texts: Sequence[Text], num_tokens: int, rules: Rules, *, is_native: bool
) -> Oracle:
    chunks = [(number, list(chunk)) for number, text in enumerate(texts) for chunk in text]
    names, numbers = dict(TOY.tokens), dict(TOY.ids)
    expansions = {i: (i,) for i in names}
    made: list[int] = []
    merges: dict[tuple[str, str], None] = {}
    saved = []
    while len(made) < num_tokens:
        counts: Counter[tuple[int, int]] = Counter()
        owners: dict[tuple[int, int], set[int]] = {}
        for number, chunk in chunks:
            for pair in set(pairwise(chunk)):
                counts[pair] += len(occurrences(chunk, pair))
                owners.setdefault(pair, set()).add(number)
        allowed = []
        for pair, count in counts.items():
            expansion = expansions[pair[0]] + expansions[pair[1]]
            text = TOY.text(expansion).decode()
            known = numbers.get(names[pair[0]] + names[pair[1]])
            if (
                count >= rules.least_count
                and len(owners[pair]) >= rules.least_texts
                and (rules.longest is None or len(expansion) <= rules.longest)
                and not ("1" in text and not set(text) - {"1", " "})
                and (known is None or is_native)
            ):
                allowed.append((-count, pair))
        if not allowed:
            break
        count, pair = min(allowed)
        name = names[pair[0]] + names[pair[1]]
        if name not in numbers:
            whole = TOY.size + len(made)
            made.append(whole)
            names[whole], numbers[name] = name, whole
            expansions[whole] = expansions[pair[0]] + expansions[pair[1]]
        merges[names[pair[0]], names[pair[1]]] = None
        chunks = [(number, merged(chunk, pair, numbers[name])) for number, chunk in chunks]
        saved.append(-count)
    selection = Selection([names[i] for i in made], [expansions[i] for i in made], list(merges))
    return Oracle(selection, saved, [chunk for _, chunk in chunks])


tokens = st.sampled_from([A, A, B, C, SPACE, ONE, AB, BC])
documents = st.lists(st.lists(st.lists(tokens, max_size=30), max_size=3), max_size=6)
some_rules = st.builds(
    Rules,
    longest=st.sampled_from([None, 2, 3, 4]),
    least_count=st.integers(2, 4),
    least_texts=st.integers(1, 3),
)
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(documents, st.integers(0, 12), some_rules)
def test_every_token_is_the_most_frequent_pair_of_what_the_others_left(
    texts: list[Text], num_tokens: int, rules: Rules
) -> None:
    wanted = by_brute_force(texts, num_tokens, rules, is_native=False)
    assert chosen(corpus(*texts), num_tokens, rules=rules) == wanted.selection


@many
@given(documents, st.integers(0, 12), some_rules)
@example([[[A, BC, A, BC, AB, AB, C, A, AB, C, AB]]], 2, Rules(least_texts=1))
def test_natively_tokens_that_are_there_are_merged_into_too(
    texts: list[Text], num_tokens: int, rules: Rules
) -> None:
    wanted = by_brute_force(texts, num_tokens, rules, is_native=True)
    assert chosen(corpus(*texts), num_tokens, rules=rules, is_native=True) == wanted.selection


@many
@given(documents)
@example([[[A, A, B, A, B, A, A, A, B, A, C, B, A, B, A, A, A, A]]])
@example([[[A, A, B, A, B, A, C, B, A, B, A, A, A, A]]])
def test_pairs_hold_what_merging_everywhere_leaves(texts: list[Text]) -> None:
    pairs = Pairs(corpus(*texts), 2)
    chunks = [list(chunk) for text in texts for chunk in text]
    for symbol in range(100, 106):
        found = pairs.pop()
        if found is None:
            break
        left, right, places = found
        assert len(places) == sum(len(occurrences(chunk, (left, right))) for chunk in chunks)
        pairs.merge(places, symbol)
        chunks = [merged(chunk, (left, right), symbol) for chunk in chunks]
        assert pairs.symbols().tolist() == [i for chunk in chunks for i in chunk]


# --- single rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(2, 9))
def test_runs_of_one_token_are_merged_from_the_left(length: int) -> None:
    pairs = Pairs(corpus([[A] * length, [B], [A] * length]), 2)
    found = pairs.pop()
    assert found is not None
    assert found[2].tolist() == [
        *range(0, length - 1, 2),
        *range(length + 1, 2 * length, 2),
    ]
    pairs.merge(found[2], 100)
    run = [100] * (length // 2) + [A] * (length % 2)
    assert pairs.symbols().tolist() == [*run, B, *run]


def test_chunks_and_texts_are_never_crossed() -> None:
    assert chosen(corpus(*[[[A], [C]]] * 5, *[[[A]], [[C]]] * 5), 5).names == []
    assert chosen(corpus(*[[[A, C]]] * 5), 5).names == ["ac"]


def test_a_pair_of_too_few_texts_is_left_out_and_the_next_taken() -> None:
    texts = corpus([[A, C] * 9], [[B, A]], [[B, A]])
    assert chosen(texts, 1, rules=Rules(least_texts=2)).names == ["ba"]
    assert chosen(texts, 1, rules=Rules(least_texts=1)).names == ["ac"]


def test_tokens_are_no_longer_than_the_cap_in_base_tokens() -> None:
    texts = corpus(*[[[A, C, B, A, SPACE, C]]] * 9)
    for cap in (2, 3, 4):
        found = chosen(texts, 9, rules=Rules(cap))
        assert max(map(len, found.expansions)) == cap
    assert max(map(len, chosen(texts, 9).expansions)) == 6


def test_nothing_but_digits_becomes_no_token() -> None:
    texts = corpus(*[[[SPACE, ONE, ONE, SPACE, ONE]]] * 9)
    assert chosen(texts, 9).names == []
    assert chosen(corpus(*[[[A, ONE, ONE]]] * 9), 9).names == ["a1", "a11"]


@pytest.mark.parametrize(
    ("content", "is_one"),
    [(b"12", True), (b" 1", True), (b"1 2\n", True), (b"  ", False), (b"", False), (b"1a", False)],
)
def test_numbers_are_digits_with_or_without_white_space(content: bytes, is_one: bool) -> None:
    assert is_number(content) is is_one


def test_equal_strings_of_different_parts_are_one_token_natively_and_none_in_a_patch() -> None:
    texts = corpus(*[[[A, BC]]] * 9, *[[[AB, C]]] * 5)
    native = chosen(texts, 5, is_native=True)
    assert native.names == ["abc"]
    assert native.expansions == [(A, BC)]
    assert native.merges == [("a", "bc"), ("ab", "c")]
    patch = chosen(texts, 5)
    assert patch.names == ["abc"]
    assert patch.merges == [("a", "bc")]


def test_a_string_of_the_base_is_merged_into_its_token_at_no_cost() -> None:
    texts = corpus(*[[[A, B, SPACE]]] * 9)
    native = chosen(texts, 1, is_native=True)
    assert native.names == ["abĠ"]
    assert native.merges == [("a", "b"), ("ab", "Ġ")]
    assert chosen(texts, 2).names == ["bĠ", "abĠ"]


def test_a_string_of_a_token_that_is_gone_may_come_back() -> None:
    texts = corpus(*[[[A, B]]] * 9)
    assert chosen(texts, 1, is_native=True, removed={AB: (A, B)}).names == ["ab"]


def test_fewer_come_back_where_there_are_fewer() -> None:
    assert chosen(corpus(*[[[A, C]]] * 3), 1000).names == ["ac"]
    assert chosen(corpus(), 3) == Selection([], [], [])
    assert chosen(corpus(*[[[A, C]]] * 3), 0).names == []


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optim.adaptivocab.selection.hierarchical.REPORT_EVERY", 1)
    stages: list[str] = []
    chosen(corpus(*[[[A, C]]] * 3), 1, on_stage=stages.append)
    assert stages == ["selecting: 1 of 1 tokens, the last one occurs 3 times"]


def test_bytes_written_out_are_no_bytes() -> None:
    base = vocabularies.base("mistral")
    document = reduced(base, ())
    assert document is not None
    text = "the bytes <0x0A> and\n<0x0A>\n here"
    texts = encode(tokenizer_of(document), [text] * 9, barriers=barriers(base), cut=False)
    found = select(texts, base, 50, Rules(), removed={}, is_native=True)
    made = {left + right for left, right in found.merges}
    assert "<0x0A>" not in made
    ids = {name: base.size + place for place, name in enumerate(found.names)}
    native = tokenizer_of(extended(document, ids, found.merges))
    assert len(native.encode(text).ids) < len(tokenizer_of(document).encode(text).ids) / 2
    assert native.decode(native.encode(text).ids) == text


def test_barriers_are_added_tokens_and_bytes_of_parts_of_characters() -> None:
    assert barriers(vocabularies.base("demo")) == vocabularies.base("demo").added
    base = vocabularies.base("mistral")
    found = {base.tokens[i] for i in barriers(base) - base.added}
    assert found == {f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}


# --- a corpus of the size that it is for ----------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "metaspace"])
def test_what_is_saved_on_the_corpus_is_what_the_choices_promise(name: str) -> None:
    base = vocabularies.base(name)
    document = reduced(base, ())
    assert document is not None
    without = tokenizer_of(document)
    prose = vocabularies.prose()[::3]
    texts = encode(without, prose, barriers=barriers(base), cut=base.kind == "byte-level")
    one, two = (select(texts, base, 500, Rules(), removed={}, is_native=True) for _ in range(2))
    assert one == two
    native = tokenizer_of(
        extended(document, {n: base.size + i for i, n in enumerate(one.names)}, one.merges)
    )
    numbers = base.ids | {name: base.size + i for i, name in enumerate(one.names)}
    pairs, promised = Pairs(texts, 2), 0
    wanted = {(numbers[a], numbers[b]): numbers[a + b] for a, b in one.merges}
    while wanted and (found := pairs.pop()):
        whole = wanted.pop((found[0], found[1]), None)
        if whole is not None:
            promised += len(found[2])
            pairs.merge(found[2], whole)
    ids = [encoding.ids for encoding in native.encode_batch(prose, add_special_tokens=False)]
    saved = len(texts) - sum(map(len, ids))
    assert not wanted
    assert promised > 0.15 * len(texts)
    assert saved == pytest.approx(promised, rel=0.001)
