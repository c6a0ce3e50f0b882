"""The engine on the CUDA arena: the same tokens, nothing read that is not there, nothing left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from fake_cuda_driver import FakeDriver, checked_driver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_slots import ACTIONS, Plain, act, check_memory, leave

from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.prefix import Prefix
from optim.model import LanguageModel, PhaseName
from optim.registry import apply_all, optimization
from optim.vattention.arena.arena import Spans
from optim.vattention.cuda.arena import CudaArena
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache

PAGE = 4096  # 32 tokens of the tiny llama in float32
PARAMS = SamplingParams(temperature=0.9, max_new_tokens=60)


def run(lm: LanguageModel, prompts: list[str], **engine: Any) -> list[Completion]:
    params = engine.pop("params", PARAMS)
    requests = [Request(str(i), p, params) for i, p in enumerate(prompts)]
    made = list(Engine(lm, **engine).generate(requests))
    return sorted(made, key=lambda c: int(c.request.prompt_id))


def on_device(
    lm: LanguageModel, driver: FakeDriver, caches: list[VAttentionSlotCache], **chosen: Any
) -> LanguageModel:
    """The model with a cache in the driver's memory; each cache is entered in `caches`."""
    wanted = Settings(**chosen)

    def new_cache(model: Any, num_slots: int, max_length: int) -> VAttentionSlotCache:
        arena = CudaArena(driver, wanted.budget_bytes, wanted.pool_bytes)
        caches.append(VAttentionSlotCache(model, num_slots, max_length, wanted, arena=arena))
        return caches[-1]

    return replace(lm, new_cache=new_cache)


@contextmanager
def launching(lm: LanguageModel, driver: FakeDriver) -> Iterator[None]:
    """Each forward leaves work in flight, as on a device, until somebody waits for it."""
    hook = lm.model.register_forward_hook(lambda *_: driver.launch())
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with checked_driver(PAGE) as made:
        yield made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_tokens_are_those_of_the_dynamic_cache(
    driver: FakeDriver, architecture: str, dtype: torch.dtype
) -> None:
    lm = tiny_models.model(architecture, dtype)
    prompts = tiny_models.prompts(9, seed=1, longest=150)
    caches: list[VAttentionSlotCache] = []
    expected = [c.ids for c in run(lm, prompts, batch_size=4)]
    with launching(lm, driver):
        made = run(on_device(lm, driver, caches), prompts, batch_size=4)
    assert [c.error for c in made] == [None] * 9
    assert [c.ids for c in made] == expected
    assert driver.count("map") > 60, "rows of several pages"
    [cache] = caches
    assert cache.arena.committed_bytes == 0
    cache.close()
    assert driver.is_empty()


CHOICES: dict[str, dict[str, Any]] = {
    "eager attention": {},
    "deferred": {"reclaim": "deferred", "deferred_bytes": 10 * PAGE},
    "no look-ahead": {"look_ahead": 0},
    "far look-ahead": {"look_ahead": 100},
    "no pool": {"pool_bytes": 0},
}


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("chunk", [None, 7])
def test_tokens_do_not_depend_on_settings(
    driver: FakeDriver, chosen: dict[str, Any], chunk: int | None
) -> None:
    lm = tiny_models.model("llama", torch.bfloat16, "sdpa" if chosen else "eager")
    prompts = tiny_models.prompts(10, seed=2, longest=150)
    options: dict[str, Any] = {"batch_size": 4, "prefill_chunk": chunk}
    expected = [c.ids for c in run(lm, prompts, **options)]
    with launching(lm, driver):
        made = run(on_device(lm, driver, [], **chosen), prompts, **options)
    assert [c.ids for c in made] == expected


