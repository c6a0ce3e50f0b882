"""From texts to a vocabulary: corpus, cap, kind of tokenizer, pruning, and the table of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import vocabularies

from optim.adaptivocab.corpus import Corpus, gather
from optim.adaptivocab.encoded_texts import EncodedTexts, encode
from optim.adaptivocab.selection import vocabulary_builder as building
from optim.adaptivocab.selection.hierarchical import Selection, pruned
from optim.adaptivocab.selection.removal import Removal, choose
from optim.adaptivocab.selection.vocabulary_builder import CAPS, Builder, Built, Recipe
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import tokenizer_of
from optim.adaptivocab.tokenizer.segmentation import Segmenter
from optim.errors import InputError
from optim.resources import InProcess

NOTHING = Removal([], {}, 0, 0)
NUM_TOKENS = 300
HIERARCHICAL = Recipe("hierarchical", NUM_TOKENS)


@cache
def corpus() -> Corpus:
    return gather(vocabularies.prose()[::2], 1 << 20, 0.15)


def builder(
    base: BaseVocabulary,
    removal: Removal = NOTHING,
    train: Sequence[str] | None = None,
    dev: Sequence[str] | None = None,
    stages: list[str] | None = None,
) -> Builder:
    ids = [*removal.ids, *range(base.size, base.size + NUM_TOKENS - len(removal.ids))]
    train = corpus().train if train is None else train
    dev = corpus().dev if dev is None else dev
    say = (lambda stage: None) if stages is None else stages.append
    return Builder(base, removal, ids, train, dev, InProcess(), say)


@cache
def built(name: str, encoding: str = "auto") -> Built:
    recipe = Recipe("hierarchical", NUM_TOKENS, encoding=encoding)  # type: ignore[arg-type]
    return builder(vocabularies.base(name)).build(recipe)


# --- which tokens and which kind ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "gemma"])
def test_the_cap_is_the_one_with_the_fewest_tokens_on_dev_texts(name: str) -> None:
    made = built(name)
    assert (made.encoding, made.method, made.notes) == ("native", "merges", ())
    assert len(made.tried) == len(CAPS)
    best = min(made.tried.values())
    cap = "of any length" if made.longest is None else f"of up to {made.longest} base tokens"
    assert made.tried[cap] == best
    assert made.document is not None
    encodings = tokenizer_of(made.document).encode_batch(corpus().dev, add_special_tokens=False)
    assert sum(len(encoding.ids) for encoding in encodings) == best
    assert made.longest is None or max(map(len, made.expansions)) <= made.longest


def test_a_cap_that_is_asked_for_is_the_only_one_tried() -> None:
    made = builder(vocabularies.base("demo")).build(Recipe("hierarchical", NUM_TOKENS, longest=2))
    assert list(made.tried) == ["of up to 2 base tokens"]
    assert {len(parts) for parts in made.expansions} == {2}
    assert made.longest == 2


def test_new_tokens_take_the_ids_that_are_given_in_order() -> None:
    base = vocabularies.base("demo")
    removal = choose(base, np.zeros(base.size, dtype=np.int64), 100)
    made = builder(base, removal).build(HIERARCHICAL)
    assert made.document is not None
    vocabulary = made.document["model"]["vocab"]
    ids = [*removal.ids, *range(base.size, base.size + NUM_TOKENS - 100)]
    assert [vocabulary[name] for name in made.names] == ids


def test_a_patch_is_chosen_of_twice_as_many_and_saves_what_is_said() -> None:
    base, made = vocabularies.base("demo"), built("demo", "patch")
    assert (made.encoding, made.method, made.document) == ("patch", "dp", None)
    assert len(made.names) == len(set(made.expansions)) == NUM_TOKENS
    new = {base.size + place: parts for place, parts in enumerate(made.expansions)}
    segmenter = Segmenter(new, method="dp", barriers=base.added)
    dev = [vocabularies.demo()(text)["input_ids"] for text in corpus().dev]
    # Texts end to end: a new token may span two of them by chance.
    found = sum(len(segmenter.segment(ids)) for ids in dev)
    assert found == pytest.approx(min(made.tried.values()), rel=0.001)
    assert found < 0.9 * sum(map(len, dev))


@pytest.mark.parametrize("selector", ["paper", "words"])
def test_published_selections_are_patches_of_three_base_tokens(selector: str) -> None:
    base = vocabularies.base("demo")
    recipe = Recipe(selector, 100)  # type: ignore[arg-type]
    made = builder(base).build(recipe)
    assert (made.encoding, made.method, made.longest) == ("patch", "greedy", 3)
    assert max(map(len, made.expansions)) == 3
    assert made.names == ["".join(base.tokens[i] for i in parts) for parts in made.expansions]
    starts = [base.tokens[i][0] for parts in made.expansions for i in parts[1:]]
    assert (selector == "paper") is ("Ġ" in starts)


@pytest.mark.parametrize("selector", ["paper", "words"])
def test_published_selections_cannot_be_native(selector: str) -> None:
    recipe = Recipe(selector, 100, encoding="native")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"`{selector}` has no merges") as raised:
        builder(vocabularies.base("demo")).build(recipe)
    assert raised.value.field == "--encoding"


def test_an_unknown_pre_tokenizer_is_patched_with_a_note_or_refused() -> None:
    base, stages = BaseVocabulary.of(vocabularies.two_splits()), []
    made = builder(base, stages=stages).build(HIERARCHICAL)
    assert (made.encoding, made.document) == ("patch", None)
    (note,) = made.notes
    assert "its pre-tokenizer is of a kind that is not known" in note
    assert note in stages
    with pytest.raises(InputError, match=r"no plain tokenizer\.json .* pre-tokenizer") as raised:
        builder(base).build(Recipe("hierarchical", NUM_TOKENS, encoding="native"))
    assert raised.value.field == "--encoding"


def without_a_merge() -> BaseVocabulary:
    """With a word that is a token though no merges make it, as in Llama 3's vocabulary."""
    parsed = vocabularies.document(vocabularies.toy(["a+b", "ab+c", "Ġ+a"], ignore_merges=True))
    parsed["model"]["vocab"] |= {vocabularies.END: 7, "cba": 8}
    return BaseVocabulary.of(vocabularies.wrapped(parsed))


