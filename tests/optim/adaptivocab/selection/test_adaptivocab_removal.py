"""What goes: leaves of the merges only, the cheapest first, and what they are split into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.adaptivocab.encoded_texts import encode
from optim.adaptivocab.selection.removal import choose, num_removable, under_trained
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import reduced, tokenizer_of

NUM_REMOVED = {"mistral": 5000, "demo": 1500, "llama3": 1500, "gemma": 1000}
WORDS = ["a+b", "b+c", "ab+c", "a+bc", "abc+a", "c+c", "cc+cc", "ccc+a"]


@pytest.fixture(params=list(NUM_REMOVED))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def counts_of(base: BaseVocabulary) -> npt.NDArray[np.int64]:
    original = tokenizer_of(base.document)
    texts = encode(original, vocabularies.prose()[::5], barriers=(), cut=False)
    return texts.counts_V(base.size)


def without(base: BaseVocabulary, removed: Sequence[int]) -> BaseVocabulary:
    document = reduced(base, removed)
    assert document is not None
    return BaseVocabulary.of(vocabularies.wrapped(document))


def test_kept_tokens_are_encoded_to_themselves_as_before(name: str) -> None:
    base = vocabularies.base(name)
    removal = choose(base, counts_of(base), NUM_REMOVED[name])
    kept = sorted(set(base.tokens) - set(removal.ids) - base.added)
    texts = [base.contents[i].decode("utf-8", "replace") for i in kept]
    if name == "mistral":  # A space is put first by itself.
        texts = [text.removeprefix(" ") for text in texts]
    document = reduced(base, removal.ids)
    assert document is not None
    pairs = [(i, text) for i, text in zip(kept, texts, strict=True) if "\ufffd" not in text]
    before = tokenizer_of(base.document).encode_batch(
        [t for _, t in pairs], add_special_tokens=False
    )
    after = tokenizer_of(document).encode_batch([t for _, t in pairs], add_special_tokens=False)
    own = [i for (i, _), was in zip(pairs, before, strict=True) if was.ids == [i]]
    left = [i for (i, _), now in zip(pairs, after, strict=True) if now.ids == [i]]
    assert own == left
    assert len(own) > (0.4 if name == "mistral" else 0.7) * len(kept)


def test_only_what_no_kept_merge_uses_goes(name: str) -> None:
    base = vocabularies.base(name)
    removal = choose(base, counts_of(base), NUM_REMOVED[name])
    gone = set(removal.ids)
    assert len(gone) == len(removal.ids) == NUM_REMOVED[name]
    assert not gone & base.added
    for left, right, whole in base.merges:
        assert whole in gone or not gone & {left, right}
    left = without(base, removal.ids)
    assert left.tokens == {i: token for i, token in base.tokens.items() if i not in gone}
    made = {whole for _, _, whole in left.merges}
    assert all(i in made for i in base.parts if i not in gone)


def test_expansions_are_kept_ids_that_spell_the_same(name: str) -> None:
    base = vocabularies.base(name)
    removal = choose(base, counts_of(base), NUM_REMOVED[name])
    gone = set(removal.ids)
    assert set(removal.expansions) == gone & set(base.parts)
    assert len(gone) - len(removal.expansions) == removal.num_unreachable
    for number, parts in removal.expansions.items():
        assert len(parts) > 1
        assert not gone & set(parts)
        assert "".join(base.tokens[i] for i in parts) == base.tokens[number]


# --- in which order -------------------------------------------------------------------------------


def by_brute_force(base: BaseVocabulary, counts: Sequence[int], num_tokens: int) -> list[int]:
    """Of what nothing uses, again and again, what costs least; its parts then occur more often."""
    merges, left, gone = list(base.merges), dict(enumerate(counts)), []
    while len(gone) < num_tokens:
        used = {part for merge in merges for part in merge[:2]}
        leaves = {whole for *_, whole in merges} - used
        if not leaves:
            break
        cheapest = min(leaves, key=lambda i: (left[i], -i))
        gone.append(cheapest)
        for part in base.parts[cheapest]:
            left[part] += left[cheapest]
        merges = [merge for merge in merges if merge[2] != cheapest]
    return gone


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), unique=True, min_size=1).map(lambda words: sorted(words)),
    st.data(),
)
def test_the_cheapest_go_first(words: list[str], data: st.DataObject) -> None:
    there = {"a", "b", "c"}
    usable = []
    for word in sorted(words, key=len):
        left, right = word.split("+")
        if left in there and right in there:
            usable.append(word)
            there.add(left + right)
    base = BaseVocabulary.of(vocabularies.toy(usable))
    counts = data.draw(st.lists(st.integers(0, 5), min_size=base.size, max_size=base.size))
    wanted = data.draw(st.integers(0, 9))
    found = choose(base, np.array(counts), wanted)
    assert found.ids == by_brute_force(base, counts, wanted)
    assert found.num_unreachable == 0
    assert num_removable(base) == len(choose(base, np.array(counts), 99).ids) == len(base.parts)


def test_the_loss_of_a_token_makes_its_parts_more_frequent() -> None:
    base = BaseVocabulary.of(vocabularies.toy(["a+b", "ab+c", "c+c"]))
    counts = np.zeros(base.size, dtype=np.int64)
    counts[[base.ids["abc"], base.ids["cc"], base.ids["ab"]]] = 1, 2, 1
    # `ab` occurs once by itself, and once more where `abc` was: as often as `cc`, which is younger.
    assert [base.tokens[i] for i in choose(base, counts, 3).ids] == ["abc", "cc", "ab"]
    counts[base.ids["cc"]] = 3
    assert [base.tokens[i] for i in choose(base, counts, 3).ids] == ["abc", "ab", "cc"]


def with_unreachable(**model: object) -> BaseVocabulary:
    """Two tokens of several letters that no merge makes, beside those that one does."""
    tokenizer = vocabularies.toy(["a+b", "ab+c"])
    parsed = vocabularies.document(tokenizer)
    size = len(tokenizer)
    # An added token that the vocabulary lacks has the id after the vocabulary's last.
    parsed["model"]["vocab"] |= {vocabularies.END: size - 1, "cab": size, "bab": size + 1}
    parsed["model"] |= model
    return BaseVocabulary.of(vocabularies.wrapped(parsed))


def test_what_nothing_is_encoded_to_goes_first() -> None:
    base = with_unreachable()
    found = choose(base, np.zeros(base.size, dtype=np.int64), 3)
    assert [base.tokens[i] for i in found.ids] == ["bab", "cab", "abc"]
    assert found.num_unreachable == 2
    assert found.expansions == {base.ids["abc"]: (base.ids["ab"], base.ids["c"])}
    assert choose(base, np.zeros(base.size), 1).num_unreachable == 1
    assert num_removable(base) == 4


def test_where_words_that_are_tokens_need_no_merges_all_are_reachable() -> None:
    base = with_unreachable(ignore_merges=True)
    assert tokenizer_of(base.document).encode("cab").ids == [base.ids["cab"]]
    found = choose(base, np.zeros(base.size), 9)
    assert [base.tokens[i] for i in found.ids] == ["abc", "ab"]
    assert num_removable(base) == 2


def test_the_unknown_token_stays() -> None:
    base = with_unreachable(unk_token="cab")
    removed = [base.tokens[i] for i in choose(base, np.zeros(base.size), 9).ids]
    assert removed == ["bab", "abc", "ab"]


@pytest.mark.parametrize("name", sorted(vocabularies.BASES.keys() - {"tekken"}))
def test_as_many_can_be_removed_as_are_said(name: str) -> None:
    base = vocabularies.base(name)
    found = choose(base, np.zeros(base.size, dtype=np.int64), 10**6)
    assert len(found.ids) == num_removable(base)
    left = without(base, found.ids)
    assert left.merges == ()


# --- tokens that the model never learnt -----------------------------------------------------------


def rows(base: BaseVocabulary, planted: Sequence[int]) -> torch.Tensor:
    """Rows as after training: those that nothing is known of lie together, by themselves."""
    generator = torch.Generator().manual_seed(0)
    rows_VD = torch.randn(base.size, 64, generator=generator)
    impossible = [i for i, c in base.contents.items() if len(c) == 1 and c[0] in {0xC0, 0xC1}]
    impossible += [i for i, c in base.contents.items() if len(c) == 1 and c[0] >= 0xF5]
    never = [*planted, *impossible]
    rows_VD[never] = 0.5 + 0.01 * torch.randn(len(never), 64, generator=generator)
    return rows_VD


def test_rows_that_were_never_trained_are_found() -> None:
    base = vocabularies.base("demo")
    planted = sorted(base.parts)[100:600:20]
    found = under_trained(base, rows(base, planted).to(torch.bfloat16))
    assert set(planted) <= found
    assert all(base.contents[i][0] >= 0xC0 for i in found - set(planted))
    assert len(found) < len(planted) + 14


def test_where_all_rows_look_alike_none_is_called_untrained() -> None:
    base = vocabularies.base("demo")
    assert under_trained(base, torch.zeros(base.size, 8)) == frozenset()


def test_without_bytes_that_no_text_has_there_is_nothing_to_go_by() -> None:
    base = BaseVocabulary.of(vocabularies.toy(["a+b"]))
    assert under_trained(base, torch.zeros(base.size, 8)) == frozenset()


def test_rows_beyond_the_vocabulary_are_no_tokens() -> None:
    base = vocabularies.base("demo")
    more = torch.cat([rows(base, []), torch.full((64, 64), 0.5)])
    assert max(under_trained(base, more)) < base.size


def test_of_tokens_that_do_not_occur_untrained_ones_go_first() -> None:
    base = vocabularies.base("demo")
    counts, leaves = counts_of(base), choose(base, np.zeros(base.size), 400).ids
    planted = [i for i in sorted(leaves) if counts[i] == 0][:5]
    occurs = next(i for i in leaves if counts[i] > 0)
    found = choose(base, counts, 20, under_trained=[*planted, occurs])
    assert sorted(found.ids[:5]) == planted
    assert found.num_under_trained == 5
    assert occurs not in found.ids
