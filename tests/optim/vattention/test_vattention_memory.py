"""Memory of the engine's slots: what goes back, what happens without, what the background does."""

from __future__ import annotations

import gc
import mmap
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from plain_slots import (
    HEADS,
    LAYERS,
    SIZE,
    TOKEN_BYTES,
    Plain,
    check_memory,
    decode,
    leave,
    prefill,
    run,
    with_vattention,
)

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.model import PhaseName
from optim.vattention.arena.arena import KVMemoryError, LiveTensorError, Spans
from optim.vattention.arena.page_table import PageTable
from optim.vattention.arena.shared_prefix import SharedRow
from optim.vattention.arena.stripes import Kind
from optim.vattention.linux import mappings
from optim.vattention.linux.arena import LinuxArena
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache


def new_cache(num_slots: int = 2, length: int = 4096, **chosen: Any) -> VAttentionSlotCache:
    model = tiny_models.model("llama").model
    return VAttentionSlotCache(model, num_slots, length, Settings(**chosen))


def test_nothing_is_resident_when_release_returns() -> None:
    cache, plain, generator = new_cache(), Plain(), torch.Generator()
    prefill(cache, plain, generator, 3000)
    assert cache.arena.audit() >= 3000 * TOKEN_BYTES * 2 * LAYERS * HEADS
    cache.release(0)
    assert cache.arena.audit() == 0
    assert cache.accounts().committed_bytes == 0


def test_deferred_reclaim_keeps_up_to_its_bound_and_reuses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = 1 << 20
    cache = new_cache(reclaim="deferred", deferred_bytes=bound, look_ahead=0)
    plain, generator = Plain(), torch.Generator()
    prefill(cache, plain, generator, 500)
    leave(cache, plain, 0)
    kept = cache.arena.audit()
    assert 0 < kept <= bound
    grown = []
    real = cache.arena.populate
    monkeypatch.setattr(cache.arena, "populate", lambda s: (grown.append(s.total_bytes), real(s)))
    prefill(cache, plain, generator, 500)
    assert sum(grown) == 0, "the second sequence commits nothing"
    leave(cache, plain, 0)
    prefill(cache, plain, generator, 4000)
    leave(cache, plain, 0)
    stripes = 2 * LAYERS * HEADS
    assert bound - stripes * mmap.PAGESIZE < cache.arena.audit() <= bound, "as much as may be"


def test_a_thousand_requests_leave_nothing_behind() -> None:
    cache, generator = new_cache(3, 600), torch.Generator()
    plain = Plain()
    prefill(cache, plain, generator, 10)
    leave(cache, plain, 0)
    before = mappings.count()
    for i in range(1000):
        tokens = 1 + (i * 37) % 500
        with cache.prefill(len(plain.slots), tokens) as step:
            new = torch.ones(1, HEADS, tokens, SIZE)
            for layer in range(LAYERS):
                step.cache.update(new, new, layer)
        plain.slots.append(torch.empty(0))
        if len(plain.slots) == 3:
            leave(cache, plain, i % 3)
    while plain.slots:
        leave(cache, plain, 0)
    assert cache.arena.audit() == cache.arena.committed_bytes == 0
    assert mappings.count() <= before + 20, "a thousand would be a leak; a few are other threads'"


def test_prompts_shared_a_thousand_times_leave_nothing_behind() -> None:
    cache, plain, generator = new_cache(2, 600), Plain(), torch.Generator()
    before = None
    for _ in range(1000):
        prefill(cache, plain, generator, 70)
        prefix = cache.freeze(0)
        cache.fork(1, prefix)
        plain.slots.append(plain.slots[0])
        leave(cache, plain, 0)
        prefix.close()
        leave(cache, plain, 0)
        before = before or mappings.count()
    assert cache.arena.audit() == cache.arena.shared_bytes == 0
    assert mappings.count() <= before + 20, "a thousand would be a leak; a few are other threads'"
    del prefix
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is SharedRow]