def test_texts_that_a_plain_tokenizer_would_cut_otherwise_are_noticed_on_dev_texts() -> None:
    base, train = without_a_merge(), ["abc ab abc ab", "ab abc ab abc"] * 3
    recipe = Recipe("hierarchical", 2)
    assert builder(base, train=train, dev=["abc ab"]).build(recipe).encoding == "native"
    made = builder(base, train=train, dev=["abc ab", "cba abc"]).build(recipe)
    assert made.encoding == "patch"
    assert "of 2 dev texts 1 are cut otherwise by the base vocabulary" in made.notes[0]
    native = Recipe("hierarchical", 2, encoding="native")
    with pytest.raises(InputError, match="of 2 dev texts 1 are cut otherwise"):
        builder(base, train=train, dev=["abc ab", "cba abc"]).build(native)


@pytest.mark.parametrize("encoding", ["native", "patch"])
def test_of_a_corpus_that_is_too_small_it_is_said_how_many_are_possible(encoding: str) -> None:
    base, train = vocabularies.base("demo"), ["the other statement of it"] * 2
    recipe = Recipe("hierarchical", NUM_TOKENS, encoding=encoding)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too small for 300 new tokens") as raised:
        builder(base, train=train, dev=train).build(recipe)
    assert raised.value.field == "--data"
    number = int(str(raised.value.mend).split("ask for ")[1].split()[0])
    again = Recipe("hierarchical", number, encoding=encoding)  # type: ignore[arg-type]
    assert len(builder(base, train=train, dev=train).build(again).names) == number


def test_a_corpus_in_which_nothing_comes_back_gives_none() -> None:
    base = vocabularies.base("demo")
    with pytest.raises(InputError, match="0 sequences") as raised:
        builder(base, train=["the other", "one more"], dev=["a"]).build(HIERARCHICAL)
    assert raised.value.mend == "Give more text of the domain"


def test_one_corpus_gives_one_vocabulary() -> None:
    again = builder(vocabularies.base("demo")).build(Recipe("hierarchical", NUM_TOKENS))
    assert again == built("demo")
    assert json.dumps(again.document) == json.dumps(built("demo").document)


# --- pruning --------------------------------------------------------------------------------------


def toy_texts(*ids: int) -> EncodedTexts:
    ids_T = np.array(ids, dtype=np.int32)
    return EncodedTexts(ids_T, np.zeros_like(ids_T), np.zeros_like(ids_T), 0)


def test_steps_on_the_way_to_longer_tokens_are_dropped() -> None:
    texts = toy_texts(*[0, 1, 2, 3] * 9, *[4, 5] * 3)
    found = Selection(["ab", "abc", "abcd", "ef"], [(0, 1), (0, 1, 2), (0, 1, 2, 3), (4, 5)], [])
    assert pruned(found, texts, 2, 10).names == ["abcd", "ef"]
    assert pruned(found, texts, 1, 10).names == ["abcd"]
    assert pruned(found, texts, 4, 10) == found
    assert pruned(found, texts, 9, 10) == found


def test_pruning_saves_more_than_the_first_ones_do() -> None:
    base = vocabularies.base("demo")
    texts = encode(vocabularies.demo().backend_tokenizer, corpus().train, barriers=(), cut=False)
    more = Recipe("hierarchical", 2 * NUM_TOKENS, encoding="patch", longest=4)
    chosen = building.select(
        texts, base, more.num_tokens, building.Rules(4), removed={}, is_native=False
    )
    kept = pruned(chosen, texts, NUM_TOKENS, base.size)
    assert len(kept.names) == NUM_TOKENS
    places = [chosen.names.index(name) for name in kept.names]
    assert all(before < after for before, after in pairwise(places))
    ids = texts.ids_T.tolist()
    sizes = [
        len(Segmenter({base.size + i: parts for i, parts in enumerate(some)}).cover(ids))
        for some in (kept.expansions, chosen.expansions[:NUM_TOKENS])
    ]
    assert sizes[0] < sizes[1]
