"""Plain tokenizers with another vocabulary: what they encode to, and what they decode."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
import vocabularies
from adapted_vocabularies import Adapted, adapted, native, strings

from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, is_byte_token
from optim.adaptivocab.tokenizer.export import extended, parity, reduced, tokenizer_of

LOSSLESS = ["demo", "gpt2", "llama3", "tekken"]
REAL = ["demo", "tekken", "mistral"]


@pytest.fixture(params=list(vocabularies.BASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- encoding -------------------------------------------------------------------------------------


def test_it_gives_what_its_parts_give_on_any_text(name: str) -> None:
    made = adapted(name)
    texts = strings() if name in REAL else strings(4000)
    found = parity(made.base, made.document, made.names, made.chosen.merges, texts)
    assert found.num_texts == len(texts)
    assert (found.num_drifted, found.num_different) == (0, 0)
    assert found.holds


def test_kept_tokens_keep_their_ids_and_specials_stay(name: str) -> None:
    made, base = adapted(name), vocabularies.base(name)
    vocabulary = native(name).get_vocab(with_added_tokens=True)
    kept = {token: i for i, token in base.tokens.items() if i not in made.removal.ids}
    assert vocabulary == kept | made.names
    assert made.document["added_tokens"] == base.document["added_tokens"]
    assert len(set(vocabulary.values())) == len(vocabulary)


@pytest.mark.parametrize("name", ["qwen2", "llama3", "gpt2"])
def test_a_larger_vocabulary_moves_no_added_token(name: str) -> None:
    made, base = adapted(name, is_larger=True), vocabularies.base(name)
    tokenizer = tokenizer_of(made.document)
    assert made.removal.ids == []
    end = tokenizer.token_to_id(vocabularies.END)
    assert end == base.ids[vocabularies.END]
    assert tokenizer.encode(vocabularies.END).ids == [end]
    assert tokenizer.get_vocab(with_added_tokens=True) == base.ids | made.names


def test_domain_texts_have_fewer_tokens(name: str) -> None:
    texts = vocabularies.prose()[::8]
    before = tokenizer_of(vocabularies.base(name).document).encode_batch(texts)
    after = native(name).encode_batch(texts)
    assert sum(len(e.ids) for e in after) < 0.9 * sum(len(e.ids) for e in before)


def test_new_tokens_are_made_alone_and_span_words(name: str) -> None:
    made = adapted(name)
    inner = [n for n in made.chosen.names if "Ġ" in n[1:] or "▁" in n[1:]]
    assert len(inner) > len(made.chosen.names) / 10
    for token, parts in zip(made.chosen.names, made.chosen.expansions, strict=True):
        assert "".join(made.base.tokens[i] for i in parts) == token
        assert not set(parts) & set(made.removal.ids)


def test_a_drifting_or_different_tokenizer_is_noticed() -> None:
    made = adapted("demo")
    texts = vocabularies.prose()[:20]
    other = extended(made.document, {}, [])
    other["model"]["merges"][-1], other["model"]["merges"][-300] = (
        other["model"]["merges"][-300],
        other["model"]["merges"][-1],
    )
    other["model"]["merges"] = other["model"]["merges"][:-200]
    assert not parity(made.base, other, made.names, made.chosen.merges, texts).holds
    lossy = extended(made.document, {}, [])
    lossy["decoder"] = {"type": "Fuse"}
    found = parity(made.base, lossy, made.names, made.chosen.merges, texts)
    assert (found.num_drifted, found.num_different) == (0, len(texts))


def test_a_name_that_was_removed_may_come_back_under_another_id() -> None:
    base = BaseVocabulary.of(vocabularies.toy(["a+b", "b+c", "ab+c"]))
    document = reduced(base, [base.ids["abc"]])
    assert document is not None
    names, merges = {"abc": base.size}, [("a", "bc"), ("ab", "c")]
    made = extended(document, names, merges)
    assert tokenizer_of(made).encode("abc").ids == [base.size]
    assert parity(base, made, names, merges, ["abc", "bc abc", "aabcc"]).holds


def test_merges_of_the_base_go_on_where_a_new_one_makes_its_token() -> None:
    # `a|bc` becomes `abc`, a token of the base, which the base merges with another letter.
    base = BaseVocabulary.of(vocabularies.toy(["b+c", "a+b", "ab+c", "abc+a"]))
    document = reduced(base, ())
    assert document is not None
    merges = [("a", "bc")]
    made = extended(document, {}, merges)
    assert tokenizer_of(document).encode("abca").ids == [base.ids[n] for n in ("a", "bc", "a")]
    assert tokenizer_of(made).encode("abca").ids == [base.ids["abca"]]
    assert parity(base, made, {}, merges, ["abca", "abcabca"]).holds


def test_special_tokens_that_are_typed_are_special_and_are_never_merged(name: str) -> None:
    made, tokenizer = adapted(name), native(name)
    special = vocabularies.BASES[name]().eos_token
    number = made.base.ids[special]
    text = f"the statement of the{special} statement of the {special}{special} function"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids.count(number) == 3
    assert not any(set(parts) & made.base.added for parts in made.chosen.expansions)
    split = vocabularies.wrapped(tokenizer_of(made.document), split_special_tokens=True)
    ids = split(text, add_special_tokens=False)["input_ids"]
    assert number not in ids
    assert split.decode(ids).strip() == text


@pytest.mark.parametrize("name", ["two", "metaspace"])
def test_what_cuts_in_an_unknown_way_is_not_carried_over(name: str) -> None:
    if name == "two":
        assert reduced(BaseVocabulary.of(vocabularies.two_splits()), ()) is None
        return
    parsed = vocabularies.document(vocabularies.metaspace_style())
    parsed["pre_tokenizer"]["split"] = True
    assert reduced(BaseVocabulary.of(vocabularies.wrapped(parsed)), ()) is None


def test_a_text_of_ten_megabytes_is_encoded() -> None:
    text = ("\n".join(vocabularies.prose()) * 15)[:10_000_000]
    tokenizer = native("demo")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) < 0.27 * len(text)
    assert tokenizer.decode(ids) == text


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
def test_any_text_comes_back(name: str) -> None:
    tokenizer = native(name)
    texts = strings() if name == "demo" else strings(4000)
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    back = tokenizer.decode_batch([e.ids for e in encodings], skip_special_tokens=False)
    assert back == texts


def test_ids_expand_to_the_strings_that_the_base_gives(name: str) -> None:
    made = adapted(name)
    texts, tokens = strings()[:2000], made.base.tokens
    wanted = tokenizer_of(made.base.document).encode_batch(texts, add_special_tokens=False)
    found = native(name).encode_batch(texts, add_special_tokens=False)
    for plain, new in zip(wanted, found, strict=True):
        spelled = "".join(tokens[i] for i in made.expand(new.ids))
        assert spelled == "".join(tokens[i] for i in plain.ids)


def random_ids(made: Adapted, num_rows: int, seed: int = 1) -> list[list[int]]:
    """New ids, bytes, and any others, as no text is encoded."""
    generator, tokens = random.Random(seed), made.base.tokens
    kept = sorted(set(tokens) - set(made.removal.ids))
    few = [i for i in kept if is_byte_token(tokens[i]) or len(tokens[i]) == 1][:400]
    edges = [i for i, n in zip(made.ids, made.chosen.names, strict=True) if n[0] + n[-1] != "<>"]
    with_bytes = [made.names[n] for n in made.chosen.names if "<0x" in n] or edges
    pools = [kept, few, made.ids, with_bytes]
    return [
        [generator.choice(generator.choice(pools)) for _ in range(generator.randrange(1, 12))]
        for _ in range(num_rows)
    ]


def test_ids_that_no_text_gives_are_decoded_as_what_they_stand_for(name: str) -> None:
    made, tokenizer = adapted(name), native(name)
    original = tokenizer_of(made.base.document)
    rows = random_ids(made, 3000)
    expanded = [made.expand(row) for row in rows]
    found = tokenizer.decode_batch(rows, skip_special_tokens=False)
    assert found == tokenizer.decode_batch(expanded, skip_special_tokens=False)
    by_base = original.decode_batch(expanded, skip_special_tokens=False)
    num_differ = 0
    for row, own, base_s in zip(expanded, found, by_base, strict=True):
        if has_broken_run(made, row):
            num_differ += own != base_s
        else:
            assert own == base_s
    assert num_differ or made.base.kind == "byte-level" or not replaced_bytes(made)


def replaced_bytes(made: Adapted) -> set[int]:
    """Bytes that a SentencePiece decoder puts in before it looks at bytes in a row."""
    steps = made.document["decoder"].get("decoders", [])
    texts = [step["pattern"]["String"] for step in steps if step["type"] == "Replace"]
    return {int(text[3:5], 16) for text in texts if is_byte_token(text)}


def has_broken_run(made: Adapted, ids: list[int]) -> bool:
    """Whether an ASCII byte that new tokens hold stands beside bytes that make no character.

    The base gives one U+FFFD for every byte of such a run, and the line's end in it is lost; the
    native decoder keeps it. No text is encoded so.
    """
    apart, tokens = replaced_bytes(made), made.base.tokens
    for is_byte, group in groupby(ids, key=lambda i: is_byte_token(tokens[i])):
        run = bytes(int(tokens[i][3:5], 16) for i in group) if is_byte else b""
        if set(run) & apart and "\ufffd" in run.decode("utf-8", "replace"):
            return True
    return False


def test_lines_are_within_new_tokens_of_sentencepiece_vocabularies() -> None:
    made = adapted("mistral")
    assert replaced_bytes(made) == {0x0A}
    assert sum("<0x0A>" in n for n in made.chosen.names) > 100
