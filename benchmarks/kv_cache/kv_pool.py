"""KV bytes over time beside transformers' continuous batching, whose pool is committed at once.

Each pool runs in a process of its own: at its default size it takes most of the machine's memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import subprocess
import sys
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from benchmarks.engine.ragged import serve
from benchmarks.kv_cache.kv_decode import small_llama
from benchmarks.kv_cache.kv_memory import FACTORIES, items_between, run_trace

BATCH, COUNT = 8, 24
PAGE_TOKENS = 256


def trace_model() -> PreTrainedModel:
    return small_llama(512, 6, 4, torch.float32)


def trace() -> list[Any]:
    return items_between(COUNT, (16, 1024), (16, 192), seed=7)


def hand_sized_blocks() -> int:
    """Just enough for as many of the longest sequences as run at once."""
    longest = max(len(item.prompt) + item.num_new for item in trace())
    return BATCH * math.ceil(longest / PAGE_TOKENS)


def pool_run(num_blocks: int | None) -> dict[str, Any]:
    """Pool bytes, resident bytes that it took, and the seconds that the trace ran."""
    model, items = trace_model(), trace()
    settings = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=num_blocks,
        max_batch_tokens=1024,
        max_requests_per_batch=BATCH,
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    process = psutil.Process()
    before = process.memory_info().rss
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=settings
    ) as manager:
        serve(manager, items[:1])  # warmed up, and the pool is there
        cache = manager.batch_processor.cache
        pool = cache.cache_tensor.nbytes
        wall_s = serve(manager, items)
        resident = process.memory_info().rss - before
    return {
        "pool_bytes": pool,
        "process_rss_grown_bytes": resident,
        "wall_s": wall_s,
        "committed_byte_s": pool * wall_s,
    }


def in_own_process(num_blocks: int | None) -> dict[str, Any]:
    """`pool_run` elsewhere; where that is killed for memory, it says so."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.kv_cache.kv_pool",
        "--blocks",
        str(num_blocks or 0),
    ]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def pools() -> dict[str, Any]:
    """Our arena against the pool at its default size and at one that was made to measure."""
    stats, wall_s = run_trace(trace_model(), trace(), BATCH, FACTORIES["vattention"])
    found: dict[str, Any] = {
        "batch_size": BATCH,
        "requests": COUNT,
        "vattention": {
            "committed_peak_bytes": stats.kv_peak.committed_bytes,
            "committed_byte_s": stats.kv_byte_s.committed,
            "wall_s": wall_s,
        },
    }
    for name, blocks in (("hand-sized pool", hand_sized_blocks()), ("default pool", None)):
        found[name] = rival = in_own_process(blocks)
        if "failed" not in rival:
            mine = found["vattention"]
            rival["byte_s_ratio"] = mine["committed_byte_s"] / rival["committed_byte_s"]
            rival["mean_bytes_ratio"] = (
                mine["committed_byte_s"] / mine["wall_s"] / rival["pool_bytes"]
            )
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--blocks", type=int, default=0, help="0 is the default size")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    print(json.dumps(pool_run(chosen.blocks or None)))


if __name__ == "__main__":
    main()
