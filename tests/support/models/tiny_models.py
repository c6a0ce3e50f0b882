"""Random small models of every architecture and a byte-level tokenizer, with no download."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from optim.model import LanguageModel, wrap

VOCABULARY = 258
END = 256

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "eos_token_id": END,
    "bos_token_id": 257,
    "pad_token_id": END,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}

ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=16)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=32)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_COMMON, partial_rotary_factor=0.5)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=64,
            n_layer=3,
            n_head=4,
            n_positions=256,
            eos_token_id=END,
            bos_token_id=257,
            pad_token_id=END,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_GROUPED,
            head_dim=16,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON)),
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, an end token, a start token that is never added by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    vocabulary |= {"<end>": END, "<start>": 257}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", bos_token="<start>", pad_token="<end>"
    )


@cache
def model(
    architecture: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> LanguageModel:
    """A random model whose tokens are varied: larger weights than the default initialisation's."""
    torch.manual_seed(sum(map(ord, architecture)))
    made = ARCHITECTURES[architecture]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.12)
    made.set_attn_implementation(attention)
    made.generation_config.eos_token_id = END
    return wrap(made.to(dtype), tokenizer())


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Random ASCII prompts of 1 to `longest` bytes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        size = int(torch.randint(1, longest + 1, (1,), generator=generator))
        codes = torch.randint(32, 127, (size,), generator=generator)
        made.append(bytes(codes.tolist()).decode())
    return made
