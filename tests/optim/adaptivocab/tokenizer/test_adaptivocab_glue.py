"""Longer chunks: the base's segmentation on any text, and cuts where they have to stay."""

from __future__ import annotations

import json
from functools import cache

import pytest
import vocabularies
from tokenizers import Regex, Tokenizer, pre_tokenizers

from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import reduced, tokenizer_of
from optim.adaptivocab.tokenizer.pretokenizer import (
    CLASSES,
    MOST_MATCHES,
    classes_of,
    glued,
    inner_pairs,
)

NUM_STRINGS = 20_000


@pytest.fixture(params=list(vocabularies.BYTE_LEVEL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def longer(base: BaseVocabulary) -> Tokenizer:
    document = reduced(base, ())
    assert document is not None
    return tokenizer_of(document)


@cache
def whole(name: str) -> Tokenizer:
    return longer(vocabularies.base(name))


def chunks(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the pre-tokenizer makes of a text."""
    found = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in found]


def test_the_base_segmentation_stays_as_it_was(name: str) -> None:
    texts = [*vocabularies.nasty(NUM_STRINGS), *vocabularies.sources(), *vocabularies.prose()[:50]]
    base = vocabularies.base(name)
    wanted = tokenizer_of(base.document).encode_batch(texts, add_special_tokens=False)
    found = whole(name).encode_batch(texts, add_special_tokens=False)
    different = [text for text, a, b in zip(texts, wanted, found, strict=True) if a.ids != b.ids]
    assert not different, f"{len(different)} of {len(texts)}, as {different[0][:100]!r}"


def test_chunks_span_words(name: str) -> None:
    base = vocabularies.base(name)
    text = "A statement of the language, as in the other languages"
    assert len(chunks(whole(name), text)) < len(chunks(tokenizer_of(base.document), text)) / 2


def test_every_character_is_of_exactly_one_class_and_of_the_one_that_is_said() -> None:
    points = [*range(0xD800), *range(0xE000, 0x30000), *range(0x30000, 0x110000, 97)]
    characters = [chr(point) for point in points]
    seen: dict[str, str] = {}
    for name, expression in CLASSES.items():
        split = pre_tokenizers.Split(Regex(f"(?:{expression})+"), "removed", invert=True)
        for run, _ in split.pre_tokenize_str("".join(characters)):
            assert not seen.keys() & set(run), name
            seen |= dict.fromkeys(run, name)
    assert len(seen) == len(characters)
    sample = characters[::7]
    assert classes_of(sample) == {character: (seen[character],) for character in sample}


def test_a_letter_that_python_does_not_know_is_of_the_class_that_cuts_are_made_by() -> None:
    # Assigned in Unicode 14 to 16: whichever Python has, the expressions decide.
    for character, name in {"\ua7cb": "letter", "\u0897": "mark", "\u0378": "other"}.items():
        split = pre_tokenizers.Split(Regex(CLASSES[name]), "removed", invert=True)
        is_known = bool(split.pre_tokenize_str(character))
        assert (classes_of([character])[character] == (name,)) is is_known


def test_two_digits_in_a_row_are_cut_where_the_base_cuts_them(name: str) -> None:
    base = vocabularies.base(name)
    original = tokenizer_of(base.document)
    for text in ("in 20245 of 1999", "x123456.789", "٣٤٥٦ and ½²34", "1 2 3"):
        before, after = _cuts(chunks(original, text)), _cuts(chunks(whole(name), text))
        assert after <= before
        for cut in before:
            if text[cut - 1].isnumeric() and text[cut].isnumeric():
                assert cut in after, (text, cut)


def _cuts(pieces: list[str]) -> set[int]:
    ends = [len("".join(pieces[:count])) for count in range(len(pieces))]
    return set(ends)


def test_classes_that_meet_within_a_base_token_stay_cut() -> None:
    apart = BaseVocabulary.of(vocabularies.toy(["a+b"]))
    across = BaseVocabulary.of(vocabularies.toy(["a+ ", "a +b", "a+b"]))
    assert inner_pairs(apart) == {("latin", "latin")}
    assert inner_pairs(across) == {("latin", "latin"), ("latin", "space"), ("space", "latin")}
    assert chunks(longer(apart), "ab ab a b") == ["ab ab a b"]
    assert chunks(longer(across), "ab ab a b") == ["ab", " ab", " a", " b"]
    for text in ("a b", "ab a b", "a  b"):
        for base in (apart, across):
            ids = tokenizer_of(base.document).encode(text).ids
            assert longer(base).encode(text).ids == ids


def test_a_token_of_two_halves_of_characters_keeps_the_cuts_between_such() -> None:
    # は、 is cut by the base; the end of は and the beginning of any character are one token.
    symbols = [vocabularies.byte_symbols()[byte] for byte in "は、".encode()]
    ends, begins = symbols[2], symbols[3]
    tokenizer = vocabularies.toy([f"{ends}+{begins}"], alphabet="は、ab ")
    base = BaseVocabulary.of(tokenizer)
    assert ("letter", "other") in inner_pairs(base)
    ids = tokenizer("は、", add_special_tokens=False)["input_ids"]
    assert longer(base).encode("は、").ids == ids
    assert base.ids[ends + begins] not in ids


def test_continuation_bytes_belong_to_the_character_before() -> None:
    symbols = [vocabularies.byte_symbols()[byte] for byte in "は".encode()]
    tokenizer = vocabularies.toy([f"{symbols[1]}+{symbols[2]}"], alphabet="は")
    assert inner_pairs(BaseVocabulary.of(tokenizer)) == set()


def test_rows_of_matches_end_and_go_on() -> None:
    base = BaseVocabulary.of(vocabularies.toy(["a+b"]))
    text = "ab" + " ab" * (3 * MOST_MATCHES)
    pieces = chunks(longer(base), text)
    assert "".join(pieces) == text
    assert [piece.count("ab") for piece in pieces] == [MOST_MATCHES] * 3 + [1]
    assert longer(base).encode(text).ids == tokenizer_of(base.document).encode(text).ids


@pytest.mark.parametrize("unit", ["a ", "a b, c. ", "\n", "a\u00a0é"])
def test_texts_without_any_cut_are_not_too_long_for_the_expression(unit: str) -> None:
    text = unit * (3_000_000 // len(unit))
    split = longer(vocabularies.base("demo")).pre_tokenizer.pre_tokenize_str(text)
    assert split[-1][1][1] == len(text)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"use_regex": False}, id="nothing is cut"),
        pytest.param({"add_prefix_space": True}, id="a space is put first"),
        pytest.param({"type": "Whitespace"}, id="another kind"),
    ],
)
def test_other_single_steps_are_not_taken_for_known_ones(change: dict[str, object]) -> None:
    parsed = vocabularies.document(vocabularies.toy(["a+b"]))
    parsed["pre_tokenizer"] |= change
    base = BaseVocabulary("byte-level", parsed, {0: "a"}, frozenset(), ())
    assert glued(base) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"invert": True}, id="inverted"),
        pytest.param({"behavior": "MergedWithPrevious"}, id="merged"),
        pytest.param({"pattern": {"String": " "}}, id="a string"),
    ],
)
def test_other_splits_are_not_taken_for_known_ones(change: dict[str, object]) -> None:
    base = vocabularies.base("llama3")
    parsed = json.loads(json.dumps(base.document))
    parsed["pre_tokenizer"]["pretokenizers"][0] |= change
    assert glued(BaseVocabulary(base.kind, parsed, base.tokens, base.added, base.merges)) is None


def test_two_splits_are_not_known() -> None:
    assert glued(BaseVocabulary.of(vocabularies.two_splits())) is None
