"""A random model whose tokens span words, as those of an adapted vocabulary do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optim.model import LanguageModel, wrap

TEXTS = [
    "the colour of the sky is blue.\n",
    "the colour of the sky is grey.\n",
    "the colour of grass is green.\n",
    "the sky is blue and the grass is green.\n",
    "the answer is yes. the answer is no.\n",
] * 4


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """BPE over bytes without a cut between words; no token is added by itself."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def model() -> LanguageModel:
    """Random weights, the same on every call."""
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = LlamaForCausalLM(config).eval()
        for parameter in made.parameters():  # as initialised, all tokens are about as likely
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    made.requires_grad_(False)
    return wrap(made, tokenizer())


def save(folder: Path) -> Path:
    lm = model()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder
