"""Segments of equal bytes for every tokenizer, and bits per byte on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from optim.adaptivocab.training import segments
from optim.adaptivocab.training.bits_per_byte import bits_per_byte, segment_costs
from optim.errors import InputError

TEXTS = ["hello world " * 30, "the quick brown fox\n" * 20, "naïve café, 東京 " * 15, "x" * 150]
SEGMENTS = list(segments.cut(TEXTS, 100))


def fresh(architecture: str = "llama") -> PreTrainedModel:
    return copy.deepcopy(tiny_models.model(architecture).model)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(4, 30))
def test_segments_concatenate_to_their_texts_and_are_short(texts: list[str], limit: int) -> None:
    for text in texts:
        found = list(segments.cut([text], limit))
        assert "".join(found) == text
        assert all(0 < len(each.encode()) <= limit for each in found)
    together = [each for text in texts for each in segments.cut([text], limit)]
    assert list(segments.cut(texts, limit)) == together


def test_segments_end_in_front_of_white_space() -> None:
    assert list(segments.cut(["one two  three"], 9)) == ["one two", "  three"]
    assert list(segments.cut(["one two three"], 7)) == ["one two", " three"]
    assert list(segments.cut(["a extraordinary"], 8)) == ["a", " extraor", "dinary"]


def test_segments_refuse_what_is_no_text() -> None:
    with pytest.raises(InputError, match=r"U\+DC80.*character 1"):
        list(segments.cut(["a\udc80"]))
    with pytest.raises(InputError, match="segment_bytes"):
        list(segments.cut(["a"], 3))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(8, 30))
def test_segments_that_have_too_many_tokens_are_cut_until_they_fit(
    texts: list[str], room: int
) -> None:
    tokenizer = tiny_models.tokenizer()
    found = list(segments.fitting(texts, [tokenizer], room))
    assert "".join(found) == "".join(texts)
    assert all(len(tokenizer(each)["input_ids"]) <= room for each in found)
    short = [text for text in texts if len(tokenizer(text)["input_ids"]) <= room]
    assert [each for each in found if each in short] == short or len(found) > len(texts)


def test_the_tokenizer_with_the_most_tokens_decides_what_fits() -> None:
    text = TEXTS[0]
    words, characters = _Counted(str.split), _Counted(list)
    assert list(segments.fitting([text], [words], 100)) == [text]
    for tokenizers in ([words, characters], [characters, words]):
        found = list(segments.fitting([text], tokenizers, 100))
        assert "".join(found) == text
        assert all(len(each) <= 100 for each in found)


class _Counted:
    """A tokenizer of which the number of tokens is known."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.split = split

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[str]]:
        return {"input_ids": self.split(text)}


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_steps_have_the_same_segments_whatever_the_passes(num_processes: int) -> None:
    bytes_S = [1 + (7 * n) % 100 for n in range(53)]
    common = {"epochs": 2.5, "step_bytes": 400, "seed": 3}
    one = segments.in_steps(bytes_S, pass_bytes=10**6, **common)  # type: ignore[arg-type]
    other = segments.in_steps(bytes_S, pass_bytes=200, num_processes=num_processes, **common)  # type: ignore[arg-type]
    assert other.num_steps == one.num_steps == len(one.passes)
    per_step = other.passes_per_process * num_processes
    assert len(other.passes) == other.num_steps * per_step
    for n, places in enumerate(one.passes):
        passes = other.passes[n * per_step : (n + 1) * per_step]
        assert all(passes)
        assert [place for each in passes for place in each] == places
        assert max(sum(bytes_S[place] for place in each) for each in passes) <= 200
    first_epoch = [place for places in one.passes for place in places][:106]
    assert {first_epoch.count(place) for place in range(53)} <= {1, 2, 3}


# Bits per byte


def test_bits_per_byte_of_a_uniform_model_count_its_tokens() -> None:
    model = fresh()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    # One token a byte: log2 of the vocabulary's size for every byte, the first included.
    found = bits_per_byte(model, tiny_models.tokenizer(), SEGMENTS)
    assert found == pytest.approx(math.log2(tiny_models.VOCABULARY), rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_costs_in_padded_batches_are_those_of_each_segment_alone(architecture: str) -> None:
    model, tokenizer = fresh(architecture), tiny_models.tokenizer()
    texts = ["", *SEGMENTS[::3], "a", "bc"]
    found = segment_costs(model, tokenizer, texts, batch_tokens=300)
    for place, text in enumerate(texts):
        ids = torch.tensor([[257, *tokenizer(text)["input_ids"]]])
        with torch.inference_mode():
            log_p_TV = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        expected = -sum(float(log_p_TV[t, ids[0, t + 1]]) for t in range(len(log_p_TV)))
        assert float(found.nats_S[place]) == pytest.approx(expected, rel=1e-5)
    assert found.bytes_S.tolist() == [len(text.encode()) for text in texts]
    again = segment_costs(model, tokenizer, texts, batch_tokens=300)
    assert torch.equal(found.nats_S, again.nats_S)


def test_segments_longer_than_the_context_are_refused() -> None:
    with pytest.raises(InputError, match=r"segment_bytes.*301 tokens.*256 positions"):
        bits_per_byte(fresh("gpt2"), tiny_models.tokenizer(), ["x" * 300])


def test_a_model_without_start_and_end_is_refused() -> None:
    model, tokenizer = fresh(), copy.deepcopy(tiny_models.tokenizer())
    tokenizer.bos_token = None
    assert segments.start_id(model, tokenizer) == tiny_models.END
    tokenizer.eos_token = None
    for config in (model.config, model.generation_config):
        config.bos_token_id = config.eos_token_id = None
    with pytest.raises(InputError, match="neither a start nor an end token"):
        segments.start_id(model, tokenizer)


def test_the_end_token_follows_where_a_text_ends() -> None:
    lm = tiny_models.model("llama")
    found = segments.rows(lm.model, lm.tokenizer, ["ab", "c", "d"], [False, True])
    assert [row[-1].item() == tiny_models.END for row in found] == [False, True, False]
    plain = segments.rows(lm.model, lm.tokenizer, ["ab", "c", "d"])
    assert [len(a) - len(b) for a, b in zip(found, plain, strict=True)] == [0, 1, 0]
