"""The engine's slots in the arena give the tokens, and hold the contents, of any other cache."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_slots import (
    ACTIONS,
    CHOICES,
    Plain,
    act,
    check_memory,
    leave,
    run,
    with_vattention,
)

from cluster.engine.sampling import SamplingParams
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_tokens_are_those_of_the_dynamic_cache(
    architecture: str, dtype: torch.dtype, attention: str
) -> None:
    lm = tiny_models.model(architecture, dtype, attention)
    prompts = tiny_models.prompts(9, seed=1, longest=90)
    for temperature in (0.0, 0.9):
        params = SamplingParams(temperature=temperature, max_new_tokens=40)
        expected = [c.ids for c in run(lm, prompts, params, batch_size=4)]
        made = run(with_vattention(lm), prompts, params, batch_size=4)
        assert [c.ids for c in made] == expected


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("chunk", [None, 7])
def test_tokens_do_not_depend_on_settings(chosen: dict[str, Any], chunk: int | None) -> None:
    lm = tiny_models.model("gemma3")
    prompts = tiny_models.prompts(12, seed=2)
    params = SamplingParams(temperature=0.8, max_new_tokens=50)
    options = {"batch_size": 4, "prefill_chunk": chunk}
    expected = [c.ids for c in run(lm, prompts, params, **options)]
    made = run(with_vattention(lm, **chosen), prompts, params, **options)
    assert [c.ids for c in made] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, chosen=st.sampled_from(list(CHOICES.values())), seed=st.integers(0, 9))
def test_any_sequence_of_uses_holds_what_plain_tensors_hold(
    actions: list[tuple[str, int]], chosen: dict[str, Any], seed: int
) -> None:
    model = tiny_models.model("llama").model
    chosen = {**chosen, "deferred_bytes": 1 << 16}
    cache = VAttentionSlotCache(model, 4, 1000, Settings(**chosen))
    plain, prefixes = Plain(), []  # type: ignore[var-annotated]
    generator = torch.Generator().manual_seed(seed)
    for action in actions:
        act(cache, plain, prefixes, generator, action)
        if plain.slots and plain.slots[0].shape[3] > 900:
            break
        check_memory(cache, plain)
    while plain.slots:
        leave(cache, plain, 0)
    for prefix, _ in prefixes:
        prefix.close()
    books, system = cache.audit() or (0, 0)
    assert books == system <= cache.settings.kept_bytes
    cache.close()
    assert cache.arena.audit() == 0
