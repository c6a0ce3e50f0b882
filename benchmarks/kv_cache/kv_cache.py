"""KV memory and decode speed of the caches, in one run.

    python -m benchmarks.kv_cache.kv_cache [--quick]

Prints tables, and as its last line JSON. What has to hold exactly is asserted on the way: pages
without a reason, bytes that stay, outputs that change end the run. Speed ratios above 1 are in
favour of vattention, memory ratios below 1.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kv_cache import kv_memory
from benchmarks.kv_cache.kv_decode import RUNNERS, decode_speed, small_llama
from benchmarks.kv_cache.kv_pool import pools
from benchmarks.machine import describe

MIB, GIB = 1 << 20, 1 << 30


def measure(quick: bool) -> dict[str, Any]:
    repeats = 3 if quick else 7
    small = small_llama(256, 4, 2, torch.float32)
    large = small_llama(512, 8, 8, torch.float32)
    count = 16 if quick else 48
    between = kv_memory.items_between
    traces = [
        ("ragged, prompts 64-1,100", between(count, (64, 1100), (16, 160), 1)),
        ("ragged, prompts 500-2,000", between(count, (500, 2000), (16, 160), 2)),
        ("uniform, 32 in, 32 out", between(2 * count, (32, 32), (32, 32), 3)),
    ]
    found: dict[str, Any] = {
        "decode": [decode_speed(rows, context, repeats) for rows, context in ((4, 1536), (1, 64))],
        "traces": [kv_memory.peaks(small, name, items, 8) for name, items in traces],
        "tightness": kv_memory.tightness(small),
        "release": kv_memory.release(large, repeats),
        "churn": kv_memory.churn(small),
        "over_reserve": kv_memory.over_reserve(small),
        "largest_batch": kv_memory.largest_batches(
            small_llama(512, 8, 8, torch.bfloat16), 2 * GIB, 8192, seed=1
        ),
        "shared_prompts": kv_memory.shared_prompts(large, 8, 1024, 1 if quick else 3),
    }
    return found | {"pools": pools()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="shorter traces, fewer rounds")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    found = measure(chosen.quick)
    console = Console(width=110)
    for row in found["decode"]:
        console.print(decode_table(row))
    console.print(traces_table(found["traces"]))
    console.print(facts_table(found))
    print(json.dumps({"machine": describe(), **found}))


def decode_table(row: dict[str, Any]) -> Table:
    title = (
        f"Decode steps, {row['rows']} rows at {row['context']} tokens, fp32 (limit: over empty 1)"
    )
    table = Table(title=title)
    for name in ("cache", "step", "over transformers'", "over torch.empty", "p99 / p50"):
        table.add_column(name, justify="left" if name == "cache" else "right")
    for name in RUNNERS:
        table.add_row(
            name,
            f"{row['step_s'][name]['median'] * 1e3:.1f} ms",
            _ratio(row["over_dynamic"][name]),
            _ratio(row["over_empty"][name]),
            f"{row['p99_over_p50'][name]:.2f}",
        )
    return table


def traces_table(traces: list[dict[str, Any]]) -> Table:
    table = Table(title="KV memory of the engine, batch 8 (limit: committed / used 1)")
    names = ["workload", "cache", "used peak", "committed peak", "committed / used over time"]
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for trace in traces:
        for cache, row in trace["caches"].items():
            table.add_row(
                trace["workload"],
                cache,
                f"{row['used_peak_bytes'] / MIB:.1f} MiB",
                f"{row['committed_peak_bytes'] / MIB:.1f} MiB",
                f"{row['committed_over_used']:.2f}",
            )
        table.add_section()
    return table


def facts_table(found: dict[str, Any]) -> Table:
    table = Table(title="What else was measured")
    table.add_column("question")
    table.add_column("answer")
    table.add_column("goal, limit or rival")
    for question, answer, goal in [*_memory_facts(found), *_pool_facts(found["pools"])]:
        table.add_row(question, answer, goal)
    return table


def _memory_facts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    tight, freed, shared = found["tightness"], found["release"], found["shared_prompts"]
    batch, churn, space = found["largest_batch"], found["churn"], found["over_reserve"]
    cost = freed["release_s_per_gib"]
    rows = [
        (f"peak over static, {t['workload']}", f"{t['peak_over_static']:.3f}",
         f"at most {t['static_used_share'] + 0.05:.3f}; limit {t['static_used_share']:.3f}")
        for t in found["traces"]
    ]  # fmt: skip
    rows += [
        (f"peak over dynamic, {t['workload']}", f"{t['peak_over_dynamic']:.3f}", "at most 1")
        for t in found["traces"]
    ]
    return [
        *rows,
        ("committed over used, one sequence from 1,024 tokens", f"{tight['worst_from_1024']:.3f}",
         "at most 1.05; limit 1"),
        ("resident when release returns", f"{freed['resident_after_bytes']} bytes", "0"),
        ("time to release 1 GiB", ", ".join(f"{n} {_ms(v)}" for n, v in cost.items()), ""),
        ("kept with deferred reclaim", f"{freed['deferred_kept_bytes'] / MIB:.1f} MiB",
         f"at most {freed['deferred_bound_bytes'] / MIB:.0f} MiB"),
        (f"growth over {churn['requests']:,} requests",
         f"{churn['mappings_grown']} mappings, {churn['process_rss_grown_bytes']:,} bytes", "0"),
        ("reserved", f"{space['reserved_bytes'] / space['memory_bytes']:.1f} x memory", "10 x"),
        (f"sequences within {batch['budget_bytes'] / GIB:.0f} GiB, up to "
         f"{batch['longest_allowed']:,} tokens, mean {batch['mean_length']:.0f}",
         f"vattention {batch['vattention']}",
         f"dynamic {batch['dynamic']}, static {batch['static']}"),
        (f"{shared['seeds']} seeds share a prompt of {shared['prompt_tokens']:,}: prefill time",
         _ratio(shared["prefill_s_ratio"]), f"limit {shared['limit']:.3f}"),
        ("the same: tokens prefilled", f"{shared['prefilled_tokens_ratio']:.3f}",
         f"limit {shared['limit']:.3f}"),
        ("the same: peak KV memory", f"{shared['kv_peak_ratio']:.3f}",
         f"limit {shared['limit']:.3f}"),
    ]  # fmt: skip


def _pool_facts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name in ("default pool", "hand-sized pool"):
        rival = found[name]
        if "failed" in rival:
            rows.append((f"against continuous batching, {name}", "not measured", rival["failed"]))
            continue
        size = f"its pool: {rival['pool_bytes'] / MIB:,.0f} MiB"
        rows.append(
            (
                f"KV bytes x time over continuous batching, {name}",
                f"{rival['byte_s_ratio']:.4f}",
                size,
            )
        )
        rows.append((f"mean KV bytes, {name}", f"{rival['mean_bytes_ratio']:.4f}", size))
    return rows


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} ({value['min']:.3f}-{value['max']:.3f})"


def _ms(value: dict[str, float]) -> str:
    return f"{value['median'] * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
