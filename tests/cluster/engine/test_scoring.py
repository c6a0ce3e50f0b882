"""Contexts and continuations become tokens of exactly their texts, whatever the vocabulary."""

from __future__ import annotations

import random
from typing import Any

import adapted_vocabularies
import pytest
import tiny_models
import vocabularies
from transformers import PreTrainedTokenizerFast

from cluster.engine.encoding import encode_pair
from cluster.engine.engine import Engine
from optim.errors import SequenceError

CONTINUATIONS = (" yes", " The answer.", "\n\nmore", "ing", "(x)", " 12", ".")


def joins(name: str, tokenizer: Any) -> tuple[int, int]:
    """How many pairs were encoded, and in how many of them a token spans the join."""
    rng = random.Random(name)
    texts = [text for text in vocabularies.prose() if len(text) > 80]
    num_pairs = num_spanning = 0
    for text in rng.sample(texts, 12):
        words = text[:400].split(" ")
        cuts = [len(" ".join(words[:n])) for n in range(1, min(12, len(words)))]
        pairs = [
            (text[:cut], text[cut : cut + 30]) for cut in [*cuts, *rng.sample(range(1, 79), 8)]
        ]
        for context, continuation in [*pairs, *((text[:60], c) for c in CONTINUATIONS)]:
            before, after = encode_pair(tokenizer, context, continuation, add_special_tokens=False)
            assert before == tokenizer(context, add_special_tokens=False)["input_ids"]
            start = tokenizer.decode(before, clean_up_tokenization_spaces=False)
            whole = tokenizer.decode(before + after, clean_up_tokenization_spaces=False)
            assert whole == start + continuation, (context, continuation)
            joint = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
            num_spanning += joint[: len(before)] != before
            num_pairs += 1
    return num_pairs, num_spanning


@pytest.mark.parametrize("name", sorted(vocabularies.BASES))
def test_pairs_of_every_vocabulary(name: str) -> None:
    num_pairs, num_spanning = joins(name, vocabularies.BASES[name]())
    assert num_pairs > 100
    assert num_spanning < num_pairs


@pytest.mark.parametrize("name", ["demo", "gpt2"])
def test_pairs_of_adapted_vocabularies(name: str) -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=adapted_vocabularies.native(name))
    _, num_spanning = joins(name, made)
    _, plain = joins(name, vocabularies.BASES[name]())
    assert num_spanning > plain, "new tokens span more joins"


def test_special_tokens_stand_before_the_context_only() -> None:
    tokenizer = vocabularies.BASES["mistral"]()
    before, after = encode_pair(tokenizer, "", "some text", add_special_tokens=True)
    assert before == [tokenizer.bos_token_id]
    assert tokenizer.bos_token_id not in after
    assert encode_pair(tokenizer, "a", "", add_special_tokens=True)[1] == []


def test_the_last_token_needs_no_room() -> None:
    engine = Engine(tiny_models.model("llama"))
    limit = engine.lm.context_length
    assert limit == 256
    assert engine.score("x" * 200, "y" * 57).num_tokens == 57
    with pytest.raises(SequenceError, match="have 258 tokens and the context window is 256"):
        engine.score("x" * 200, "y" * 58)
    long = engine.score("", "y" * 1000)
    assert (long.num_tokens, long.num_bytes) == (1000, 1000)
