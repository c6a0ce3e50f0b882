"""Models of real shapes with random weights: speed does not depend on their values."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights


def _llama(**sizes: int) -> Any:
    config = LlamaConfig(max_position_embeddings=4096, eos_token_id=None, **sizes)
    return LlamaForCausalLM, config


MODELS: dict[str, Any] = {
    "llama-3.2-1b": lambda: _llama(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8,
    ),
    "llama-2-7b": lambda: _llama(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32,
    ),
    "llama-3-8b": lambda: _llama(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    ),
    "phi-2": lambda: (
        PhiForCausalLM,
        PhiConfig(
            vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32,
            num_attention_heads=32, max_position_embeddings=2048, partial_rotary_factor=0.4,
            eos_token_id=None,
        ),
    ),
}  # fmt: skip


def dense_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    vocab_size: int | None = None,
    layers: int | None = None,
) -> PreTrainedModel:
    """Random weights of the model's shapes, with as many tokens and layers as are asked for."""
    kind, config = MODELS[name]()
    config.vocab_size = vocab_size or config.vocab_size
    config.num_hidden_layers = layers or config.num_hidden_layers
    with no_init_weights(), device:
        model = kind(config).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            if "norm" in name_ and name_.endswith("weight"):
                parameter.fill_(1.0)
            elif name_.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=0.02, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)
