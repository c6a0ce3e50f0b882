"""Architectures that the engine would run wrong are refused before a run; right ones are run."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cluster import architecture_memory, architecture_runs
from cluster.architecture_check import require_right, verdict_of
from cluster.architecture_memory import ALL_CASES, Case
from cluster.completion import Request
from cluster.engine import Engine
from cluster.sampling import SamplingParams
from optim.cache import CACHES
from optim.checkpoint import require_decoder
from optim.errors import InputError
from optim.model import DEMO, LanguageModel, load

END = tiny_models.END
BASE = {"vocab_size": 258, "eos_token_id": END, "bos_token_id": 257}
SMALL = BASE | {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": END,
}
GPT_NEO = BASE | {
    "hidden_size": 64,
    "num_layers": 4,
    "attention_types": [[["global", "local"], 2]],
    "num_heads": 4,
    "window_size": 16,
    "max_position_embeddings": 256,
}
GPT = BASE | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
LLAMA = SMALL | {"num_key_value_heads": 2}
PROMPTS = ["abc", "hello", "x y z", "long prompt " * 5]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """A random model of a kind, saved with a tokenizer."""

    def make(kind: str, **config: Any) -> str:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.12)
        model.save_pretrained(tmp_path)
        tiny_models.tokenizer().save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def whole(lm: LanguageModel, prompt: str, num_tokens: int = 24) -> list[int]:
    """Greedy, by whole passes without a cache."""
    ids, made = lm.tokenizer(prompt)["input_ids"], []
    with torch.inference_mode():
        while len(made) < num_tokens and END not in made:
            inputs = torch.tensor([ids + made])
            made.append(int(lm.model(input_ids=inputs, use_cache=False).logits[0, -1].argmax()))
    return made


def greedy(lm: LanguageModel, batch_size: int, **options: Any) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=24)
    requests = [Request(str(i), prompt, params) for i, prompt in enumerate(PROMPTS)]
    done = Engine(lm, batch_size=batch_size, **options).generate(requests)
    return [c.ids for c in sorted(done, key=lambda c: int(c.request.prompt_id))]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gemma3_text", LLAMA | {"head_dim": 16, "sliding_window": 8}),
        ("qwen2_moe", LLAMA | {"num_experts": 4, "moe_intermediate_size": 32}),
        ("opt", {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"ffn_dim": 96}),
        ("bloom", BASE | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_right_is_run(saved: Callable[..., str], kind: str, config: Any) -> None:
    lm = load(saved(kind, **config))
    right = [whole(lm, prompt) for prompt in PROMPTS]
    for batch_size in (1, 4):
        for cache in CACHES.values():
            assert greedy(lm, batch_size, cache=cache) == right
