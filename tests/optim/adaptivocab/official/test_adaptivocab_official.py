"""`patch_tokenizer.pkl` of the published code: what is read from it, and that none of it runs."""

from __future__ import annotations

import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from official_files import END, base, by_hand, published, refusal, saved
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from optim.adaptivocab.official.reader import Conversion, adapted, read_official
from optim.errors import InputError


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_file_with_a_real_tokenizer_is_read_in_every_protocol(
    tmp_path: Path, protocol: int
) -> None:
    tree = published(base())
    found = read_official(saved(tmp_path, tree, protocol))
    assert found.base_name == "a/base"
    assert dict(zip(found.removed, map(list, found.parts), strict=True)) == tree["removed_tokens"]
    assert found.ngrams == tuple(tree["ngram_dict"].items())
    for token, entry in tree["id_converter"].items():
        old = entry["old_indices"]
        assert found.converter[token] == Conversion(
            (old,) if isinstance(old, int) else tuple(old), entry["new_index"]
        )
    assert len(found.converter) == len(base().get_vocab())


class Old:
    """Pickled by the two protocols that have no opcode for it."""

    def __init__(self) -> None:
        self.name_or_path = "old/base"
        self.cache = defaultdict(list, a=[1]), OrderedDict(b=2), Counter("c"), {3}, frozenset("d")
        self.bytes = b"\xff", b""


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_an_object_becomes_a_stand_in_without_an_import(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(by_hand() | {"existing_tokenizer": Old()}, protocol)
    name = b"transformers.no_such_mod_"
    data = data.replace(Old.__module__.encode(), name)
    assert len(name) == len(Old.__module__)
    assert read_official(saved(tmp_path, data)).base_name == "old/base"
    assert name.decode() not in sys.modules


def test_subclasses_of_dict_are_read_as_dicts(tmp_path: Path) -> None:
    tree = by_hand()
    tree["removed_tokens"] = defaultdict(str, tree["removed_tokens"])
    tree["ngram_dict"] = Counter(tree["ngram_dict"])
    tree["id_converter"] = OrderedDict(tree["id_converter"])
    assert read_official(saved(tmp_path, tree)).removed == ("th", "Ġthe")


def test_a_file_saved_again_by_the_published_loader_is_read(tmp_path: Path) -> None:
    tree = by_hand()
    tree["ngram_dict"] = (tree["ngram_dict"],)
    assert read_official(saved(tmp_path, tree)).ngrams == ((("Ġt", "he"), 9), (("Ġi", "s"), 7))


# What is wrong with files of the published code.


def test_a_file_without_faults_is_only_a_pickle(tmp_path: Path) -> None:
    tree = by_hand()
    vocabulary = base().get_vocab()
    tree["ngram_dict"] = {("Ġt", "he"): 9, ("s", "Ġa"): 7}
    entry = tree["id_converter"].pop(("Ġi", "s"))
    entry["old_indices"] = [vocabulary["s"], vocabulary["Ġa"]]
    tree["id_converter"]["s", "Ġa"] = entry
    found = read_official(saved(tmp_path, tree))
    assert len(found.faults) == 1
    assert "pickle" in found.faults[0]
    assert found.unmatchable == ()


def test_merges_within_words_only_are_reported(tmp_path: Path) -> None:
    words = read_official(saved(tmp_path, published(base(), words_only=True)))
    assert any("beyond a word" in fault for fault in words.faults)
    across = read_official(saved(tmp_path, published(base())))
    assert not any("beyond a word" in fault for fault in across.faults)


def test_ids_that_moved_are_counted_and_special_ones_named(tmp_path: Path) -> None:
    tree = by_hand()
    entries = tree["id_converter"]
    entries[END]["new_index"], entries["e"]["new_index"] = (
        entries["e"]["new_index"], entries[END]["new_index"],
    )  # fmt: skip
    kept = len(base().get_vocab()) - 2
    (fault,) = [f for f in read_official(saved(tmp_path, tree)).faults if "other ids" in f]
    assert fault.startswith(f"2 of {kept} kept tokens")
    assert repr(END) in fault


def test_ngrams_with_removed_tokens_are_reported_and_left_out(tmp_path: Path) -> None:
    tree = by_hand()
    vocabulary = base().get_vocab()
    tree["ngram_dict"] = {("Ġthe", "s"): 9, ("Ġi", "s"): 7}
    tree["id_converter"]["Ġthe", "s"] = tree["id_converter"].pop(("Ġt", "he"))
    found = read_official(saved(tmp_path, tree))
    assert found.unmatchable == (("Ġthe", "s"),)
    assert any(f.startswith("1 of 2 n-grams hold removed tokens") for f in found.faults)
    assert adapted(found, base())[1] == [(vocabulary["Ġi"], vocabulary["s"])]


def test_ngrams_hidden_by_an_earlier_one_are_reported_and_kept(tmp_path: Path) -> None:
    tree = by_hand()
    vocabulary = base().get_vocab()
    gram = ("Ġt", "he", "s")
    tree["ngram_dict"] = {("Ġt", "he"): 9, gram: 7}
    entry = tree["id_converter"].pop(("Ġi", "s"))
    tree["id_converter"][gram] = entry | {"old_indices": [vocabulary[t] for t in gram]}
    found = read_official(saved(tmp_path, tree))
    assert any(f.startswith("1 n-grams begin with one") for f in found.faults)
    assert len(adapted(found, base())[1]) == 2
    tree["ngram_dict"] = {gram: 7, ("Ġt", "he"): 9}
    found = read_official(saved(tmp_path, tree))
    assert not any("begin with one" in f for f in found.faults)


def test_embeddings_from_other_tokens_are_reported(tmp_path: Path) -> None:
    tree = by_hand()
    tree["id_converter"]["Ġt", "he"]["old_indices"] = [base().get_vocab()["Ġthe"]]
    found = read_official(saved(tmp_path, tree))
    assert any(f.startswith("The embeddings of 1 n-grams") for f in found.faults)


# In ids of the base.


def test_adapted_is_what_the_base_merges_say(tmp_path: Path) -> None:
    tree = published(base(), num=120)
    vocabulary = base().get_vocab()
    removed, new = adapted(read_official(saved(tmp_path, tree)), base())
    assert removed == {
        vocabulary[token]: tuple(vocabulary[part] for part in parts)
        for token, parts in tree["removed_tokens"].items()
    }
    assert any(len(parts) > 2 for parts in removed.values()), "none is split more than once"
    gone = tree["removed_tokens"].keys()
    alive = [gram for gram in tree["ngram_dict"] if not gone & set(gram)]
    assert new == [tuple(vocabulary[token] for token in gram) for gram in alive]
    assert 0 < len(alive) < len(tree["ngram_dict"])


def test_ngrams_of_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    tree = by_hand()
    vocabulary = base().get_vocab()
    alive, dead = (vocabulary["Ġt"], vocabulary["he"]), (vocabulary["th"], vocabulary["e"])
    tree["ngram_dict"] = {alive: 9, dead: 7}
    tree["id_converter"][alive] = tree["id_converter"].pop(("Ġt", "he"))
    tree["id_converter"][dead] = tree["id_converter"].pop(("Ġi", "s"))
    found = read_official(saved(tmp_path, tree))
    assert found.unmatchable == (dead,)
    assert adapted(found, base())[1] == [alive]


def test_the_shipped_model_can_be_the_base(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("optim/demo_model")
    tree = published(tokenizer, num=300)
    found = read_official(saved(tmp_path, tree))
    assert found.base_name == "optim/demo_model"
    removed, new = adapted(found, tokenizer)
    assert len(removed) == 300
    assert len(new) == 300 - len(found.unmatchable)
    tokens = tokenizer.convert_ids_to_tokens
    assert all("".join(tokens(list(ids))) == tokens(i) for i, ids in removed.items())


def test_a_token_that_was_added_to_the_base_since_then_is_no_matter(tmp_path: Path) -> None:
    found = read_official(saved(tmp_path, by_hand()))
    copy = Tokenizer.from_str(base().backend_tokenizer.to_str())
    more = PreTrainedTokenizerFast(tokenizer_object=copy)
    more.add_special_tokens({"pad_token": "<pad>"})
    assert adapted(found, more) == adapted(found, base())


@pytest.mark.parametrize("size", [450, 520])
def test_another_tokenizer_than_the_file_s_is_refused(tmp_path: Path, size: int) -> None:
    found = read_official(saved(tmp_path, by_hand()))
    with pytest.raises(InputError, match=r"another tokenizer.*model of a/base"):
        adapted(found, base(size))


def test_other_merges_with_the_same_vocabulary_are_refused(tmp_path: Path) -> None:
    tree = by_hand()
    tree["removed_tokens"]["Ġthe"] = ["Ġ", "t", "he"]
    found = read_official(saved(tmp_path, tree))
    with pytest.raises(InputError, match="merges do not split 'Ġthe'"):
        adapted(found, base())


def test_a_removed_token_without_a_merge_is_refused(tmp_path: Path) -> None:
    tree = by_hand()
    tree["removed_tokens"][END] = list(END)
    del tree["id_converter"][END]
    found = read_official(saved(tmp_path, tree))
    with pytest.raises(InputError, match="merges do not split"):
        adapted(found, base())


def test_a_base_without_merges_is_refused(tmp_path: Path) -> None:
    found = read_official(saved(tmp_path, by_hand()))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(InputError, match="BPE"):
        adapted(found, PreTrainedTokenizerFast(tokenizer_object=words))


# Files that are no such files.


def change(*where: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def changed(tree: dict[str, Any]) -> None:
        place: Any = tree
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = to

    return changed


CHANGES = {
    "removed-list": ("removed_tokens", change("removed_tokens", to=["th"])),
    "parts-ids": ("removed_tokens", change("removed_tokens", "th", to=[7])),
    "parts-one": ("removed_tokens", change("removed_tokens", "th", to=["th"])),
    "parts-text": ("removed_tokens", change("removed_tokens", "th", to=["t", "o"])),
    "parts-removed": ("removed_tokens", change("removed_tokens", "Ġthe", to=["Ġ", "th", "e"])),
    "parts-unknown": ("id_converter", change("removed_tokens", "Zq@#", to=["Zq", "@#"])),
    "ngrams-list": ("ngram_dict", change("ngram_dict", to=[("a", "b")])),
    "ngram-string": ("ngram_dict", change("ngram_dict", "ab", to=1)),
    "ngram-one": ("ngram_dict", change("ngram_dict", ("a",), to=1)),
    "ngram-nested": ("ngram_dict", change("ngram_dict", (("a", "b"), "c"), to=1)),
    "ngram-frequency": ("ngram_dict", change("ngram_dict", ("Ġi", "s"), to=float("nan"))),
    "ngram-unconverted": ("id_converter", change("ngram_dict", ("a", "b"), to=1)),
    "converter-none": ("id_converter", change("id_converter", to=None)),
    "converter-key": ("id_converter", change("id_converter", 5, to={})),
    "converter-entry": ("id_converter", change("id_converter", "a", to=5)),
    "converter-true": ("id_converter", change("id_converter", "a", "new_index", to=True)),
    "converter-negative": ("id_converter", change("id_converter", "a", "old_indices", to=-1)),
    "converter-many": ("id_converter", change("id_converter", "a", "old_indices", to=[1, 2])),
    "converter-twice": ("id_converter", change("id_converter", "a", "new_index", to=0)),
    "converter-removed": (
        "id_converter",
        change("id_converter", "th", to={"old_indices": 900, "new_index": 900}),
    ),
    "strings": ("token_to_id_dict", change("token_to_id_dict", to={"a": 1})),
    "ids": ("id_to_token_dict", change("id_to_token_dict", to={1: "a"})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_are_malformed_or_contradict_each_other_are_named(
    tmp_path: Path, name: str
) -> None:
    field, changed = CHANGES[name]
    tree = by_hand()
    changed(tree)
    assert refusal(saved(tmp_path, tree)).field == field
