"""The engine's slots in the arena: the same tokens, tight commits, memory that goes back."""

from __future__ import annotations

import mmap
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.completion import Completion, Request
from cluster.engine import Engine
from cluster.sampling import SamplingParams
from optim.cache import SlotCache
from optim.model import LanguageModel
from optim.prefix import Prefix
from optim.registry import apply_all, optimization
from optim.vattention import mappings
from optim.vattention.arena import KVMemoryError, LiveTensorError, Spans
from optim.vattention.linux import LinuxArena
from optim.vattention.pages import PageTable
from optim.vattention.settings import Settings
from optim.vattention.slots import VAttentionSlotCache
from optim.vattention.stripes import Kind

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


# --- a model of the cache in plain tensors ---

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


# --- memory ---


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
    assert mappings.count() <= before + 1


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
    assert mappings.count() <= before + 1


def test_a_step_that_fails_midway_leaks_nothing_and_the_slot_is_usable() -> None:
    lm = with_vattention(tiny_models.model("llama"))
    engine = Engine(lm, batch_size=2)
    caches: list[VAttentionSlotCache] = []
    make = engine.new_cache
    engine.new_cache = lambda longest: caches.append(make(longest)) or caches[-1]  # type: ignore
    forward = engine.forward
    calls = iter(range(1000))

    def sometimes(**inputs: Any) -> torch.Tensor:
        logits = forward(**inputs)
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

    monkeypatch.setattr("optim.vattention.host_memory.HostMemory.grants", grants)
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
