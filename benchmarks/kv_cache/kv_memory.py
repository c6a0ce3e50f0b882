"""KV memory on traces: peaks, tightness, release, budgets, and transformers' own pool."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import perf_counter
from typing import Any

import psutil
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.engine.ragged import IdTokenizer, Item
from benchmarks.kv_cache.kv_decode import contents, fill_slot
from benchmarks.machine import median_and_spread
from cluster.engine.completion import EngineStats, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES, CacheFactory, KVAccounts, SlotCache
from optim.model import LanguageModel, Vocabulary
from optim.vattention.arena.arena import KVMemoryError
from optim.vattention.linux import mappings
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache
from optim.vattention.slot_layer import ArenaLayerSlots

GIB = 1 << 30


def arena_cache(**chosen: Any) -> CacheFactory:
    return lambda m, n, length: VAttentionSlotCache(m, n, length, Settings(**chosen))


FACTORIES: dict[str, CacheFactory] = {**CACHES, "vattention": arena_cache()}


def items_between(
    count: int, prompts: tuple[int, int], outputs: tuple[int, int], seed: int
) -> list[Item]:
    draw = random.Random(seed)
    return [
        Item(tuple(draw.randrange(3, 2000) for _ in range(draw.randint(*prompts))),
             draw.randint(*outputs))
        for _ in range(count)
    ]  # fmt: skip


class TightCache(VAttentionSlotCache):
    """Asserts at every look that no page is committed without a reason."""

    looks = 0

    def accounts(self, slot: int | None = None) -> KVAccounts:
        held = super().accounts(slot)
        if slot is None:
            self._check(held)
        return held

    def _check(self, held: KVAccounts) -> None:
        page, ahead = self.arena.page_bytes, self.settings.look_ahead
        bound = used = 0
        for layer in self.layers:
            assert isinstance(layer, ArenaLayerSlots)
            for region in layer.regions:
                token_bytes, stripes = region.kind.token_bytes, region.kind.stripes
                for length in (n for n in self.lengths if n):
                    bound += stripes * -(-(length + ahead) * token_bytes // page) * page
                    used += stripes * length * token_bytes
        assert used == held.used_bytes
        assert used <= held.committed_bytes <= bound, (used, held, bound)
        TightCache.looks += 1


def run_trace(
    model: PreTrainedModel, items: list[Item], batch_size: int, factory: CacheFactory
) -> tuple[EngineStats, float]:
    """The engine's statistics over a trace, and its wall time in seconds."""
    prompts = {str(i): list(item.prompt) for i, item in enumerate(items)}
    lm = LanguageModel(model, IdTokenizer(prompts), Vocabulary.base(model.config.vocab_size))
    engine = Engine(lm, batch_size=batch_size, cache=factory)
    requests = [
        Request(str(i), str(i), SamplingParams(max_new_tokens=item.num_new))
        for i, item in enumerate(items)
    ]
    start = perf_counter()
    made = list(engine.generate(requests))
    assert all(c.error is None for c in made), [c.error for c in made if c.error][:1]
    return engine.stats, perf_counter() - start


def peaks(model: PreTrainedModel, name: str, items: list[Item], batch_size: int) -> dict[str, Any]:
    """Peak and mean KV bytes of every cache on one trace."""
    factories = FACTORIES | {"vattention": lambda m, n, length: TightCache(m, n, length)}
    found: dict[str, Any] = {}
    for cache, factory in factories.items():
        stats, wall_s = run_trace(model, items, batch_size, factory)
        found[cache] = {
            "used_peak_bytes": stats.kv_peak.used_bytes,
            "committed_peak_bytes": stats.kv_peak.committed_bytes,
            "committed_byte_s": stats.kv_byte_s.committed,
            "committed_over_used": stats.kv_byte_s.committed / stats.kv_byte_s.used,
            "wall_s": wall_s,
        }
    lengths = [len(item.prompt) + item.num_new for item in items]
    mine, static, dynamic = (found[n] for n in ("vattention", "static", "dynamic"))
    share = static["used_peak_bytes"] / static["committed_peak_bytes"]
    return {
        "workload": name,
        "batch_size": batch_size,
        "requests": len(items),
        "mean_length": sum(lengths) / len(lengths),
        "caches": found,
        "looks": TightCache.looks,
        "static_used_share": share,
        "peak_over_static": mine["committed_peak_bytes"] / static["committed_peak_bytes"],
        "peak_over_dynamic": mine["committed_peak_bytes"] / dynamic["committed_peak_bytes"],
        "byte_s_over_static": mine["committed_byte_s"] / static["committed_byte_s"],
        "byte_s_over_dynamic": mine["committed_byte_s"] / dynamic["committed_byte_s"],
    }


