"""The adapted tokenizer beside its base: the same interface, other ids."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, StopStringCriteria
from transformers import TextIteratorStreamer as Streamer

from benchmarks.vocabulary.mistral_tokenizers import sentencepiece_v3, tekken
from optim.adaptivocab.patched import PATCHES, PatchedTokenizer
from optim.errors import InputError

TEXT = "\n".join(list(topics.values())[:30])
SHORT = ["The statement:\n    self.assert_(x)", "", "naïve 日本語 text", "a" * 40, TEXT[:400]]
Vocabulary = dict[int, tuple[int, ...]]


@cache
def demo() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[4] / "optim" / "demo_model")


BASES = {"byte level": demo, "tekken": tekken, "sentencepiece": sentencepiece_v3}


def patches(base: PreTrainedTokenizerFast, num_new: int, num_removed: int) -> Vocabulary | Any:
    """(removed, new): leaves of the merges, and frequent n-grams, half of them with reused ids."""
    ids = base.encode(TEXT, add_special_tokens=False)
    counts = Counter[tuple[int, ...]]()
    for n in range(2, 6):
        counts.update(zip(*(ids[k:] for k in range(n)), strict=False))
    specials = set(base.added_tokens_decoder)
    ngrams = [g for g, _ in counts.most_common(3 * num_new) if specials.isdisjoint(g)][::3]
    used = {token for ngram in ngrams for token in ngram}
    model = json.loads(base.backend_tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    parts = {name for merge in merges for name in merge}
    frequent = Counter(ids)
    leaves: Vocabulary = {}
    for left, right in merges:
        whole = vocabulary[left + right]
        if left + right not in parts and whole not in used | specials:
            leaves.setdefault(whole, (vocabulary[left], vocabulary[right]))
    removed = dict(sorted(leaves.items(), key=lambda item: -frequent[item[0]])[:num_removed])
    places = [*sorted(removed)[: len(ngrams) // 2], *range(len(base), len(base) + len(ngrams))]
    return removed, dict(zip(places, ngrams, strict=False))


@cache
def patched(name: str = "byte level", method: str = "dp") -> PatchedTokenizer:
    removed, new = patches(BASES[name](), 600, 150)
    return PatchedTokenizer.of(BASES[name](), removed=removed, new=new, method=method)  # type: ignore[arg-type]


def fresh() -> PatchedTokenizer:
    removed, new = patches(demo(), 60, 40)
    return PatchedTokenizer.of(demo(), removed=removed, new=new)


@pytest.fixture(params=list(BASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def twins(kind: str) -> tuple[PreTrainedTokenizerFast, PatchedTokenizer]:
    """A base, and it with nothing patched."""
    base = copy.deepcopy(BASES[kind]())
    base.pad_token = base.eos_token
    return base, PatchedTokenizer.of(base, removed={}, new={})


def columns(encoded: Any) -> list[Any]:
    names = ("ids", "tokens", "type_ids", "attention_mask", "special_tokens_mask", "sequence_ids")
    return [[getattr(e, n) for n in (*names, "word_ids", "offsets")] for e in encoded.encodings]


OPTIONS = [
    {},
    {"padding": True},
    {"padding": True, "padding_side": "left", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 300, "truncation": True},
    {"truncation": True, "max_length": 9, "padding": True},
    {"truncation": True, "max_length": 9, "return_overflowing_tokens": True, "padding": True},
    {"truncation": True, "max_length": 9, "stride": 3, "return_overflowing_tokens": True},
    {"add_special_tokens": False, "return_length": True, "return_token_type_ids": True},
    {"return_offsets_mapping": True, "return_special_tokens_mask": True, "padding": True},
    {"return_attention_mask": False, "split_special_tokens": True},
]


@pytest.mark.parametrize(("options", "side"), [*product(OPTIONS, ("left", "right"))])
@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_without_patches_it_is_its_base(kind: str, options: dict[str, Any], side: str) -> None:
    base, same = twins(kind)
    for tokenizer in (base, same):
        tokenizer.truncation_side = side
    for texts in (SHORT, SHORT[0], [SHORT[0] + base.eos_token + SHORT[2]]):
        wanted, got = base(texts, **options), same(texts, **options)
        assert dict(got) == dict(wanted)
        assert columns(got) == columns(wanted)


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_patches_pairs_are_truncated_as_by_its_base(strategy: str, side: str) -> None:
    base, same = twins("sentencepiece")
    for tokenizer in (base, same):
        tokenizer.truncation_side = side
    pair = (TEXT[:90], TEXT[90:170])
    for length in range(31, 60):
        options = {"truncation": strategy, "max_length": length, "return_token_type_ids": True}
        wanted, got = base(*pair, **options), same(*pair, **options)
        assert dict(got) == dict(wanted)
        assert columns(got) == columns(wanted)


def test_a_text_that_is_too_short_to_be_cut_is_refused_as_by_its_base() -> None:
    options: dict[str, Any] = {"truncation": "only_first", "max_length": 5}
    with pytest.raises(Exception, match="too short to"):
        demo()("a", TEXT[:200], **options)
    with pytest.raises(ValueError, match="too short to"):
        patched()("a", TEXT[:200], **options)


def test_it_takes_fewer_tokens_and_says_of_how_many_base_tokens_each_stands(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    ids = adapted.encode(TEXT)
    assert len(ids) < 0.95 * len(base.encode(TEXT))
    decomposed = adapted.segmenter.decompose(base.encode(TEXT))
    assert sum(map(adapted.base_length, ids)) == len(decomposed) > len(base.encode(TEXT))
    assert adapted.segmenter.expand(ids) == decomposed
    assert len(ids) <= len(patched(name, "greedy").encode(TEXT))


def test_batches_tensors_and_masks_agree_with_single_texts(name: str) -> None:
    adapted = copy.deepcopy(patched(name))
    adapted.pad_token = adapted.eos_token
    for side in ("left", "right"):
        batch = adapted(SHORT, padding=True, padding_side=side, return_tensors="pt")
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        for row, mask, text in zip(batch["input_ids"], batch["attention_mask"], SHORT, strict=True):
            assert row[mask.bool()].tolist() == adapted.encode(text)
            assert set(row[~mask.bool()].tolist()) <= {adapted.pad_token_id}


def test_truncation_counts_adapted_ids(name: str) -> None:
    adapted = copy.deepcopy(patched(name))
    whole = adapted.encode(TEXT, add_special_tokens=False)
    cut = {"truncation": True, "max_length": 20, "add_special_tokens": False}
    assert adapted.encode(TEXT, **cut) == whole[:20]
    adapted.truncation_side = "left"
    assert adapted.encode(TEXT, **cut) == whole[-20:]
    assert len(adapted.encode(TEXT, truncation=True, max_length=20)) == 20


def test_offsets_are_those_of_the_base_tokens_that_are_covered(name: str) -> None:
    adapted = patched(name)
    text = TEXT[:3000] + "日本語 naïve 🙂" + TEXT[3000:5000]
    encoded = adapted(text, return_offsets_mapping=True, add_special_tokens=False)
    assert adapted.tokenize(text) == encoded.tokens()
    covered = 0
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        assert covered >= start
        spelled = adapted.decode([token])
        if "�" not in spelled and text[start:stop].isascii():
            assert text[start:stop].strip() == spelled.strip()
        covered = max(covered, stop)
    assert covered == len(text)
    for index in (0, 7, 100):
        token = encoded.char_to_token(index)
        assert token is not None
        assert encoded.token_to_chars(token).start <= index < encoded.token_to_chars(token).end
    first, end = encoded.word_to_tokens(5) if name == "byte level" else (0, 1)
    assert end > first


def test_new_tokens_do_not_span_the_texts_of_a_pair() -> None:
    base = demo()
    adapted = PatchedTokenizer.of(base, removed={}, new={4096: tuple(base.encode("The def"))})
    assert adapted.encode("The def") == [4096]
    made = adapted("The", " def")
    assert made["input_ids"] == base.encode("The") + base.encode(" def")
    assert made.sequence_ids() == [0] * len(base.encode("The")) + [1] * len(base.encode(" def"))


def test_words_that_are_split_already_are_refused_with_the_reason() -> None:
    with pytest.raises(NotImplementedError, match="span words"):
        patched()(["a", "b"], is_split_into_words=True)


def test_every_id_has_a_string_of_its_own(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    vocabulary = adapted.get_vocab()
    assert len(vocabulary) == len(adapted) == len(set(vocabulary.values()))
    assert adapted.vocab_size - base.vocab_size == len(adapted) - len(base) > 0
    assert sorted(vocabulary.values()) == list(range(len(adapted)))
    ids = list(range(len(adapted)))
    names = adapted.convert_ids_to_tokens(ids)
    assert adapted.convert_tokens_to_ids(names) == ids
    assert [adapted.convert_ids_to_tokens(k) for k in ids[-9:]] == names[-9:]
    assert adapted.patches is not None
    assert all(names[token].isprintable() for token in adapted.patches.new)
    assert base.get_added_vocab() == adapted.get_added_vocab()
    gone = base.convert_ids_to_tokens(next(k for k in adapted.patches.new if k < len(base)))
    assert gone not in vocabulary
    assert adapted.convert_tokens_to_ids(gone) == adapted.unk_token_id


def test_strings_of_tokens_are_put_together_as_the_base_does(name: str) -> None:
    base, adapted = BASES[name](), patched(name)
    tokens = adapted.tokenize(TEXT[:2000])
    wanted = base.convert_tokens_to_string(
        base.convert_ids_to_tokens(adapted.segmenter.expand(adapted.convert_tokens_to_ids(tokens)))
    )
    assert adapted.convert_tokens_to_string(tokens) == wanted


def test_a_string_that_is_taken_gets_the_id_behind_it() -> None:
    base = demo()
    whole = base.convert_tokens_to_ids("Ġthe")
    ids = base.convert_tokens_to_ids(["Ġt", "he"])
    adapted = PatchedTokenizer.of(base, removed={}, new={4096: tuple(ids)})
    assert adapted.convert_ids_to_tokens([whole, 4096]) == ["Ġthe", "Ġthe⟨4096⟩"]
    assert adapted.convert_tokens_to_string(["Ġthe⟨4096⟩"]) == " the"


@pytest.mark.parametrize(("skip", "clean"), [(False, False), (True, True)])
def test_any_ids_are_decoded_as_the_base_decodes_what_they_stand_for(
    name: str, skip: bool, clean: bool
) -> None:
    base, adapted = copy.deepcopy(BASES[name]()), copy.deepcopy(patched(name))
    for tokenizer in (base, adapted):
        tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = torch.randint(0, len(adapted) + 20, (300, 12), generator=torch.Generator().manual_seed(1))
    ids[::3, 4] = adapted.eos_token_id
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    expanded = [adapted.segmenter.expand(row) for row in ids.tolist()]
    assert adapted.batch_decode(ids, **options) == base.batch_decode(expanded, **options)
    every = torch.arange(len(adapted))[:, None]
    singly = [adapted.segmenter.expand(row) for row in every.tolist()]
    assert adapted.batch_decode(every, **options) == base.batch_decode(singly, **options)


def test_a_folder_is_loaded_as_it_was_saved_and_saved_as_it_was(name: str, tmp_path: Path) -> None:
    adapted = copy.deepcopy(patched(name))
    adapted.truncation_side = "left"
    adapted(SHORT[0], padding="max_length", max_length=50) if adapted.pad_token else None
    adapted.save_pretrained(tmp_path / "a")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert type(loaded) is PatchedTokenizer
    assert loaded.patches == adapted.patches
    assert loaded.truncation_side == "left"
    assert loaded(SHORT).data == adapted(SHORT).data
    assert loaded.get_vocab() == adapted.get_vocab()
    loaded.save_pretrained(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    BASES[name]().save_pretrained(tmp_path / "base")
    for one in ("a", "base"):
        made = json.loads((tmp_path / one / "tokenizer.json").read_bytes())
        made["padding"] = made["truncation"] = None
        (tmp_path / f"{one}.json").write_text(json.dumps(made))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "base.json").read_bytes()
    chosen = AutoTokenizer.from_pretrained(tmp_path / "a", truncation_side="right")
    assert chosen.truncation_side == "right"


@pytest.mark.parametrize(
    "model", ["llama", "mistral", "phi3", "qwen2", "qwen3", "gpt2", "stablelm"]
)
def test_it_is_found_beside_the_config_of_any_model(model: str, tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path)
    config = {"model_type": model, "transformers_version": "5.20.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PatchedTokenizer


@pytest.mark.parametrize(
    ("model", "trusted"), [("llama", False), ("mistral", False), ("llama", True)]
)
def test_without_this_module_transformers_refuses_a_folder(
    model: str, trusted: bool, tmp_path: Path
) -> None:
    fresh().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    arguments = f"{str(tmp_path)!r}, trust_remote_code={trusted}"
    script = f"from transformers import AutoTokenizer as A\nA.from_pretrained({arguments})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "import optim.adaptivocab.patched" in ended.stderr


def test_a_copy_gives_the_same_ids() -> None:
    assert copy.deepcopy(patched())(SHORT).data == patched()(SHORT).data


def test_added_tokens_keep_ids_and_are_barriers() -> None:
    removed, new = patches(demo(), 30, 40)
    reused = dict(zip(sorted(removed), new.values(), strict=False))
    adapted = PatchedTokenizer.of(demo(), removed=removed, new=reused)
    assert adapted.add_special_tokens({"pad_token": "<pad>"}) == 1
    assert adapted.pad_token_id == 4096
    assert adapted.encode("The<pad>\n") == [*adapted.encode("The"), 4096, *adapted.encode("\n")]
    assert adapted.decode([4096, *adapted.encode("x")], skip_special_tokens=True) == "x"


def test_an_added_token_that_would_take_an_id_in_use_is_refused() -> None:
    adapted = fresh()
    for token in ("<pad>", demo().convert_ids_to_tokens(min(adapted.patches.removed))):  # type: ignore[union-attr]
        with pytest.raises(InputError, match="would take an id"):
            adapted.add_tokens([token])
    assert len(adapted) == len(fresh())


CHAT = (
    "{% for m in messages %}<|endoftext|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}"
    "{% endgeneration %}\n{% endfor %}"
)


def test_chats_are_merged_between_their_special_tokens_only() -> None:
    adapted = fresh()
    adapted.chat_template = CHAT
    chat = [{"role": "user", "content": t} for t in ("The statement\n", "self.x <|endoftext|>")]
    text = adapted.apply_chat_template(chat, tokenize=False)
    made = adapted.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert adapted.decode(made["input_ids"]) == text
    assert made["input_ids"].count(0) == text.count("<|endoftext|>")
    pieces = [adapted.encode(piece) for piece in text.split("<|endoftext|>")]
    assert made["input_ids"] == [k for piece in pieces for k in (0, *piece)][1:]
    assert 0 < sum(made["assistant_masks"]) < len(made["input_ids"])
    safe = adapted.apply_chat_template(chat, sanitize_control_tokens=True, return_dict=True)
    assert safe["input_ids"].count(0) == 2
    assert adapted.decode(safe["input_ids"]) == text


def test_special_tokens_that_are_typed_are_text_where_they_are_to_be_split() -> None:
    adapted = patched("sentencepiece")
    ids = adapted.encode("a </s> b", add_special_tokens=False, split_special_tokens=True)
    assert adapted.eos_token_id not in ids
    assert adapted.eos_token_id in adapted.encode("a </s> b")


def test_streamed_pieces_make_the_whole_text() -> None:
    adapted = patched()
    text = TEXT[:2000] + " 日本語🙂 é\u200d" + "\n" + TEXT[2000:2500]
    streamer = Streamer(adapted, timeout=10)
    for token in adapted.encode(text):
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(streamer) == text


@pytest.mark.parametrize("stop", ["\n", "statement", " the", ")", ".\n\n"])
def test_a_stop_string_stops_where_it_is_complete(name: str, stop: str) -> None:
    adapted = patched(name)
    ids = adapted.encode(TEXT[:1500], add_special_tokens=False)
    criteria = StopStringCriteria(adapted, [stop])
    wanted = next(k for k in range(1, len(ids)) if stop in adapted.decode(ids[:k]))
    met = [k for k in range(1, wanted + 1) if bool(criteria(torch.tensor([ids[:k]]), None))]
    assert met == [wanted]


def test_a_prompt_leaves_its_last_base_tokens_as_they_are(name: str) -> None:
    adapted = patched(name)
    text = TEXT[:1000]
    base_ids = adapted.segmenter.decompose(BASES[name]().encode(text))
    for back_off in (None, 0, 1, 9, 10_000):
        ids = adapted.encode_prompt(text, back_off)
        assert adapted.segmenter.expand(ids) == base_ids
        kept = adapted.segmenter.longest - 1 if back_off is None else back_off
        assert kept == 0 or ids[-kept:] == base_ids[-kept:]
    assert adapted.encode_prompt(text, 0) == adapted.encode(text)
    with pytest.raises(InputError, match="back_off"):
        adapted.encode_prompt(text, -1)


def test_lone_surrogates_raise_what_the_base_raises(name: str) -> None:
    raised = []
    for tokenizer in (BASES[name](), patched(name)):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            tokenizer("a\ud800b")
        raised.append(type(caught.value))
    assert raised[0] is raised[1]


@pytest.mark.parametrize(
    ("removed", "new", "field"),
    [
        ({}, {17: (20, 21)}, "new.17"),
        ({}, {4096: (20, 5000)}, "new.4096"),
        ({}, {4096: (20, 0)}, "new.4096"),
        ({0: (20, 21)}, {}, "removed.0"),
        ({9999: (20, 21)}, {}, "removed.9999"),
        ({300: (20, 21)}, {}, "removed.300"),
        ({}, {4096: (20,)}, "new.4096"),
    ],
)
def test_patches_of_another_base_are_refused(
    removed: Vocabulary, new: Vocabulary, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        PatchedTokenizer.of(demo(), removed=removed, new=new)
    assert caught.value.field == field


def test_a_folder_without_sound_patches_is_refused_by_file_and_field(tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path)
    file = tmp_path / PATCHES
    for text, field in (
        ('{"new": 3, "removed": {}}', "new"),
        ('{"new": {"1": [2, 3]}, "removed": {}}', "new.1"),
    ):
        file.write_text(text)
        with pytest.raises(InputError) as caught:
            AutoTokenizer.from_pretrained(tmp_path)
        assert (caught.value.source, caught.value.field) == (str(file), field)
    file.unlink()
    with pytest.raises(InputError, match=PATCHES):
        AutoTokenizer.from_pretrained(tmp_path)


def test_an_adapted_tokenizer_is_not_adapted_again() -> None:
    with pytest.raises(InputError, match="no plain fast tokenizer"):
        PatchedTokenizer.of(fresh(), removed={}, new={})
