"""A model driven with any cache of transformers, by steps or by `generate`."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch
from transformers.cache_utils import Cache

from optim.model import LanguageModel

LAYERS, HEADS, SIZE = 3, 2, 16
"""Of the tiny llama: layers, key/value heads, size of a head."""
PROMPTS = ["hello there my friend", "abc", "one two three"]
ARCHITECTURES = sorted(tiny_models.ARCHITECTURES)


def inputs(lm: LanguageModel, prompts: list[str] = PROMPTS) -> Any:
    lm.tokenizer.padding_side = "left"
    return lm.tokenizer(prompts, return_tensors="pt", padding=True)


def generate(lm: LanguageModel, cache: Cache, batch: Any, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    made: torch.Tensor = lm.model.generate(
        **batch, past_key_values=cache, pad_token_id=tiny_models.END, **options
    )
    return made


def step_logits(lm: LanguageModel, cache: Cache, steps: int) -> torch.Tensor:
    """Logits of a padded prompt and of `steps` greedy steps, [steps, B, V]."""
    batch = inputs(lm)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = []
    with torch.no_grad():
        for _ in range(steps):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = lm.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).logits[:, -1]
            found.append(logits)
            ids = logits.argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return torch.stack(found)
