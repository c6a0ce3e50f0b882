"""Decode steps over each KV cache at the same contents, by the model's own forward."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from benchmarks.machine import median_and_spread
from optim.cache.slot_cache import SlotCache, StaticSlotCache
from optim.cache.slot_layers import SlotLayer, StaticLayerSlots
from optim.vattention.cache import VAttentionCache
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache

STEPS, WARM_UP = 64, 4
Runner = Callable[[PreTrainedModel, int, int], list[float]]
"""(model, rows, context) -> seconds of each step."""


class EmptyLayerSlots(StaticLayerSlots):
    """`torch.empty` and slices: the least that a contiguous cache can be on a CPU."""

    def _allocate(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self._note_sizes(key, value)
        self.keys, self.values = (
            x.new_empty((self.num_slots, x.shape[1], self.max_length, x.shape[3]))
            for x in (key, value)
        )
        return self.keys, self.values


class EmptySlotCache(StaticSlotCache):
    """The null baseline: the system commits its pages as they are touched, and keeps them."""

    def new_full_layer(self) -> SlotLayer:
        return EmptyLayerSlots(self.num_slots, self.max_length)


def small_llama(hidden: int, layers: int, kv_heads: int, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights; speed and memory do not depend on their values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=kv_heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=16384,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().to(dtype)
    model.generation_config.eos_token_id = None
    model.requires_grad_(False)
    return model


def contents(model: PreTrainedModel, context: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one row and layer, [1, H, context, D]."""
    config = model.config
    shape = (1, config.num_key_value_heads, context, 64)
    generator = torch.Generator().manual_seed(1)
    key, value = torch.randn(2, *shape, generator=generator).to(model.dtype)
    return key, value


def fill_slot(cache: SlotCache, slot: int, key: Tensor, value: Tensor, layers: int) -> None:
    """What a prefill does to a cache, without its compute."""
    with cache.prefill(slot, key.shape[2]) as step:
        for layer in range(layers):
            step.cache.update(key, value, layer)


def transformers_steps(make: Callable[[PreTrainedModel], Cache]) -> Runner:
    """A cache that is handed to the model as people do."""

    def run(model: PreTrainedModel, rows: int, context: int) -> list[float]:
        cache = make(model)
        key, value = (x.expand(rows, -1, -1, -1) for x in contents(model, context))
        for layer in range(model.config.num_hidden_layers):
            cache.update(key, value, layer)
        ids = torch.zeros((rows, 1), dtype=torch.long)

        def step() -> None:
            model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)

        return timed(step)

    return run


def decode_step(model: PreTrainedModel, cache: SlotCache, ids_B1: Tensor) -> Tensor:
    """The next tokens [B] of as many slots as there are ids, by the model's own forward."""
    with cache.decode(len(ids_B1)) as step:
        logits_B1V = model(
            input_ids=ids_B1,
            past_key_values=step.cache,
            attention_mask=step.attention_mask,
            position_ids=step.position_ids,
            use_cache=True,
        ).logits
    chosen_B: Tensor = logits_B1V[:, -1].argmax(-1)
    return chosen_B


def slot_steps(make: Callable[[PreTrainedModel, int, int], SlotCache]) -> Runner:
    def run(model: PreTrainedModel, rows: int, context: int) -> list[float]:
        cache = make(model, rows, context + STEPS + WARM_UP + 8)
        key, value = contents(model, context)
        for slot in range(rows):
            fill_slot(cache, slot, key, value, model.config.num_hidden_layers)
        ids = torch.zeros((rows, 1), dtype=torch.long)

        return timed(lambda: decode_step(model, cache, ids))

    return run


def vattention(**chosen: Any) -> Runner:
    return slot_steps(lambda m, n, length: VAttentionSlotCache(m, n, length, Settings(**chosen)))


def timed(step: Callable[[], object]) -> list[float]:
    with torch.inference_mode():
        for _ in range(WARM_UP):
            step()
        times = [perf_counter()]
        for _ in range(STEPS):
            step()
            times.append(perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]


RUNNERS: dict[str, Runner] = {
    "transformers DynamicCache": transformers_steps(lambda m: DynamicCache(config=m.config)),
    "torch.empty and slices": slot_steps(EmptySlotCache),
    "vattention": vattention(),
    "vattention by `generate`": transformers_steps(lambda m: VAttentionCache(m.config)),
    "vattention, no look-ahead": vattention(look_ahead=0),
    "vattention, huge pages": vattention(pages="huge"),
}
DYNAMIC, EMPTY = "transformers DynamicCache", "torch.empty and slices"


def decode_speed(rows: int, context: int, repeats: int) -> dict[str, Any]:
    """Steps per second relative to the two rivals, in rounds that interleave all caches."""
    model = small_llama(hidden=512, layers=8, kv_heads=8, dtype=torch.float32)
    rounds: list[dict[str, list[float]]] = []
    names = list(RUNNERS)
    for i in range(repeats + 1):
        order = names[i % len(names) :] + names[: i % len(names)]
        made = {name: RUNNERS[name](model, rows, context) for name in order}
        if i:  # the first round warms up
            rounds.append(made)
    medians = [{n: statistics.median(made[n]) for n in names} for made in rounds]
    return {
        "rows": rows,
        "context": context,
        "steps": STEPS,
        "step_s": {n: median_and_spread([m[n] for m in medians]) for n in names},
        "p99_over_p50": {n: _tail([t for made in rounds for t in made[n]]) for n in names},
        "over_dynamic": {n: median_and_spread([m[DYNAMIC] / m[n] for m in medians]) for n in names},
        "over_empty": {n: median_and_spread([m[EMPTY] / m[n] for m in medians]) for n in names},
    }


def _tail(times: list[float]) -> float:
    ordered = sorted(times)
    return ordered[int(0.99 * (len(ordered) - 1))] / statistics.median(ordered)