def test_nobody_writes_to_the_page_of_zeros(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fill = CudaArena.fill

    def spy(arena: CudaArena, spans: Any) -> None:
        fill(arena, spans)
        seen.append(driver.content(arena._memory._zeros or 0).count(0))

    monkeypatch.setattr(CudaArena, "fill", spy)
    lm = tiny_models.model("llama")
    prompts = ["a" * n for n in (150, 3, 120, 20, 5)]
    run(on_device(lm, driver, []), prompts, batch_size=3)
    assert len(seen) > 5
    assert set(seen) == {PAGE}


def test_books_are_what_the_driver_says_in_every_step(driver: FakeDriver) -> None:
    lm = tiny_models.model("llama")
    caches: list[VAttentionSlotCache] = []
    engine = Engine(on_device(lm, driver, caches), batch_size=3)
    forward, checked = engine.forward, []

    def check(phase: PhaseName, **inputs: Any) -> torch.Tensor:
        logits = forward(phase, **inputs)
        books, system = caches[0].audit() or (0, 0)
        checked.append(books == system == driver.live_bytes)
        return logits

    engine.forward = check  # type: ignore[method-assign]
    prompts = ["a" * n for n in (150, 3, 120, 20, 5)]
    made = list(engine.generate([Request(str(i), p, PARAMS) for i, p in enumerate(prompts)]))
    assert [c.error for c in made] == [None] * 5
    assert len(checked) > 60
    assert all(checked)


def test_a_device_that_runs_dry_makes_the_batch_smaller_and_changes_no_token(
    driver: FakeDriver,
) -> None:
    lm = tiny_models.model("llama")
    prompts = ["a" * n for n in (130, 50, 160, 40, 120, 164, 10)]
    expected = [c.ids for c in run(lm, prompts, batch_size=1)]
    # The longest sequence has 224 tokens and needs 42 pages of keys and values in three layers.
    driver.limit_bytes = (42 + 8) * PAGE
    with launching(lm, driver):
        made = run(on_device(lm, driver, []), prompts, batch_size=4)
    assert [c.error for c in made] == [None] * 7
    assert [c.ids for c in made] == expected
    assert sum(c.num_preemptions for c in made) > 0


def test_a_prompt_of_several_seeds_is_mapped_and_not_copied(driver: FakeDriver) -> None:
    lm = tiny_models.model("llama")
    cache = VAttentionSlotCache(
        lm.model, 3, 1000, Settings(), arena=CudaArena(driver, pool_bytes=0)
    )
    keys = torch.randn(3, 1, 2, 300, 16)

    def prefill(slot: int) -> None:
        with cache.prefill(slot, 300) as step:
            for layer in range(3):
                step.cache.update(keys[layer], -keys[layer], layer)

    prefill(0)
    prefix = cache.freeze(0)
    before = driver.live_bytes
    assert cache.fork(1, prefix) == "mapped"
    assert cache.fork(2, prefix) == "mapped"
    # 300 tokens of 128 bytes are nine whole pages and one that every row has its own of.
    assert driver.live_bytes == before + 2 * 6 * PAGE
    driver.launch()
    cache.release(0)
    cache.move(2, 0)
    prefix.close()
    new = torch.randn(3, 2, 2, 1, 16)
    with cache.decode(2) as step:
        for layer in range(3):
            key, value = step.cache.update(new[layer], new[layer], layer)
            for row in range(2):
                assert torch.equal(key[row, :, :300], keys[layer, 0])
                assert torch.equal(value[row, :, :300], -keys[layer, 0])
                assert torch.equal(key[row, :, 300:301], new[layer, row])
    del key, value, step
    books, system = cache.audit() or (0, 0)
    assert books == system == driver.live_bytes
    cache.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, chosen=st.sampled_from(list(CHOICES.values())), seed=st.integers(0, 9))
def test_any_sequence_of_uses_holds_what_plain_tensors_hold(
    actions: list[tuple[str, int]], chosen: dict[str, Any], seed: int
) -> None:
    lm, driver, plain = tiny_models.model("llama"), FakeDriver(PAGE), Plain()
    factory = on_device(lm, driver, [], **chosen).new_cache
    assert factory is not None
    cache = factory(lm.model, 4, 1000)
    prefixes: list[tuple[Prefix, torch.Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    for action in actions:
        act(cache, plain, prefixes, generator, action)
        driver.launch()
        if plain.slots and plain.slots[0].shape[3] > 900:
            break
        check_memory(cache, plain)
    while plain.slots:
        leave(cache, plain, 0)
    for prefix, _ in prefixes:
        prefix.close()
    assert cache.audit() == (driver.live_bytes, driver.live_bytes)
    cache.close()
    assert driver.is_empty()


# --- on a device ---


def moved(lm: LanguageModel) -> LanguageModel:
    """A copy of a tiny model on the device."""
    return replace(lm, model=copy.deepcopy(lm.model).to("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_tokens_on_a_device_are_those_of_the_dynamic_cache(
    architecture: str, dtype: torch.dtype
) -> None:
    lm = moved(tiny_models.model(architecture, dtype))
    prompts = tiny_models.prompts(9, seed=1, longest=150)
    params = SamplingParams(temperature=0.0, max_new_tokens=60)
    expected = [c.ids for c in run(lm, prompts, batch_size=4, params=params)]
    chosen = apply_all(lm, [optimization("vattention", {})])
    made = run(chosen, prompts, batch_size=4, params=params)
    assert [c.error for c in made] == [None] * 9
    assert [c.ids for c in made] == expected


def free_bytes(device: torch.device) -> int:
    """What the driver has left, torch's own spare blocks apart."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


@pytest.mark.gpu
def test_a_device_gets_its_memory_back() -> None:
    device = torch.device("cuda", 0)
    arena = new_arena(Settings(pool_bytes=0), device)
    reservation = arena.reserve(1 << 40)
    # Kernels take memory too, when they are first used.
    plain = torch.zeros(1 << 20, dtype=torch.bfloat16, device=device)
    plain[: 1 << 19] = 3
    assert plain.any()
    del plain
    free = free_bytes(device)
    half = 1 << 29
    places = Spans(reservation.address + np.array([0, 1 << 35]), np.array([half, half]))
    arena.commit(places)
    flat = reservation.tensor(torch.bfloat16)
    assert flat.device == device
    assert not flat[: half // 2].any()
    flat[(1 << 34) : (1 << 34) + half // 2] = 3
    assert free - free_bytes(device) == 2 * half
    assert arena.audit() == 2 * half + arena.page_bytes
    arena.release(places)
    arena.fill(Spans(places.addresses_N[:1], places.bytes_N[:1]))
    assert free_bytes(device) == free
    assert not flat[: half // 2].any()
    del flat
    arena.close()
