"""The shipped demo model: its files, its tokenizer, what it has learnt, and the demo's prompts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo_model.evaluate import joined, model_bits, xz_bytes
from jobs.data.demo_corpus import documents, held_out_by_domain, is_held_out, training_documents
from jobs.data.demo_prompts import PROMPT_DOMAINS, TooFewPassages, prompts, write_prompts

FOLDER = Path(__file__).resolve().parents[3] / "optim" / "demo_model"
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_model_is_small_and_of_a_current_architecture(model: Any) -> None:
    config = model.config
    assert 3_000_000 <= model.num_parameters() <= 6_000_000
    assert 4_000 <= config.vocab_size <= 8_192
    assert config.max_position_embeddings >= 1024
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim % 32 == 0
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_every_document_ends_with_the_models_own_end_of_text(tokenizer: Any, model: Any) -> None:
    assert tokenizer.eos_token == END
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.bos_token is None


def test_the_tokenizer_adds_nothing(tokenizer: Any) -> None:
    assert tokenizer("").input_ids == []
    assert tokenizer.eos_token_id not in tokenizer("Return the sum.").input_ids


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives_the_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text", ["naïve café\n\t漢字 🐍", "  two  spaces . , ' n't", "\x00\r\n\u2028"]
)
def test_unusual_text_survives_the_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_model_needs_far_fewer_bits_than_xz_on_held_out_text(
    tokenizer: Any, model: Any
) -> None:
    sample = [each for group in held_out_by_domain().values() for each in group[:3]]
    end = int(tokenizer.eos_token_id)
    text = joined(sample)
    bits = sum(model_bits(model, tokenizer(each.text).input_ids, end) for each in sample)
    # The sample is short, so xz has little to refer back to; over all text it needs 1.6 times ours.
    assert bits < 0.6 * 8 * xz_bytes(text)


class _Undecided:
    """A model for which all 4096 tokens are equally likely: 12 bits for each."""

    config = SimpleNamespace(max_position_embeddings=1024)

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert input_ids.shape[1] <= self.config.max_position_embeddings
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4096))


@pytest.mark.parametrize("length", [0, 1, 1022, 1023, 1024, 1535, 1536, 3000])
def test_each_token_and_the_end_of_text_are_counted_once(length: int) -> None:
    assert model_bits(_Undecided(), [17] * length, 0) == pytest.approx(12 * (length + 1))


def test_a_continuation_can_be_generated(tokenizer: Any, model: Any) -> None:
    inputs = tokenizer("Return a new array of bytes", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert out.shape[1] > inputs.input_ids.shape[1]


def test_nothing_held_out_is_trained_on() -> None:
    held_out = [each for group in held_out_by_domain().values() for each in group]
    assert all(is_held_out(each.text) for each in held_out)
    total = sum(not each.is_source for each in documents())
    assert total / 16 < len(held_out) < total / 7
    trained = {
        " ".join(paragraph.split())
        for each in training_documents()
        for paragraph in each.text.split("\n\n")
    }
    paragraphs = {
        " ".join(paragraph.split()) for each in held_out for paragraph in each.text.split("\n\n")
    }
    assert not [each for each in paragraphs & trained if len(each) >= 50]


def test_each_domain_gets_distinct_prompts_from_held_out_documents(tmp_path: Path) -> None:
    paths = write_prompts(tmp_path)
    assert list(paths) == list(PROMPT_DOMAINS) == ["language", "networking", "data"]
    identifiers: set[str] = set()
    for domain, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = {each.name: each.text for each in held_out_by_domain()[domain]}
        assert len(lines) >= 64
        for each in map(json.loads, lines):
            assert set(each) == {"id", "prompt", "target", "source"}
            assert 40 <= len(each["prompt"]) <= 400
            assert 100 <= len(each["target"]) <= 300
            name, _, offset = each["source"].rpartition("@")
            assert texts[name].startswith(each["prompt"] + each["target"], int(offset))
            assert is_held_out(texts[name])
            identifiers.add(each["id"])
        assert len({json.loads(line)["prompt"] for line in lines}) == len(lines)
    assert len(identifiers) >= 3 * 64


def test_the_prompts_are_the_same_every_time(tmp_path: Path) -> None:
    first = {name: path.read_bytes() for name, path in write_prompts(tmp_path / "a").items()}
    second = {name: path.read_bytes() for name, path in write_prompts(tmp_path / "b").items()}
    assert first == second
    assert sorted(each.name for each in (tmp_path / "a").iterdir()) == [
        "data.jsonl",
        "language.jsonl",
        "networking.jsonl",
    ]


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(TooFewPassages, match="fewer than the 100000 asked for"):
        prompts("data", 100_000)
    with pytest.raises(ValueError, match="positive"):
        prompts("data", 0)