def test_a_step_that_fails_midway_leaks_nothing_and_the_slot_is_usable() -> None:
    lm = with_vattention(tiny_models.model("llama"))
    engine = Engine(lm, batch_size=2)
    caches: list[VAttentionSlotCache] = []
    make = engine.new_cache
    engine.new_cache = lambda longest: caches.append(make(longest)) or caches[-1]  # type: ignore
    forward = engine.forward
    calls = iter(range(1000))

    def sometimes(phase: PhaseName, **inputs: Any) -> torch.Tensor:
        logits = forward(phase, **inputs)
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no memory for activations")
        return logits

    engine.forward = sometimes  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=1)
    made = list(engine.generate([Request(str(i), "x" * 99, params) for i in range(5)]))
    assert Counter(c.error is None for c in made) == {True: 4, False: 1}
    [cache] = caches
    assert cache.arena.committed_bytes == 0
    assert cache.arena.audit() == 0
    assert engine.stats.kv_audit is not None
    books, system = engine.stats.kv_audit
    assert books == system > 0


def test_the_whole_reservation_may_be_many_times_the_memory() -> None:
    cache = new_cache(64, 1 << 28)
    plain, generator = Plain(), torch.Generator()
    prefill(cache, plain, generator, 50)
    assert cache.accounts().reserved_bytes > 10 * (24 << 30)
    decode(cache, plain, generator)
    check_memory(cache, plain)


def test_a_tensor_of_the_cache_keeps_it_open() -> None:
    cache, plain = new_cache(), Plain()
    prefill(cache, plain, torch.Generator(), 20)
    view = cache.layers[0].keys[0, :, :20]  # type: ignore[attr-defined]
    with pytest.raises(LiveTensorError):
        cache.close()
    assert torch.equal(view, plain.slots[0][0, 0])


# --- memory that runs out ---


