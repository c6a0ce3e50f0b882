"""Weights by rows against weights by columns: `python -m benchmarks.engine.weight_order`.

Prints a table, and as its last line JSON: torch's product of a few float32 rows with a matrix that
lies in either order, cold from memory: every call takes the next of several copies. The ratio is
the time by rows over that by columns, so above 1 where columns are read faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import describe, median_and_spread
from benchmarks.sparsity.sparse_speed import cold_bytes

SHAPES = {
    (256, 256): "demo model: query, output",
    (256, 640): "demo model: gate, up",
    (640, 256): "demo model: down",
    (256, 4096): "demo model: head",
    (256, 8192): "demo model: head with a vocabulary twice as large",
    (576, 1536): "SmolLM2-135M: gate, up",
    (576, 49152): "SmolLM2-135M: head",
    (896, 4864): "Qwen2.5-0.5B: gate, up",
    (4864, 896): "Qwen2.5-0.5B: down",
    (2048, 2048): "Llama-3.2-1B: query, output",
    (2048, 8192): "Llama-3.2-1B: gate, up",
}
ROWS = (1, 2, 4, 8, 64)
"""The last as in a prompt."""
CALLS = 200


def timed(x_BD: Tensor, weights: list[Tensor]) -> float:
    """Seconds of a product."""
    count = max(len(weights), min(CALLS, (1 << 30) // weights[0].nbytes))
    start = perf_counter()
    for call in range(count):
        F.linear(x_BD, weights[call % len(weights)])
    return (perf_counter() - start) / count


@torch.inference_mode()
def speed(inputs: int, outputs: int, repeats: int) -> dict[str, Any]:
    copies = max(2, -(-cold_bytes() // (4 * inputs * outputs)))
    by_rows = [torch.randn(outputs, inputs) for _ in range(copies)]
    by_columns = [weight.t().contiguous().t() for weight in by_rows]
    found: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "rows": {}}
    for rows in ROWS:
        x_BD = torch.randn(rows, inputs)
        rounds = []
        for i in range(repeats + 1):
            orders = [("rows", by_rows), ("columns", by_columns)]
            times = {name: timed(x_BD, weights) for name, weights in orders[:: 1 if i % 2 else -1]}
            if i:
                rounds.append(times)
        found["rows"][rows] = {
            "ratio": median_and_spread([each["rows"] / each["columns"] for each in rounds]),
            "gb_per_s": {
                name: by_rows[0].nbytes / statistics.median(each[name] for each in rounds) / 1e9
                for name in ("rows", "columns")
            },
        }
    return found


def show(shapes: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    table = Table(
        title=f"{machine['processor']}, {machine['threads']} threads: time by rows over time by "
        "columns, median (least-largest); GB/s by rows and by columns"
    )
    table.add_column("inputs x outputs")
    for rows in ROWS:
        table.add_column(f"{rows} row{'s' if rows > 1 else ''}", justify="right")
    for shape in shapes:
        cells = []
        for each in shape["rows"].values():
            ratio, rates = each["ratio"], each["gb_per_s"]
            spread = f"({ratio['min']:.2f}-{ratio['max']:.2f})"
            speeds = f"{rates['rows']:.0f} / {rates['columns']:.0f}"
            cells.append(f"{ratio['median']:.2f} {spread}, {speeds}")
        label = SHAPES[shape["inputs"], shape["outputs"]]
        table.add_row(f"{shape['inputs']} x {shape['outputs']}\n{label}", *cells)
    Console(width=150).print(table)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    machine = describe()
    shapes = [speed(*shape, chosen.repeats) for shape in SHAPES]
    show(shapes, machine)
    print(json.dumps({"benchmark": "weight_order", "machine": machine, "shapes": shapes}))


if __name__ == "__main__":
    main()
