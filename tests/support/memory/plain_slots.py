"""Slots of an engine in plain tensors: what any cache should hold after any sequence of uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.prefix import Prefix
from optim.cache.slot_cache import SlotCache
from optim.model import LanguageModel
from optim.registry import apply_all, optimization
from optim.vattention.slot_cache import VAttentionSlotCache

CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "deferred": {"reclaim": "deferred"},
    "no look-ahead": {"look_ahead": 0},
    "far look-ahead": {"look_ahead": 100},
    "huge pages": {"pages": "huge"},
}


def with_vattention(lm: LanguageModel, **chosen: Any) -> LanguageModel:
    return apply_all(lm, [optimization("vattention", chosen)])


def run(
    lm: LanguageModel, prompts: list[str], params: SamplingParams, **engine: Any
) -> list[Completion]:
    requests = [Request(str(i), p, params) for i, p in enumerate(prompts)]
    made = list(Engine(lm, **engine).generate(requests))
    return sorted(made, key=lambda c: int(c.request.prompt_id))


HEADS, SIZE, LAYERS = 2, 16, 3  # of the tiny llama
TOKEN_BYTES = SIZE * 4


@dataclass
class Plain:
    """What each slot should hold: [LAYERS, 2, HEADS, length, SIZE]."""

    slots: list[torch.Tensor] = field(default_factory=list)


def fresh(generator: torch.Generator, num_rows: int, num_tokens: int) -> torch.Tensor:
    return torch.randn(LAYERS, 2, num_rows, HEADS, num_tokens, SIZE, generator=generator)


def prefill(cache: SlotCache, plain: Plain, generator: torch.Generator, tokens: int) -> None:
    slot = len(plain.slots)
    new = fresh(generator, 1, tokens)
    with cache.prefill(slot, tokens) as step:
        got = [step.cache.update(new[i, 0], new[i, 1], i) for i in range(LAYERS)]
    plain.slots.append(new[:, :, 0])
    assert torch.equal(torch.stack([torch.stack(pair) for pair in got])[:, :, 0], plain.slots[slot])


def decode(cache: SlotCache, plain: Plain, generator: torch.Generator) -> None:
    rows = len(plain.slots)
    new = fresh(generator, rows, 1)
    with cache.decode(rows) as step:
        got = [step.cache.update(new[i, 0], new[i, 1], i) for i in range(LAYERS)]
    for row in range(rows):
        plain.slots[row] = torch.cat([plain.slots[row], new[:, :, row]], dim=3)
        length = plain.slots[row].shape[3]
        for layer, pair in enumerate(got):
            for held, expected in zip(pair, plain.slots[row][layer], strict=True):
                assert torch.equal(held[row, :, :length], expected)
                assert torch.isfinite(held[row]).all(), "a masked column is still multiplied"


def leave(cache: VAttentionSlotCache, plain: Plain, slot: int) -> None:
    if slot not in cache._shared:  # what is left behind is the worst that can be
        for layer in cache.layers:
            for tensor in (layer.keys, layer.values):  # type: ignore[attr-defined]
                tensor[slot, :, : cache.lengths[slot]] = float("nan")
    cache.release(slot)
    last = len(plain.slots) - 1
    if slot != last:
        cache.move(last, slot)
        plain.slots[slot] = plain.slots[last]
    plain.slots.pop()


def check_memory(cache: VAttentionSlotCache, plain: Plain) -> None:
    """Committed at most used, a page per stripe, the look-ahead and what may be kept."""
    books, system = cache.audit() or (0, 0)
    assert books == system
    stripes = 2 * LAYERS * HEADS
    page, ahead = cache.arena.page_bytes, cache.settings.look_ahead
    bound = cache.settings.kept_bytes + cache.arena.shared_bytes
    for states in plain.slots:
        tokens = (states.shape[3] + ahead) * TOKEN_BYTES
        bound += stripes * -(-tokens // page) * page
    if cache.arena.is_coarse:
        return
    assert books <= bound
    assert cache.accounts().used_bytes == stripes * TOKEN_BYTES * sum(
        s.shape[3] for s in plain.slots
    )


def act(
    cache: VAttentionSlotCache,
    plain: Plain,
    prefixes: list[tuple[Prefix, torch.Tensor]],
    generator: torch.Generator,
    action: tuple[str, int],
) -> None:
    name, size = action
    has_slot = len(plain.slots) < cache.num_slots
    if name == "prefill" and has_slot:
        prefill(cache, plain, generator, size)
    elif name == "share" and has_slot:
        prefill(cache, plain, generator, size)
        prefix = cache.freeze(len(plain.slots) - 1)
        prefixes.append((prefix, plain.slots[-1]))
    elif name == "fork" and has_slot and prefixes:
        prefix, states = prefixes[size % len(prefixes)]
        cache.fork(len(plain.slots), prefix)
        plain.slots.append(states)
    elif name == "forget" and prefixes:
        prefixes.pop(size % len(prefixes))[0].close()
    elif name == "decode" and plain.slots:
        for _ in range(size % 20):
            decode(cache, plain, generator)
    elif name == "leave" and plain.slots:
        leave(cache, plain, size % len(plain.slots))


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["prefill", "share", "fork", "forget", "decode", "decode", "leave"]),
        st.integers(1, 300),
    ),
    max_size=25,
)
