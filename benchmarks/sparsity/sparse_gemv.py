"""The CPU kernel that skips weights against dense products.

    python -m benchmarks.sparsity.sparse_gemv

Prints tables, and as its last line JSON. Weights come cold from memory: every call takes the next
of several copies. A ratio above 1 / (1 - sparsity) is more than reading less can bring: there the
rival is slow, and the ratio proves nothing. So there is a third rival, the kernel's own product
without a zero, and a goal is met against the best of the three.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.sparsity.sparse_speed import SPARSITIES, batches, speed
from optim.larosa.kernels import cpu

SHAPES = {
    (2048, 2048): "Llama-3.2-1B q, o",
    (2048, 512): "Llama-3.2-1B k, v",
    (2048, 8192): "Llama-3.2-1B gate, up",
    (8192, 2048): "Llama-3.2-1B down",
    (2560, 2560): "Phi-2 q, k, v, o",
    (2560, 10240): "Phi-2 fc1",
    (10240, 2560): "Phi-2 fc2",
    (4096, 4096): "Llama-2-7B q, k, v, o; Llama-3-8B q, o",
    (4096, 11008): "Llama-2-7B gate, up",
    (11008, 4096): "Llama-2-7B down",
    (4096, 1024): "Llama-3-8B k, v",
    (4096, 14336): "Llama-3-8B gate, up",
    (14336, 4096): "Llama-3-8B down",
}
QUICK_SHAPES = [(2048, 8192), (4096, 11008), (11008, 4096)]
BATCH_SHAPE = (4096, 4096)
GOAL_SHAPE, GOALS = (4096, 11008), {0.4: 1.4, 0.5: 1.7, 0.75: 3.3}
SHARE_OF_LIMIT = 0.9


def verdict(value: float, limit: float, goal: float) -> str:
    if value > limit:
        return "above the limit: not counted"
    return "met" if value >= goal else "missed"


def goals(shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The project's goals, which are for float32 and one shape."""
    rows = []
    for s, goal in GOALS.items():
        found = shape["sparsities"][s]
        limit = found["limit"]
        for name, key, wanted in [
            ("with selection, over torch's best", "over_dense", goal),
            ("with selection, over the best of three", "over_best", goal),
            ("kernel, over its own dense product", "kernel_over_own", SHARE_OF_LIMIT * limit),
        ]:
            value = found[key]["median"]
            rows.append(
                {
                    "sparsity": s,
                    "question": name,
                    "value": value,
                    "goal": wanted,
                    "limit": limit,
                    "verdict": verdict(value, limit, wanted),
                }
            )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="three shapes, fewer rounds")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    dtype, repeats = getattr(torch, chosen.dtype), 5 if chosen.quick else 11
    machine = describe() | {"variant": cpu.variant(), "dtype": chosen.dtype}
    shapes = [speed(*shape, dtype, repeats) for shape in (QUICK_SHAPES if chosen.quick else SHAPES)]
    found = {"shapes": shapes, "batches": batches(*BATCH_SHAPE, dtype, repeats)}
    if dtype == torch.float32:
        goal_shape = next(x for x in shapes if (x["inputs"], x["outputs"]) == GOAL_SHAPE)
        found["goals"] = goals(goal_shape)
    console = Console(width=140)
    title = f"{machine['processor']}, {machine['threads']} threads, {cpu.variant()}, {chosen.dtype}"
    console.print(speed_table(shapes, title))
    console.print(batch_table(found["batches"]))
    if "goals" in found:
        console.print(goal_table(found["goals"]))
    print(json.dumps({"machine": machine, **found}))


def speed_table(shapes: list[dict[str, Any]], title: str) -> Table:
    table = Table(
        title=f"{title}: one row of x, over torch's better layout, median (least-largest)"
    )
    for name in ("inputs x outputs", "zeros", "limit", "kernel", "with selection", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name in ("over own dense", "selection", "dense GB/s", "GB/s", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for shape in shapes:
        size = (shape["inputs"], shape["outputs"])
        labels = [f"{size[0]} x {size[1]}", *SHAPES[size].split("; ")] + [""] * len(SPARSITIES)
        dense = " / ".join(f"{speed:.1f}" for speed in shape["dense_gb_per_s"].values())
        for label, (s, row) in zip(labels, shape["sparsities"].items(), strict=False):
            is_above = row["kernel_over_dense"]["median"] > row["limit"]
            table.add_row(
                label,
                f"{s:.0%}",
                f"{row['limit']:.2f}",
                f"{row['kernel_over_dense']['median']:.2f}",
                _ratio(row["over_dense"]),
                "rival slow" if is_above else "",
                f"{row['kernel_over_own']['median']:.2f}",
                f"{row['selection_share']:.1%}",
                dense,
                f"{row['kernel_gb_per_s']:.1f}",
                f"{shape['relative_error']:.0e}",
            )
        table.add_section()
    return table


def batch_table(rows: list[dict[str, Any]]) -> Table:
    shape = " x ".join(str(size) for size in BATCH_SHAPE)
    table = Table(title=f"Several rows, each with its own mask, {shape}")
    for name in ("rows", "sparsity", "weights read", "over dense", "limit"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            f"{row['sparsity']:.0%}",
            f"{row['union']:.1%}",
            _ratio(row["over_dense"]),
            f"{row['limit']:.2f}",
        )
    return table


def goal_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Goals, {' x '.join(str(size) for size in GOAL_SHAPE)}")
    for name in ("sparsity", "question", "measured", "goal", "limit", "verdict"):
        table.add_column(name, justify="left" if name in ("question", "verdict") else "right")
    for row in rows:
        table.add_row(
            f"{row['sparsity']:.0%}",
            row["question"],
            f"{row['value']:.2f}",
            f"at least {row['goal']:.2f}",
            f"{row['limit']:.2f}",
            row["verdict"],
        )
    return table


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


if __name__ == "__main__":
    main()