def tightness(model: PreTrainedModel, longest: int = 3000) -> dict[str, Any]:
    """Committed over used of one growing sequence, exactly bounded in every step."""
    cache = TightCache(model, 1, longest + 1)
    layers = model.config.num_hidden_layers
    key, value = contents(model, 1)
    fill_slot(cache, 0, key, value, layers)
    ratios = {}
    for length in range(2, longest + 1):
        with cache.decode(1) as step:
            for layer in range(layers):
                step.cache.update(key, value, layer)
        held = cache.accounts()
        ratios[length] = held.committed_bytes / held.used_bytes
    worst = max(ratio for length, ratio in ratios.items() if length >= 1024)
    assert worst <= 1.05, worst
    return {"worst_from_1024": worst, "at_256": ratios[256], "steps": longest}


def release(model: PreTrainedModel, repeats: int) -> dict[str, Any]:
    """Cost of giving memory back, of keeping it, and what is resident when `release` returns."""
    layers = model.config.num_hidden_layers
    per_token = 2 * layers * model.config.num_key_value_heads * 64 * model.dtype.itemsize
    tokens = GIB // per_token
    key, value = contents(model, tokens)
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, chosen in (("base pages", {}), ("huge pages", {"pages": "huge"})):
            cache = VAttentionSlotCache(model, 1, tokens + 8, Settings(**chosen))
            fill_slot(cache, 0, key, value, layers)
            assert cache.arena.audit() >= 0.99 * GIB
            start = perf_counter()
            cache.release(0)
            found.setdefault(name, []).append(perf_counter() - start)
            assert cache.arena.audit() == cache.arena.committed_bytes == 0
    bound = 64 << 20
    cache = VAttentionSlotCache(
        model, 1, tokens + 8, Settings(reclaim="deferred", deferred_bytes=bound)
    )
    fill_slot(cache, 0, key, value, layers)
    cache.release(0)
    kept = cache.arena.audit()
    assert kept <= bound
    return {
        "release_s_per_gib": {name: median_and_spread(times) for name, times in found.items()},
        "resident_after_bytes": 0,
        "deferred_bound_bytes": bound,
        "deferred_kept_bytes": kept,
    }


def churn(model: PreTrainedModel, count: int = 1000) -> dict[str, Any]:
    """Requests that come and go through few slots: no mapping and no byte more at the end."""
    layers, slots = model.config.num_hidden_layers, 4
    cache = VAttentionSlotCache(model, slots, 600)
    key, value = contents(model, 512)
    fill_slot(cache, 0, key, value, layers)
    cache.release(0)
    process = psutil.Process()
    before = mappings.count(), process.memory_info().rss
    for i in range(count):
        length = 1 + 37 * i % 512
        fill_slot(cache, i % slots, key[:, :, :length], value[:, :, :length], layers)
        cache.release(i % slots)
    grown = mappings.count() - before[0], process.memory_info().rss - before[1]
    assert cache.arena.audit() == cache.arena.committed_bytes == 0
    assert grown[0] <= 1
    return {"requests": count, "mappings_grown": grown[0], "process_rss_grown_bytes": grown[1]}


def over_reserve(model: PreTrainedModel) -> dict[str, Any]:
    """Address space of ten times the memory, and a clear error beyond what there is."""
    total = psutil.virtual_memory().total
    per_token = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * 64 * 4
    length = 10 * total // per_token // 4 + 1
    cache = VAttentionSlotCache(model, 4, length)
    key, value = contents(model, 16)
    fill_slot(cache, 0, key, value, model.config.num_hidden_layers)
    reserved = cache.accounts().reserved_bytes
    assert reserved >= 10 * total
    too_much = VAttentionSlotCache(model, 4, length * 1000)
    try:
        fill_slot(too_much, 0, key, value, model.config.num_hidden_layers)
    except KVMemoryError as error:
        message = str(error)
    else:
        raise AssertionError("the address space has no end")
    return {"memory_bytes": total, "reserved_bytes": reserved, "beyond": message}


