"""Random models of every architecture that LaRoSA knows, with gains and biases that matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import tiny_models
import torch
from tiny_models import _COMMON, _GROUPED
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from optim.model import LanguageModel, wrap

KNOWN: dict[str, Callable[[], PreTrainedModel]] = {
    **tiny_models.ARCHITECTURES,
    "llama-tied": lambda: tiny_models.LlamaForCausalLM(
        tiny_models.LlamaConfig(**_GROUPED, tie_word_embeddings=True, mlp_bias=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_GROUPED)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_GROUPED, head_dim=16)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GROUPED, head_dim=16, sliding_window=12, query_pre_attn_scalar=16)
    ),
    "gpt_neox-serial": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**_COMMON, use_parallel_residual=False)
    ),
}
TEXTS = tuple(f"{p} {p[::-1]}" for p in tiny_models.prompts(120, seed=7))


@cache
def model(architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random model; norms have gains and biases far from 1 and 0, and so have projections."""
    torch.manual_seed(sum(map(ord, architecture)))
    made = KNOWN[architecture]().double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.12)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.4)
    made.generation_config.eos_token_id = tiny_models.END
    return wrap(made.to(dtype), tiny_models.tokenizer())


def ids(count: int = 3, length: int = 40, seed: int = 1) -> torch.Tensor:
    """Random token ids [count, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, length), generator=generator)