def budget(tokens: int) -> int:
    """Bytes for one sequence of so many tokens of the tiny llama, in whole pages."""
    pages = -(-tokens * TOKEN_BYTES // mmap.PAGESIZE)
    return 2 * LAYERS * HEADS * pages * mmap.PAGESIZE


def test_a_short_budget_makes_the_batch_smaller_and_changes_no_token() -> None:
    lm = tiny_models.model("llama")
    prompts = ["a" * n for n in (30, 50, 60, 40, 20, 64, 10)]
    params = SamplingParams(temperature=0.9, max_new_tokens=100)
    expected = [c.ids for c in run(lm, prompts, params, batch_size=1)]
    tight = with_vattention(lm, budget_bytes=budget(190), look_ahead=0)
    made = run(tight, prompts, params, batch_size=4)
    assert [c.error for c in made] == [None] * 7
    assert [c.ids for c in made] == expected
    assert sum(c.num_preemptions for c in made) > 0
    for completion in made:
        assert completion.kv is not None
        assert completion.kv.committed_bytes <= budget(190)
        assert completion.token_times_s == sorted(completion.token_times_s)


def test_a_sequence_that_never_fits_fails_alone_with_the_reason() -> None:
    lm = with_vattention(tiny_models.model("llama"), budget_bytes=budget(64), look_ahead=0)
    params = SamplingParams(temperature=0.9, max_new_tokens=20)
    long, short, growing = run(lm, ["x" * 100, "y" * 10, "z" * 60], params, batch_size=2)
    assert long.error is not None
    assert "do not fit the budget" in long.error
    assert short.error is None
    assert growing.error is not None
    assert long.kv is growing.kv is None
    assert growing.ids == []


def test_a_host_that_runs_dry_ends_sequences_and_not_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [True] * 3

    def grants(self: object, num_bytes: int) -> bool:
        return not num_bytes or (left.pop() if left else False)

    monkeypatch.setattr("optim.vattention.linux.host_memory.HostMemory.grants", grants)
    lm = with_vattention(tiny_models.model("llama"))
    made = run(lm, ["a" * 20] * 3, SamplingParams(max_new_tokens=150), batch_size=1)
    assert any(c.error and "the host has no" in c.error for c in made)


def test_a_sequence_that_cannot_be_moved_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_models.model("llama")
    prompts = ["a" * n for n in (5, 90, 30, 64, 20, 71, 10)]
    params = SamplingParams(temperature=0.9, max_new_tokens=60)
    expected = [c.ids for c in run(lm, prompts, params, batch_size=1)]
    real, calls = PageTable.move, iter(range(1000))

    def sometimes(self: PageTable, src: int, dst: int, tokens: int) -> None:
        if next(calls) % 2 == 0:
            raise KVMemoryError("none left just then")
        real(self, src, dst, tokens)

    monkeypatch.setattr(PageTable, "move", sometimes)
    for chunk in (None, 16):
        made = run(with_vattention(lm), prompts, params, batch_size=4, prefill_chunk=chunk)
        assert [c.error for c in made] == [None] * 7
        assert [c.ids for c in made] == expected
        assert sum(c.num_preemptions for c in made) > 0


# --- the background ---


def test_the_next_page_is_committed_while_the_step_computes() -> None:
    cache, plain, generator = new_cache(look_ahead=1), Plain(), torch.Generator()
    prefill(cache, plain, generator, 62)
    main, seen = threading.get_ident(), []
    real = cache.arena.populate

    def spy(spans: Spans) -> None:
        seen.append((threading.get_ident() == main, spans.total_bytes))
        real(spans)

    cache.arena.populate = spy  # type: ignore[method-assign]
    for _ in range(200):
        decode(cache, plain, generator)
    by_main = [size for is_main, size in seen if is_main and size]
    assert by_main == [], "a page was missing when its step began"
    assert len(seen) == 4, "one commit of all stripes per 64 tokens, in fp32"


def test_a_slow_background_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LinuxArena.populate
    turn = [0]

    def late(self: LinuxArena, spans: Spans) -> None:
        turn[0] += 1
        time.sleep(0.003 * (turn[0] % 3))
        real(self, spans)

    monkeypatch.setattr(LinuxArena, "populate", late)
    lm = tiny_models.model("llama")
    prompts = tiny_models.prompts(8, seed=4, longest=100)
    params = SamplingParams(temperature=0.9, max_new_tokens=90)
    expected = [c.ids for c in run(lm, prompts, params, batch_size=3)]
    made = run(with_vattention(lm), prompts, params, batch_size=3)
    assert [c.ids for c in made] == expected


def test_a_background_that_fails_is_no_error_before_its_pages_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, plain, generator = new_cache(look_ahead=1), Plain(), torch.Generator()
    prefill(cache, plain, generator, 62)
    main, real = threading.get_ident(), cache.arena.populate

    def fails_behind(spans: Spans) -> None:
        if threading.get_ident() != main:
            raise KVMemoryError("none left just then")
        real(spans)

    monkeypatch.setattr(cache.arena, "populate", fails_behind)
    for _ in range(80):
        decode(cache, plain, generator)
    check_memory(cache, plain)


def test_pages_of_a_shared_kind_are_counted_once() -> None:
    kind = Kind(rows=2, stripes=3, token_bytes=64, length=100, page=4096)
    kind.add(1 << 20)
    assert kind.stripe_bytes == 2 * 4096
    assert kind.growth(kind.pages(torch.tensor([65, 0]).numpy())).total_bytes == 3 * 2 * 4096
    kind.held_TB[0] = [1, 0]
    grown = kind.growth(kind.pages(torch.tensor([65, 1]).numpy()))
    assert grown.addresses_N.tolist() == [
        (1 << 20) + offset * 4096 for offset in (1, 3, 5, 6, 8, 10)
    ]


def test_the_model_and_the_baseline_are_left_alone() -> None:
    lm = tiny_models.model("llama")
    made = with_vattention(lm)
    assert made.model is lm.model
    assert lm.new_cache is None
    assert replace(made, new_cache=None) == lm


@pytest.mark.parametrize("left_behind", [60, 150], ids=["kept whole", "kept in part"])
def test_what_an_ended_sequence_left_is_never_read(left_behind: int) -> None:
    cache = new_cache(reclaim="deferred", deferred_bytes=1 << 16)
    plain, generator = Plain(), torch.Generator()
    prefill(cache, plain, generator, 200)
    prefill(cache, plain, generator, left_behind)
    leave(cache, plain, 1)
    assert cache.audit() != (0, 0)
    prefill(cache, plain, generator, 10)
    decode(cache, plain, generator)
