"""LaRoSA's CUDA kernels against dense products: `python -m benchmarks.sparsity.sparse_gemv_cuda`.

Prints tables, and as its last line JSON. What is timed is a CUDA graph of many products in a row,
each with other weights, so that launches cost what they do in a graph of a model's step and no
weights are left in the cache from the last time. A ratio above 1 / (1 - sparsity) is more than
reading less can bring: there the rival is slow. So the kernel's own product without a zero is a
rival too. Inputs are normal; choosing among those of another distribution takes a few counts more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import describe, median_and_spread
from optim.larosa.kernels import cuda

SHAPES = {
    (2048, 8192): "Llama-3.2-1B gate, up",
    (8192, 2048): "Llama-3.2-1B down",
    (4096, 1024): "Llama-3-8B k, v",
    (4096, 4096): "Llama-3-8B q, o",
    (4096, 14336): "Llama-3-8B gate, up",
    (14336, 4096): "Llama-3-8B down",
    (4096, 11008): "Llama-2-7B gate, up",
    (11008, 4096): "Llama-2-7B down",
}
SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.75)
BATCH_SHAPE, BATCHES, BATCH_SPARSITIES = (4096, 14336), (1, 2, 4, 8), (0.4, 0.5, 0.75)
COLD_BYTES = 512 << 20
LINEAR, MATMUL = "F.linear, [out, in]", "x @ wt, [in, out]"
Call = Callable[[int], object]
"""One product, with the weights of that number."""


class Weights:
    """Copies of a matrix in both layouts, far more than the cache holds."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        self.num_bytes = inputs * outputs * dtype.itemsize
        self.count = max(4, -(-COLD_BYTES // self.num_bytes))
        size = (inputs, outputs)
        self.wt_DN = [torch.randn(size, device="cuda", dtype=dtype) for _ in range(self.count)]
        self.w_ND = [wt_DN.T.contiguous() for wt_DN in self.wt_DN]


class Timed:
    """A call over all copies of the weights, captured once."""

    def __init__(self, call: Call, count: int) -> None:
        self.count = count
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(0)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for copy in range(count):
                call(copy)

    def seconds(self) -> float:
        """Of one call."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / self.count


@torch.inference_mode()
def times(calls: dict[Any, Call], count: int, repeats: int) -> dict[Any, list[float]]:
    """Seconds of each call in rounds that begin with another one each, after two to warm up."""
    timed = {name: Timed(call, count) for name, call in calls.items()}
    names = list(calls)
    found: dict[Any, list[float]] = {name: [] for name in names}
    for i in range(repeats + 2):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent = timed[name].seconds()
            if i >= 2:
                found[name].append(spent)
    return found


def calls_of(weights: Weights, x_BD: Tensor, sparsities: tuple[float, ...]) -> dict[Any, Call]:
    """Dense products, the kernel alone at each sparsity, and with the selection before it."""
    calls: dict[Any, Call] = {
        LINEAR: lambda copy: F.linear(x_BD, weights.w_ND[copy]),
        MATMUL: lambda copy: x_BD @ weights.wt_DN[copy],
    }
    for s in sparsities:
        k = round((1 - s) * x_BD.shape[-1])
        kept_BD = cuda.select(x_BD, k)
        calls["kernel", s] = lambda copy, kept_BD=kept_BD: cuda.sparse_linear(
            kept_BD, weights.wt_DN[copy]
        )
        calls["whole", s] = lambda copy, k=k: cuda.sparse_linear(
            cuda.select(x_BD, k), weights.wt_DN[copy]
        )
    return calls


def over(rival: list[float], own: list[float]) -> dict[str, float]:
    return median_and_spread([a / b for a, b in zip(rival, own, strict=True)])


def speed(inputs: int, outputs: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One row at every sparsity."""
    weights = Weights(inputs, outputs, dtype)
    x_BD = torch.randn(1, inputs, device="cuda", dtype=dtype)
    found = times(calls_of(weights, x_BD, SPARSITIES), weights.count, repeats)
    dense = [min(pair) for pair in zip(found[LINEAR], found[MATMUL], strict=True)]
    rates = {
        name: weights.num_bytes / statistics.median(found[name]) / 1e9 for name in (LINEAR, MATMUL)
    }
    rows = {}
    for s in SPARSITIES:
        kernel, whole = found["kernel", s], found["whole", s]
        share = round((1 - s) * inputs) / inputs
        rows[s] = {
            "limit": 1 / share,
            "kernel_s": statistics.median(kernel),
            "select_s": statistics.median(whole) - statistics.median(kernel),
            "kernel_over_dense": over(dense, kernel),
            "over_dense": over(dense, whole),
            "kernel_over_own": over(found["kernel", 0.0], kernel),
            "gb_per_s": share * weights.num_bytes / statistics.median(kernel) / 1e9,
        }
    return {
        "inputs": inputs,
        "outputs": outputs,
        "dense_gb_per_s": rates,
        "relative_error": relative_error(weights.wt_DN[0], x_BD),
        "sparsities": rows,
    }


def relative_error(wt_DN: Tensor, x_BD: Tensor) -> float:
    """Of half of the inputs, against float64."""
    kept_BD = cuda.select(x_BD, x_BD.shape[-1] // 2)
    expected_BN = kept_BD.double() @ wt_DN.double()
    made_BN = cuda.sparse_linear(kept_BD, wt_DN).double()
    return float((made_BN - expected_BN).norm() / expected_BN.norm())


def batches(inputs: int, outputs: int, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Several rows, each with a mask of its own: what is read is the union."""
    weights = Weights(inputs, outputs, dtype)
    rows = []
    for batch in BATCHES:
        x_BD = torch.randn(batch, inputs, device="cuda", dtype=dtype)
        found = times(calls_of(weights, x_BD, BATCH_SPARSITIES), weights.count, repeats)
        dense = [min(pair) for pair in zip(found[LINEAR], found[MATMUL], strict=True)]
        for s in BATCH_SPARSITIES:
            kept_BD = cuda.select(x_BD, round((1 - s) * inputs))
            union = float((kept_BD != 0).any(0).float().mean())
            row = {"batch": batch, "sparsity": s, "union": union, "limit": 1 / union}
            rows.append(row | {"over_dense": over(dense, found["whole", s])})
    return rows


def copied_gb_per_s() -> float:
    """What a copy of a GiB reads and writes in a second; reading alone can be faster."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    timed = Timed(lambda copy: target.copy_(source), 4)
    spent = statistics.median(timed.seconds() for _ in range(5))
    return 2 * source.nbytes / spent / 1e9


def speed_table(shapes: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=f"{title}: one row of x, median (least-largest)")
    for name in ("inputs x outputs", "zeros", "limit", "kernel", "with selection",
                 "over own dense", "selection", "dense GB/s", "GB/s", "error"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for shape in shapes:
        dense = " / ".join(f"{rate:.0f}" for rate in shape["dense_gb_per_s"].values())
        for s, row in shape["sparsities"].items():
            ratio = row["over_dense"]
            table.add_row(
                f"{shape['inputs']} x {shape['outputs']}",
                f"{s:.0%}",
                f"{row['limit']:.2f}",
                f"{row['kernel_over_dense']['median']:.2f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                f"{row['kernel_over_own']['median']:.2f}",
                f"{row['select_s'] * 1e6:.1f} us",
                dense,
                f"{row['gb_per_s']:.0f}",
                f"{shape['relative_error']:.1e}",
            )
    return table


def batch_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{BATCH_SHAPE[0]} x {BATCH_SHAPE[1]}, several rows, with selection")
    for name in ("rows", "zeros", "read", "limit", "over torch's better layout"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = row["over_dense"]
        table.add_row(
            str(row["batch"]),
            f"{row['sparsity']:.0%}",
            f"{row['union']:.1%}",
            f"{row['limit']:.2f}",
            f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
        )
    return table


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options.add_argument("--repeats", type=int, default=15)
    chosen = options.parse_args()
    dtype = getattr(torch, chosen.dtype)
    torch.manual_seed(0)
    machine = describe() | {"dtype": chosen.dtype, "copied_gb_per_s": copied_gb_per_s()}
    shapes = [speed(*shape, dtype, chosen.repeats) for shape in SHAPES]
    found = {"shapes": shapes, "batches": batches(*BATCH_SHAPE, dtype, chosen.repeats)}
    console = Console(width=150)
    console.print(speed_table(shapes, f"{machine['gpu']}, {chosen.dtype}"))
    console.print(batch_table(found["batches"]))
    console.print(f"a copy reads and writes {machine['copied_gb_per_s']:.0f} GB/s")
    print(json.dumps({"benchmark": "sparse_gemv_cuda", "machine": machine, **found}))


if __name__ == "__main__":
    main()
