"""Engine speed against named rivals, in one run: `python -m benchmarks.engine.engine [--quick]`.

Prints tables, and as its last line JSON. Ratios above 1 mean that the engine is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.engine.ragged import (
    continuous_runner,
    engine_runner,
    ideal_ratio,
    static_runner,
    trace,
)
from benchmarks.engine.step import bare_step_s, engine_step_s
from benchmarks.machine import describe, median_and_spread

VOCABULARY = 32000


def random_llama(hidden: int, layers: int, intermediate: int) -> PreTrainedModel:
    """Random weights of a real shape; speed does not depend on their values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        intermediate_size=intermediate,
        max_position_embeddings=2048,
        eos_token_id=None,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.requires_grad_(False)
    return model


def throughput(batch_size: int, count: int, repeats: int) -> dict[str, Any]:
    """Tokens/s of the three ways on one trace, rivals interleaved, after a warm-up."""
    model = random_llama(hidden=512, layers=6, intermediate=1408)
    items = trace(count, VOCABULARY, seed=batch_size)
    runners = {
        "engine, dynamic": engine_runner(model, items, batch_size, "dynamic"),
        "engine, static": engine_runner(model, items, batch_size, "static"),
        "generate, static batches": static_runner(model, items, batch_size),
        "generate_batch (continuous)": continuous_runner(model, items, batch_size),
    }
    num_tokens = sum(item.num_new for item in items)
    # Warm every path up on a short piece of the trace.
    for runner in (
        engine_runner(model, items[:2], batch_size, "dynamic"),
        engine_runner(model, items[:2], batch_size, "static"),
        static_runner(model, items[:2], batch_size),
        continuous_runner(model, items[:2], batch_size),
    ):
        runner()
    rounds = [{name: num_tokens / run() for name, run in runners.items()} for _ in range(repeats)]
    speed = {name: median_and_spread([r[name] for r in rounds]) for name in runners}

    def ratios(cache: str, rival: str) -> list[float]:
        return [r[f"engine, {cache}"] / r[rival] for r in rounds]

    return {
        "batch_size": batch_size,
        "requests": count,
        "tokens": num_tokens,
        "tokens_per_s": speed,
        "ideal_over_static": ideal_ratio(items, batch_size),
        "engine": {
            cache: {
                "over_static": median_and_spread(ratios(cache, "generate, static batches")),
                "over_continuous": median_and_spread(ratios(cache, "generate_batch (continuous)")),
            }
            for cache in ("dynamic", "static")
        },
    }


def overhead(batch_size: int, repeats: int) -> dict[str, Any]:
    """Engine step over bare step: a model of about 100M parameters, vocabulary 32k."""
    model = random_llama(hidden=768, layers=9, intermediate=2048)
    bare_step_s(model, batch_size)
    rounds = []
    for _ in range(repeats):
        bare = bare_step_s(model, batch_size)
        rounds.append(
            {
                "bare_s": bare,
                "dynamic": engine_step_s(model, batch_size, "dynamic") / bare,
                "static": engine_step_s(model, batch_size, "static") / bare,
                "dynamic, ragged": engine_step_s(model, batch_size, "dynamic", True) / bare,
            }
        )
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "batch_size": batch_size,
        "parameters": parameters,
        "bare_step_s": median_and_spread([r["bare_s"] for r in rounds]),
        "weights_gb_per_s": parameters * 4 / statistics.median(r["bare_s"] for r in rounds) / 1e9,
        "engine_over_bare": {
            name: median_and_spread([r[name] for r in rounds])
            for name in ("dynamic", "static", "dynamic, ragged")
        },
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a smaller trace, fewer rounds")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    console = Console(width=110)
    steps = [overhead(b, 3 if chosen.quick else 7) for b in (1, 8)]
    show_steps(console, steps)
    size, repeats = (32, 1) if chosen.quick else (64, 3)
    speeds = [throughput(b, size, repeats) for b in (8, 16)]
    show_speeds(console, speeds)
    print(json.dumps({"machine": describe(), "steps": steps, "throughput": speeds}))


def show_steps(console: Console, steps: list[dict[str, Any]]) -> None:
    table = Table(title="Engine step over bare forward + argmax (goal: at most 1.08; limit: 1)")
    for name in ("batch", "bare step", "weights read", "dynamic", "static", "dynamic, ragged"):
        table.add_column(name, justify="right")
    for row in steps:
        ratios = row["engine_over_bare"]
        table.add_row(
            str(row["batch_size"]),
            f"{row['bare_step_s']['median'] * 1e3:.1f} ms",
            f"{row['weights_gb_per_s']:.1f} GB/s",
            *(_ratio(ratios[name]) for name in ("dynamic", "static", "dynamic, ragged")),
        )
    console.print(table)


def show_speeds(console: Console, speeds: list[dict[str, Any]]) -> None:
    table = Table(title="Ragged workload (prompts 16-512, outputs 8-256), completion tokens/s")
    names = ["batch", "cache", "engine", "generate", "continuous", "over generate", "ideal"]
    for name in [*names, "share of ideal", "over continuous"]:
        table.add_column(name, justify="right")
    for row in speeds:
        speed = {name: value["median"] for name, value in row["tokens_per_s"].items()}
        for cache, ratios in row["engine"].items():
            table.add_row(
                str(row["batch_size"]),
                cache,
                f"{speed[f'engine, {cache}']:.0f}",
                f"{speed['generate, static batches']:.0f}",
                f"{speed['generate_batch (continuous)']:.0f}",
                _ratio(ratios["over_static"]),
                f"{row['ideal_over_static']:.2f}",
                f"{ratios['over_static']['median'] / row['ideal_over_static']:.0%}",
                _ratio(ratios["over_continuous"]),
            )
    console.print(table)


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


if __name__ == "__main__":
    main()
