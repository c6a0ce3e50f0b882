"""Plain tokenizers as folders: read by AutoTokenizer, for chats, streams and stop strings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabularies
from adapted_vocabularies import adapted, native, strings
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    StopStringCriteria,
    TextIteratorStreamer,
)

from optim.adaptivocab.selection.vocabulary_builder import Built
from optim.adaptivocab.tokenizer.tokens import table
from optim.adaptivocab.tokenizer_files import write_tokenizer

REAL = ["demo", "tekken", "mistral"]


@pytest.fixture(scope="module", params=REAL)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, PreTrainedTokenizerFast]:
    folder = tmp_path_factory.mktemp("adapted")
    write(str(request.param), folder)
    return str(request.param), AutoTokenizer.from_pretrained(folder)


def write(name: str, folder: Path) -> None:
    made = adapted(name)
    names, parts = made.chosen.names, made.chosen.expansions
    removal = made.removal
    tokens = table(made.base, made.ids, names, parts, removal.expansions, removal.ids)
    built = Built("native", "merges", names, parts, made.document, None)
    write_tokenizer(folder, vocabularies.BASES[name](), tokens, built)


Loaded = tuple[str, PreTrainedTokenizerFast]


def test_a_written_folder_gives_the_same_ids(loaded: Loaded) -> None:
    name, tokenizer = loaded
    texts = strings()[:3000] + vocabularies.prose()[:3]
    wanted = [e.ids for e in native(name).encode_batch(texts)]
    assert tokenizer(texts)["input_ids"] == wanted
    base = vocabularies.BASES[name]()
    assert tokenizer.special_tokens_map == base.special_tokens_map
    assert tokenizer.all_special_ids == base.all_special_ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_written_folder_pads_and_truncates(loaded: Loaded, side: str) -> None:
    _, tokenizer = loaded
    texts = ["the statement of the language", "a", ""]
    pad = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.truncation_side = pad, side, side
    plain = tokenizer(texts)["input_ids"]
    padded: Any = tokenizer(texts, padding=True)
    longest = max(map(len, plain))
    for ids, row, mask in zip(plain, padded["input_ids"], padded["attention_mask"], strict=True):
        filler = longest - len(ids)
        more, shown = [tokenizer.pad_token_id] * filler, [1] * len(ids)
        assert row == ([*more, *ids] if side == "left" else [*ids, *more])
        assert mask == ([*[0] * filler, *shown] if side == "left" else [*shown, *[0] * filler])
    text = vocabularies.prose()[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    short = tokenizer(text, add_special_tokens=False, truncation=True, max_length=7)["input_ids"]
    assert short == (ids[-7:] if side == "left" else ids[:7])


def test_chats_are_merged_between_their_special_tokens_only(loaded: Loaded) -> None:
    name, tokenizer = loaded
    end = tokenizer.eos_token
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}" + end + "{% endfor %}"
    chat = [{"role": "user", "content": "What is the statement?"}, {"role": "ai", "content": "The"}]
    ids = tokenizer.apply_chat_template(
        chat, chat_template=template, return_dict=False, tokenize=True
    )
    assert ids.count(tokenizer.eos_token_id) == 2
    text = f"user: What is the statement?{end}ai: The{end}"
    assert ids == native(name).encode(text, add_special_tokens=False).ids
    base = vocabularies.BASES[name]()
    assert tokenizer.decode(ids) == base.decode(base(text, add_special_tokens=False)["input_ids"])


def test_streamed_pieces_make_the_whole_text(loaded: Loaded) -> None:
    _, tokenizer = loaded
    text = vocabularies.prose()[3][:2000] + vocabularies.FOREIGN + "👩\u200d👩\u200d👧 日本語\n x"
    # Streamers begin anew after a line, where a decoder like Mistral's takes a first space away.
    text = re.sub("\n +", "\n", text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=False)
    for number in ids:
        streamer.put(torch.tensor([number]))
    streamer.end()
    assert "".join(streamer) == tokenizer.decode(ids)


@pytest.mark.parametrize("stop", ["statement", "\n\n", "of the"])
def test_a_stop_string_stops_where_it_is_complete(loaded: Loaded, stop: str) -> None:
    _, tokenizer = loaded
    text = f"as a part of it the other{stop} is"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    criteria = StopStringCriteria(tokenizer, [stop])
    stops = [
        bool(criteria(torch.tensor([ids[:count]]), torch.empty(0)))
        for count in range(1, len(ids) + 1)
    ]
    wanted = [stop in tokenizer.decode(ids[:count]) for count in range(1, len(ids) + 1)]
    assert stops.index(True) == wanted.index(True)
