"""Segmenting ids: the fewest tokens, the longest first, what is removed, what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.adaptivocab.tokenizer.segmentation import Patches, Segmenter
from optim.errors import InputError

KEPT = (0, 1, 2, 3)
REMOVED = {8: (0, 1), 9: (3, 2, 3)}
BARRIER = 7
Vocabulary = dict[int, tuple[int, ...]]

expansions = st.lists(
    st.lists(st.sampled_from(KEPT), min_size=2, max_size=6).map(tuple), max_size=12, unique=True
)
vocabularies = expansions.map(lambda found: {100 + k: e for k, e in enumerate(found)})
texts = st.lists(st.sampled_from([*KEPT, *REMOVED, BARRIER, 50]), max_size=60)


def both(new: Vocabulary) -> tuple[Segmenter, Segmenter]:
    fewest = Segmenter(new, REMOVED, "dp", {BARRIER})
    return fewest, Segmenter(new, REMOVED, "greedy", {BARRIER})


@given(vocabularies, texts)
def test_a_cover_expands_to_the_decomposed_text(new: Vocabulary, ids: list[int]) -> None:
    decomposed = [part for token in ids for part in REMOVED.get(token, (token,))]
    for segmenter in both(new):
        made = segmenter.segment(ids)
        assert segmenter.decompose(ids) == decomposed
        assert segmenter.expand(made) == decomposed
        assert sum(map(segmenter.base_length, made)) == len(decomposed)
        assert made.count(BARRIER) == ids.count(BARRIER)


@given(vocabularies, texts)
def test_the_fewest_tokens_are_never_more_than_the_greedy_ones(
    new: Vocabulary, ids: list[int]
) -> None:
    fewest, greedy = both(new)
    assert len(fewest.segment(ids)) <= len(greedy.segment(ids))


@given(vocabularies, st.lists(st.sampled_from(KEPT), max_size=12))
def test_of_all_covers_the_first_by_count_then_by_length_from_the_left_is_taken(
    new: Vocabulary, ids: list[int]
) -> None:
    tokens = {expansion: token for token, expansion in new.items()}

    @cache
    def covers(at: int) -> list[tuple[int, ...]]:
        if at == len(ids):
            return [()]
        found = [(ids[at], *rest) for rest in covers(at + 1)]
        for length in range(2, 7):
            token = tokens.get(tuple(ids[at : at + length]))
            if token is not None and at + length <= len(ids):
                found += [(token, *rest) for rest in covers(at + length)]
        return found

    def rank(cover: tuple[int, ...]) -> tuple[int, list[int]]:
        return len(cover), [-len(new.get(token, (token,))) for token in cover]

    assert Segmenter(new).segment(ids) == list(min(covers(0), key=rank))


@given(vocabularies, texts)
def test_greedy_takes_the_longest_from_left_to_right(new: Vocabulary, ids: list[int]) -> None:
    segmenter = Segmenter(new, REMOVED, "greedy", {BARRIER})
    left, made = segmenter.decompose(ids), []
    tokens = {expansion: token for token, expansion in new.items()}
    while left:
        fits = [n for n in range(2, 7) if n <= len(left) and tuple(left[:n]) in tokens]
        length = max(fits, default=1)
        made.append(tokens[tuple(left[:length])] if length > 1 else left[0])
        left = left[length:]
    assert segmenter.segment(ids) == made


def test_the_fewest_tokens_need_not_begin_with_the_longest() -> None:
    new = {100: (0, 1), 101: (1, 2, 3, 0)}
    assert Segmenter(new, method="greedy").segment([0, 1, 2, 3, 0]) == [100, 2, 3, 0]
    assert Segmenter(new).segment([0, 1, 2, 3, 0]) == [0, 101]


def test_no_new_token_spans_a_barrier_even_where_one_is_asked_for() -> None:
    segmenter = Segmenter({100: (0, 7), 101: (0, 1)}, barriers={7})
    assert segmenter.segment([0, 7, 0, 1]) == [0, 7, 101]
    assert segmenter.expand([100]) == [0, 7]


def test_a_removed_id_may_be_a_new_one() -> None:
    segmenter = Segmenter({8: (2, 3)}, REMOVED)
    assert segmenter.segment([8, 2, 3, 9]) == [0, 1, 8, 3, 8]
    assert segmenter.expand([8, 9]) == [2, 3, 3, 2, 3]
    assert (segmenter.base_length(8), segmenter.base_length(9), segmenter.base_length(0)) == (
        2, 3, 1,
    )  # fmt: skip


def test_long_runs_of_overlapping_matches_are_covered_at_their_best() -> None:
    new = {100 + n: (0,) * n for n in (4, 5)}
    assert Segmenter(new).segment([0] * 500_003) == [105] * 99_999 + [104, 104]


@pytest.mark.parametrize(
    ("new", "removed", "field"),
    [
        ({100: (1,)}, {}, "new.100"),
        ({100: (1, 2), 101: (1, 2)}, {}, "new.101"),
        ({100: (1, 8)}, {8: (0, 1)}, "new.100"),
        ({100: (1, 2), 101: (100, 2)}, {}, "new.101"),
        ({}, {8: (9, 1), 9: (0, 1)}, "removed.8"),
        ({}, {8: ()}, "removed.8"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    new: Vocabulary, removed: Vocabulary, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        Segmenter(new, removed)
    assert caught.value.field == field
    assert caught.value.mend


@given(vocabularies, st.permutations(sorted(REMOVED)))
def test_patches_are_read_as_written_and_equal_ones_give_equal_bytes(
    new: Vocabulary, order: list[int]
) -> None:
    shuffled = Patches(removed={k: REMOVED[k] for k in order}, new=dict(reversed(new.items())))
    written = Patches(removed=REMOVED, new=new)
    assert shuffled.to_json() == written.to_json()
    assert Patches.model_validate_json(written.to_json()) == written


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", None),
        ("[" * 100_000, None),
        ("[1]", None),
        ('{"removed": {}}', "new"),
        ('{"removed": {}, "new": {}, "format": 2}', "format"),
        ('{"removed": {}, "new": {}, "method": "best"}', "method"),
        ('{"removed": {}, "new": {}, "more": 1}', "more"),
        ('{"removed": {}, "new": []}', "new"),
        ('{"removed": {}, "new": {"a": [1, 2]}}', "new.a.[key]"),
        ('{"removed": {}, "new": {"9": [1]}}', "new.9"),
        ('{"removed": {}, "new": {"9": [1, -2]}}', "new.9.1"),
        ('{"removed": {}, "new": {"9": [1, "2"]}}', "new.9.1"),
        ('{"removed": {"9": [1.5]}, "new": {}}', "removed.9.0"),
        ('{"removed": {"9": []}, "new": {}}', "removed.9"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_field(
    text: str, field: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "patches.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        Patches.read(file)
    assert (caught.value.source, caught.value.field) == (str(file), field)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json"):
        Patches.read(tmp_path / "nothing.json")
