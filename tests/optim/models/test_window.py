"""How many positions a model knows, as authors write it down."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.model import wrap
from optim.models.window import context_length

ORIGINAL = "original_max_position_embeddings"
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


def stated(length: int) -> dict[str, int]:
    return {"max_position_embeddings": length}


BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, ORIGINAL: 32}


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("llama", stated(64), 64),
        ("llama", stated(64) | rope("yarn", factor=4.0, **{ORIGINAL: 64}), 256),
        ("llama", stated(256) | rope("yarn", factor=4.0, **{ORIGINAL: 64}), 256),
        ("llama", stated(64) | rope("linear", factor=2.0), 128),
        ("llama", stated(64) | rope("dynamic", factor=2.0), 64),
        ("llama", stated(128) | rope("llama3", factor=8.0, **BANDS, **{ORIGINAL: 16}), 128),
        ("phi3", SMALL | stated(256) | {ORIGINAL: 32} | rope("longrope", **LONG), 32),
        ("gpt2", {"n_positions": 96}, 96),
        ("mpt", {"max_seq_len": 80}, 80),
        ("xlnet", {}, None),
    ],
)  # fmt: skip
def test_windows(kind: str, config: dict[str, Any], expected: int | None) -> None:
    assert context_length(CONFIG_MAPPING[kind](**config)) == expected


def test_a_neighbour_does_not_change_a_text_by_longrope() -> None:
    sizes = {"vocab_size": 258, "intermediate_size": 48, "eos_token_id": 256, "pad_token_id": 256}
    rows = {"max_position_embeddings": 256, ORIGINAL: 32, "num_key_value_heads": 2}
    config = CONFIG_MAPPING["phi3"](**SMALL, **sizes, **rows, **rope("longrope", **LONG))
    lm = wrap(AutoModelForCausalLM.from_config(config), tiny_models.tokenizer())
    params = SamplingParams(max_new_tokens=8)
    requests = [Request("0", "hello", params, 0), Request("1", "x" * 40, params, 0)]
    alone, beside = (
        {c.request.prompt_id: c for c in Engine(lm, batch_size=size).generate(requests)}
        for size in (1, 2)
    )
    assert alone["0"].ids == beside["0"].ids
    said = "the prompt has 40 tokens and the context window is 32: beyond it LongRoPE changes"
    assert (beside["1"].error or "").startswith(said)
