"""Seconds of dense and of sparse products whose weights come cold from memory."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import median_and_spread
from optim.larosa.kernels import cpu

SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.75)
BATCHES, BATCH_SPARSITIES = (1, 2, 4, 8), (0.4, 0.5, 0.75)
ROWS, COLUMNS = "F.linear, [out, in]", "x @ wt, [in, out]"
TURNS = 3
Call = Callable[[], tuple[float, ...]]


def cold_bytes() -> int:
    """So much weights that none is left in the cache when its turn comes again."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    found = re.fullmatch(r"(\d+)K", path.read_text().strip()) if path.exists() else None
    return max(256 << 20, 4 * int(found[1]) << 10 if found else 0)


class Weights:
    """Copies of a matrix in both layouts; every call of `next` is for another copy."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        self.num_bytes = inputs * outputs * dtype.itemsize
        count = max(2, -(-cold_bytes() // self.num_bytes))
        self.wt_DN = [torch.randn(inputs, outputs).to(dtype) for _ in range(count)]
        self.w_ND = [wt_DN.T.contiguous() for wt_DN in self.wt_DN]
        self._turn = 0

    def next(self) -> int:
        self._turn = (self._turn + 1) % len(self.wt_DN)
        return self._turn


def interleaved(calls: dict[Any, Call], repeats: int) -> dict[Any, list[tuple[float, ...]]]:
    """The quickest of each call's turns in every round, after a round of warm-up.

    Every round has the calls in turn, three times over, and begins with another one. The quickest
    is the one that no other process cut into; the same is done for each call.
    """
    names = list(calls)
    found: dict[Any, list[tuple[float, ...]]] = {name: [] for name in names}
    with torch.inference_mode():
        for i in range(repeats + 1):
            order = names[i % len(names) :] + names[: i % len(names)]
            turns = [{name: calls[name]() for name in order} for _ in range(TURNS)]
            if i:
                for name in names:
                    found[name].append(min((turn[name] for turn in turns), key=sum))
    return found


def dense_calls(weights: Weights, x_BD: Tensor) -> dict[Any, Call]:
    def rows() -> tuple[float, ...]:
        w_ND = weights.w_ND[weights.next()]
        start = perf_counter()
        F.linear(x_BD, w_ND)
        return (perf_counter() - start,)

    def columns() -> tuple[float, ...]:
        wt_DN = weights.wt_DN[weights.next()]
        start = perf_counter()
        torch.matmul(x_BD, wt_DN)
        return (perf_counter() - start,)

    return {ROWS: rows, COLUMNS: columns}


def sparse_call(weights: Weights, x_BD: Tensor, k: int) -> Call:
    """Seconds of the selection, and of the product."""
    used = int((cpu.select(x_BD, k) != 0).any(0).sum())

    def call() -> tuple[float, ...]:
        wt_DN = weights.wt_DN[weights.next()]
        start = perf_counter()
        h_BD = cpu.select(x_BD, k)
        middle = perf_counter()
        _, num_read = cpu.sparse_linear(h_BD, wt_DN)
        end = perf_counter()
        assert num_read == used
        return middle - start, end - middle

    return call


def better(found: dict[Any, list[tuple[float, ...]]]) -> list[float]:
    """Of each round torch's better layout."""
    return [min(a, b) for (a,), (b,) in zip(found[ROWS], found[COLUMNS], strict=True)]


def speed(inputs: int, outputs: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One row of x at every sparsity."""
    weights = Weights(inputs, outputs, dtype)
    x_BD = torch.randn(1, inputs).to(dtype)
    kept = {s: round((1 - s) * inputs) for s in SPARSITIES}
    for k in kept.values():
        assert int((cpu.select(x_BD, k) != 0).sum()) == k
    calls = dense_calls(weights, x_BD)
    calls |= {s: sparse_call(weights, x_BD, k) for s, k in kept.items()}
    found = interleaved(calls, repeats)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "dense_gb_per_s": {
            name: weights.num_bytes / statistics.median(t for (t,) in found[name]) / 1e9
            for name in (ROWS, COLUMNS)
        },
        "relative_error": relative_error(weights.wt_DN[0], cpu.select(x_BD, inputs // 2)),
        "sparsities": {
            s: ratios(found, s, kept[s] / inputs, weights.num_bytes) for s in SPARSITIES
        },
    }


def ratios(
    found: dict[Any, list[tuple[float, ...]]], s: float, share: float, num_bytes: int
) -> dict[str, Any]:
    """Ratios of each round's dense times to its sparse ones; `share` of the weights is read."""
    dense = better(found)
    own = [t for _, t in found[0.0]]
    selection, kernel = ([times[i] for times in found[s]] for i in (0, 1))
    whole = [a + b for a, b in zip(selection, kernel, strict=True)]
    best = [min(pair) for pair in zip(dense, own, strict=True)]

    def over(rival: list[float], ours: list[float]) -> dict[str, float]:
        return median_and_spread([a / b for a, b in zip(rival, ours, strict=True)])

    return {
        "limit": 1 / share,
        "kernel_over_dense": over(dense, kernel),
        "over_dense": over(dense, whole),
        "kernel_over_own": over(own, kernel),
        "over_best": over(best, whole),
        "selection_share": statistics.median(selection) / statistics.median(whole),
        "kernel_gb_per_s": share * num_bytes / statistics.median(kernel) / 1e9,
    }


def relative_error(wt_DN: Tensor, h_BD: Tensor) -> float:
    """Of the first 1,024 outputs, against float64."""
    wt_DN = wt_DN[:, :1024].contiguous()
    expected_BN = h_BD.double() @ wt_DN.double()
    y_BN, _ = cpu.sparse_linear(h_BD, wt_DN)
    return float((y_BN.double() - expected_BN).norm() / expected_BN.norm())


def batches(inputs: int, outputs: int, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Several rows, each with a mask of its own: what is read is the union."""
    weights = Weights(inputs, outputs, dtype)
    rows = []
    for batch in BATCHES:
        x_BD = torch.randn(batch, inputs).to(dtype)
        kept = {s: round((1 - s) * inputs) for s in BATCH_SPARSITIES}
        calls = dense_calls(weights, x_BD)
        calls |= {s: sparse_call(weights, x_BD, k) for s, k in kept.items()}
        found = interleaved(calls, repeats)
        dense = better(found)
        for s, k in kept.items():
            h_BD = cpu.select(x_BD, k)
            y_BN, num_read = cpu.sparse_linear(h_BD, weights.wt_DN[0])
            for row in range(batch):
                assert torch.equal(cpu.sparse_linear(h_BD[row], weights.wt_DN[0])[0], y_BN[row])
            union = num_read / inputs
            over = [a / sum(times) for a, times in zip(dense, found[s], strict=True)]
            rows.append(
                {
                    "batch": batch,
                    "sparsity": s,
                    "union": union,
                    "limit": 1 / union,
                    "over_dense": median_and_spread(over),
                }
            )
    return rows
