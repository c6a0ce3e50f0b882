"""KV caches on a CUDA device: `python -m benchmarks.kv_cache.kv_cuda [--layers 16]`.

Prints tables, and as its last line JSON. Llama-3-8B's shapes with random weights in bfloat16. Pages
are of 2 MiB, which is 1,024 tokens of a layer's keys: what short sequences hold is mostly the rest
of a page. So the traces are of several lengths, and the rivals are named. Device bytes are what the
driver has left, asked in every step: torch's own fragmentation counts, as does the arena's pool.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, PreTrainedModel

from benchmarks.engine.ragged import IdTokenizer, Item
from benchmarks.engine.real_shapes import dense_model
from benchmarks.kv_cache.kv_decode import decode_step
from benchmarks.kv_cache.kv_memory import arena_cache, items_between
from benchmarks.machine import describe, median_and_spread
from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES, CacheFactory
from optim.model import LanguageModel, PhaseName, Vocabulary
from optim.vattention.arena.arena import Spans
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings

DEVICE = torch.device("cuda", 0)
GIB = 1 << 30
STEPS, WARM_UP = 32, 4
SIZES = ((1, 4096), (8, 4096), (16, 8192))
FACTORIES: dict[str, CacheFactory] = {
    **CACHES,
    "vattention": arena_cache(),
    "vattention, no look-ahead": arena_cache(look_ahead=0),
}
TRANSFORMERS, DYNAMIC, STATIC, OWN = (
    "transformers DynamicCache", "dynamic", "static", "vattention"
)  # fmt: skip


def slot_steps(model: PreTrainedModel, factory: CacheFactory, rows: int, context: int) -> Any:
    """One decode step after another over a cache of slots that hold `context` tokens each."""
    config = model.config
    cache = factory(model, rows, context + 4 * (STEPS + WARM_UP))
    shape = (
        1,
        config.num_key_value_heads,
        context,
        config.hidden_size // config.num_attention_heads,
    )
    key = torch.randn(shape, device=DEVICE, dtype=model.dtype)
    for slot in range(rows):
        with cache.prefill(slot, context) as step:
            for layer in range(config.num_hidden_layers):
                step.cache.update(key, key, layer)
    ids = torch.zeros((rows, 1), dtype=torch.long, device=DEVICE)

    return lambda: decode_step(model, cache, ids).tolist()


def transformers_steps(model: PreTrainedModel, rows: int, context: int) -> Any:
    config = model.config
    cache = DynamicCache(config=config)
    shape = (
        rows,
        config.num_key_value_heads,
        context,
        config.hidden_size // config.num_attention_heads,
    )
    key = torch.randn(shape, device=DEVICE, dtype=model.dtype)
    for layer in range(config.num_hidden_layers):
        cache.update(key, key, layer)
    ids = torch.zeros((rows, 1), dtype=torch.long, device=DEVICE)

    def one() -> None:
        model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(
            -1
        ).tolist()

    return one


def timed(step: Callable[[], None]) -> list[float]:
    for _ in range(WARM_UP):
        step()
    found = []
    for _ in range(STEPS):
        start = perf_counter()
        step()
        found.append(perf_counter() - start)
    return found


@torch.inference_mode()
def decode_speed(model: PreTrainedModel, rows: int, context: int, repeats: int) -> dict[str, Any]:
    """Steps of every cache, in rounds that begin with another one each."""
    makers: dict[str, Callable[[], Any]] = {
        TRANSFORMERS: lambda: transformers_steps(model, rows, context)
    }
    for name, factory in FACTORIES.items():
        makers[name] = lambda factory=factory: slot_steps(model, factory, rows, context)
    names = list(makers)
    rounds: list[dict[str, list[float]]] = []
    for i in range(repeats + 1):
        made = {}
        for name in names[i % len(names) :] + names[: i % len(names)]:
            made[name] = timed(makers[name]())
            gc.collect()
            torch.cuda.empty_cache()
        if i:
            rounds.append(made)
    medians = [{n: statistics.median(made[n]) for n in names} for made in rounds]
    return {
        "rows": rows,
        "context": context,
        "step_s": {n: median_and_spread([m[n] for m in medians]) for n in names},
        "longest_step_s": {n: max(max(made[n]) for made in rounds) for n in names},
        "over": {
            rival: median_and_spread([m[rival] / m[OWN] for m in medians])
            for rival in (TRANSFORMERS, DYNAMIC, STATIC)
        },
    }


def held(model: PreTrainedModel, items: list[Item], factory: CacheFactory) -> dict[str, Any]:
    """What a trace holds of the device at its peak, beyond what was held before it."""
    prompts = {str(i): list(item.prompt) for i, item in enumerate(items)}
    lm = LanguageModel(model, IdTokenizer(prompts), Vocabulary.base(model.config.vocab_size))
    longest = max(len(item.prompt) + item.num_new for item in items)
    engine = Engine(lm, batch_size=8, cache=factory, max_length=longest)
    forward, free = engine.forward, []

    def watched(phase: PhaseName, **inputs: Any) -> Any:
        made = forward(phase, **inputs)
        free.append(torch.cuda.mem_get_info(DEVICE)[0])
        return made

    engine.forward = watched  # type: ignore[method-assign]
    requests = [
        Request(str(i), str(i), SamplingParams(temperature=0.0, max_new_tokens=item.num_new))
        for i, item in enumerate(items)
    ]
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(DEVICE)[0]
    start = perf_counter()
    made = sorted(engine.generate(requests), key=lambda c: int(c.request.prompt_id))
    spent = perf_counter() - start
    assert all(c.error is None for c in made), [c.error for c in made if c.error][:1]
    return {
        "ids": [c.ids for c in made],
        "used_peak_bytes": engine.stats.kv_peak.used_bytes,
        "committed_peak_bytes": engine.stats.kv_peak.committed_bytes,
        "committed_byte_s": engine.stats.kv_byte_s.committed,
        "device_peak_bytes": before - min(free),
        "wall_s": spent,
    }


def trace(model: PreTrainedModel, name: str, items: list[Item]) -> dict[str, Any]:
    """Every cache on one trace; the tokens have to be the same."""
    found = {
        cache: held(model, items, factory)
        for cache, factory in FACTORIES.items()
        if "no look-ahead" not in cache
    }
    ids = [each.pop("ids") for each in found.values()]
    assert all(each == ids[0] for each in ids), "a cache changed a token"
    ratios = {
        f"{key}_over_{rival}": found[OWN][key] / found[rival][key]
        for key in ("committed_peak_bytes", "device_peak_bytes", "committed_byte_s")
        for rival in (STATIC, DYNAMIC)
    }
    lengths = [len(item.prompt) + item.num_new for item in items]
    return {
        "workload": name,
        "mean_length": statistics.mean(lengths),
        "longest": max(lengths),
        "static_used_share": found[STATIC]["used_peak_bytes"]
        / found[STATIC]["committed_peak_bytes"],
        "caches": found,
        **ratios,
    }


def page_costs(repeats: int) -> dict[str, Any]:
    """Microseconds of a page of 2 MiB: from the driver, from the pool, and back."""
    found: dict[str, list[float]] = {}
    for pool, name in ((0, "driver"), (2 * GIB, "pool")):
        arena = new_arena(Settings(pool_bytes=pool), DEVICE)
        reservation = arena.reserve(4 * GIB)
        pages = GIB // arena.page_bytes
        places = Spans(
            reservation.address + np.arange(pages) * 2 * arena.page_bytes,
            np.full(pages, arena.page_bytes),
        )
        for i in range(repeats + 1):
            start = perf_counter()
            arena.commit(places)
            middle = perf_counter()
            arena.release(places)
            end = perf_counter()
            if i:
                found.setdefault(f"commit from the {name}", []).append((middle - start) / pages)
                found.setdefault(f"release to the {name}", []).append((end - middle) / pages)
        arena.close()
    return {name: median_and_spread([t * 1e6 for t in times]) for name, times in found.items()}


def show_pages(found: dict[str, Any], console: Console) -> None:
    for name, cost in found.items():
        spread = f"{cost['min']:.1f}-{cost['max']:.1f}"
        console.print(f"{name}: {cost['median']:.1f} us a page ({spread})")


def show_decode(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="decode: median step, and how many times faster vattention is than …")
    for heading in ("rows x context", *FACTORIES, TRANSFORMERS, DYNAMIC, STATIC):
        table.add_column(heading, justify="right")
    for row in rows:
        over = [row["over"][n] for n in (TRANSFORMERS, DYNAMIC, STATIC)]
        ratios = (f"{each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})" for each in over)
        steps = (f"{row['step_s'][n]['median'] * 1e3:.2f} ms" for n in FACTORIES)
        table.add_row(f"{row['rows']} x {row['context']}", *steps, *ratios)
    console.print(table)


def show_traces(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="memory at the peak, vattention over …")
    for heading in ("trace", "mean", "longest", "used of static", "committed / static",
                    "committed / dynamic", "device / static", "device / dynamic"):  # fmt: skip
        table.add_column(heading, justify="right")
    kinds = [(k, r) for k in ("committed", "device") for r in (STATIC, DYNAMIC)]
    for row in rows:
        table.add_row(
            row["workload"],
            f"{row['mean_length']:.0f}",
            str(row["longest"]),
            f"{row['static_used_share']:.2f}",
            *(f"{row[f'{kind}_peak_bytes_over_{rival}']:.2f}" for kind, rival in kinds),
        )
    console.print(table)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--layers", type=int, default=16)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--requests", type=int, default=24)
    chosen = options.parse_args()
    torch.manual_seed(0)
    console = Console(width=150)
    pages = page_costs(chosen.repeats)
    show_pages(pages, console)
    model = dense_model("llama-3-8b", torch.bfloat16, DEVICE, layers=chosen.layers)
    model.config.max_position_embeddings = 32768
    many = chosen.requests
    traces = [
        ("ragged, prompts 64-1,100", items_between(many, (64, 1100), (16, 160), 1)),
        ("ragged, prompts 500-4,000", items_between(many, (500, 4000), (16, 160), 2)),
        ("ragged, prompts 2,000-16,000", items_between(many, (2000, 16000), (16, 160), 3)),
    ]
    memory = [trace(model, name, items) for name, items in traces]
    show_traces(memory, console)
    speed = [decode_speed(model, *size, chosen.repeats) for size in SIZES]
    show_decode(speed, console)
    found = {"page_us": pages, "traces": memory, "decode": speed, "settings": vars(chosen)}
    print(json.dumps({"benchmark": "kv_cuda", "machine": describe(), **found}))


if __name__ == "__main__":
    main()
