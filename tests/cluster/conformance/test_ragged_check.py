"""Loaded weights are looked at once in a ragged batch, and refused only beyond rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cluster.conformance.ragged import require_steady
from cluster.engine.engine import Engine
from optim.cache.slot_cache import CACHES, DynamicSlotCache
from optim.cache.slot_layers import DynamicLayerSlots, SlotLayer
from optim.errors import InputError
from optim.model import LanguageModel, wrap
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache


def look(lm: LanguageModel, batch_size: int = 4, *, is_exact: bool = True, **options: Any) -> None:
    require_steady(Engine(lm, batch_size=batch_size, **options), is_exact=is_exact, source="toy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_rounding_is_no_fault(architecture: str, dtype: torch.dtype) -> None:
    look(tiny_models.model(architecture, dtype=dtype))


@pytest.mark.parametrize("options", [{"cache": CACHES["static"]}, {"prefill_chunk": 3}])
def test_caches_and_chunks(options: dict[str, Any]) -> None:
    look(tiny_models.model("gemma3"), **options)


def gpt_neo() -> LanguageModel:
    torch.manual_seed(1)
    config = CONFIG_MAPPING["gpt_neo"](
        vocab_size=258, hidden_size=64, num_layers=4, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 2]], max_position_embeddings=256,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    return wrap(model, tiny_models.tokenizer())


def test_a_neighbour_that_changes_a_text_is_refused() -> None:
    look(gpt_neo(), batch_size=1)
    with pytest.raises(InputError, match="toy: model: GPTNeoForCausalLM gives other logits beside"):
        look(gpt_neo())


class Forgetful(DynamicLayerSlots):
    """Keeps every other key and value of a prompt, whoever else is there."""

    def prefill(
        self, slot: int, past: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = super().prefill(slot, past, key, value)
        for states in self.staged[slot]:
            states[:, :, 1:-1:2] = 0
        return kept


class Leaking(DynamicLayerSlots):
    """Gives each row the values of the first."""

    def decode(
        self, rows: Any, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().decode(rows, key, value)
        return keys, values[:1].expand_as(values)


def brought(layer: Callable[[], SlotLayer]) -> LanguageModel:
    class Cache(DynamicSlotCache):
        name = "toy"

        def new_full_layer(self) -> SlotLayer:
            return layer()

    return replace(tiny_models.model("llama"), new_cache=Cache)


def test_a_cache_that_loses_something_is_compared_with_itself() -> None:
    look(brought(Forgetful), is_exact=False)


@pytest.mark.parametrize("is_exact", [True, False])
def test_a_cache_that_mixes_rows_is_refused(is_exact: bool) -> None:
    with pytest.raises(InputError, match="It works with batch_size: 1"):
        look(brought(Leaking), is_exact=is_exact)


def test_where_there_is_no_room_nothing_is_refused() -> None:
    lm = tiny_models.model("llama")
    look(lm, max_length=8)
    look(replace(lm, new_cache=partial(VAttentionSlotCache, settings=Settings(budget_bytes=1))))