def largest_batches(model: PreTrainedModel, budget: int, limit: int, seed: int) -> dict[str, Any]:
    """Sequences of a ragged workload, at their final lengths, that fit a budget of KV bytes."""
    draw = random.Random(seed)
    lengths = [min(limit, max(32, int(draw.lognormvariate(6.6, 0.8)))) for _ in range(4096)]
    layers = model.config.num_hidden_layers
    per_token = 2 * layers * model.config.num_key_value_heads * 64 * model.dtype.itemsize
    dynamic = next(
        n - 1 for n in range(1, len(lengths)) if n * max(lengths[:n]) * per_token > budget
    )
    count = _fit_in_arena(model, budget, limit, lengths)
    return {
        "budget_bytes": budget,
        "bytes_per_token": per_token,
        "longest_allowed": limit,
        "mean_length": sum(lengths[:count]) / count,
        "static": budget // (limit * per_token),
        "dynamic": dynamic,
        "vattention": count,
    }


def _fit_in_arena(model: PreTrainedModel, budget: int, limit: int, lengths: list[int]) -> int:
    """Really filled until the arena refuses."""
    cache = VAttentionSlotCache(model, len(lengths), limit, Settings(budget_bytes=budget))
    key, value = contents(model, limit)
    for slot, length in enumerate(lengths):
        try:
            fill_slot(cache, slot, key[:, :, :length], value[:, :, :length],
                      model.config.num_hidden_layers)  # fmt: skip
        except KVMemoryError:
            books, system = cache.audit() or (0, 0)
            assert books == system <= budget
            return slot
    raise AssertionError("the budget holds the whole workload")


def shared_prompts(model: PreTrainedModel, seeds: int, prompt: int, repeats: int) -> dict[str, Any]:
    """K seeds of each prompt: prefilled by each, and once."""
    from cluster.engine.prefixes import PrefixStore

    items = items_between(4, (prompt, prompt), (16, 16), seed=3)
    prompts = {str(i): list(item.prompt) for i, item in enumerate(items)}
    lm = LanguageModel(model, IdTokenizer(prompts), Vocabulary.base(model.config.vocab_size))
    params = SamplingParams(temperature=0.8, max_new_tokens=16)
    requests = [Request(p, p, params, seed) for p in prompts for seed in range(seeds)]

    def run(store: PrefixStore | None) -> tuple[EngineStats, list[Any], int]:
        engine = Engine(lm, batch_size=seeds, cache=FACTORIES["vattention"], prefixes=store)
        tokens = _count_prefilled(engine)
        made = {(c.request.prompt_id, c.request.seed): c for c in engine.generate(requests)}
        kinds = [made[r.prompt_id, r.seed].prefill_shared for r in requests]
        assert kinds.count("mapped") == (0 if store is None else len(prompts) * (seeds - 1))
        return engine.stats, [made[r.prompt_id, r.seed].ids for r in requests], sum(tokens)

    run(None)
    pairs = [(run(None), run(PrefixStore())) for _ in range(repeats)]
    assert all(own[1] == shared[1] for own, shared in pairs), "sharing changed a token"
    own, shared = pairs[-1][0], pairs[-1][1]
    return {
        "seeds": seeds,
        "prompt_tokens": prompt,
        "outputs_unchanged": True,
        "prefilled_tokens_ratio": shared[2] / own[2],
        "prefill_s_ratio": median_and_spread([s[0].prefill_s / o[0].prefill_s for o, s in pairs]),
        "kv_peak_ratio": shared[0].kv_peak.committed_bytes / own[0].kv_peak.committed_bytes,
        "limit": 1 / seeds,
    }


def _count_prefilled(engine: Engine) -> list[int]:
    seen: list[int] = []
    real: Callable[[SlotCache, int, list[int]], Tensor] = engine.prefill

    def spy(cache: SlotCache, slot: int, ids: list[int]) -> Tensor:
        seen.append(len(ids))
        return real(cache, slot, ids)

    engine.prefill = spy  # type: ignore[method-assign]
    return seen
