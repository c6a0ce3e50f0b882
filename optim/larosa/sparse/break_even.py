"""Up to how many rows the sparse kernel beats a dense product: measured once, then a rule.

Workers never decide by timing: what is measured here is written to the artifact, whose fingerprint
is part of every configuration that uses it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from optim.larosa.artifact import BreakEven
from optim.larosa.kernels.choice import Kernels, kernels_for

ROWS = (1, 2, 4, 8)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
"""Of a site's channels that are dropped; 0 is for the products between layers."""
ROUNDS = 7
GRAPH_CALLS = 16
"""Calls in a CUDA graph that is timed, at least: all copies of the weights have a turn in it."""
MOST_BYTES = 256 << 20
"""Weights that are cycled through, so that they come from memory as they do in a large model."""
PROMPT_TOKENS = 64
PAYS = 1.25
"""A row-major copy is kept where it makes prompts this many times faster."""

RowRule = Callable[[int, int, float], int]
"""(inputs, outputs, share of the inputs that is dropped) -> most rows for the sparse kernel."""


def default_max_rows(share: float) -> int:
    """The rule where nothing was measured: one row, where enough is skipped to pay for choosing."""
    return 1 if share >= 0.2 else 0


def place(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement holds for, as manifests have it: `cpu float32`."""
    return f"{device.type} {str(dtype).removeprefix('torch.')}"


def max_rows(table: Sequence[BreakEven], where: str) -> RowRule:
    """The rule of a place: by shape, at the nearest measured share below."""
    found: dict[tuple[int, int], list[BreakEven]] = {}
    for entry in table:
        if entry.place == where:
            found.setdefault((entry.inputs, entry.outputs), []).append(entry)

    def rule(inputs: int, outputs: int, share: float) -> int:
        entries = found.get((inputs, outputs))
        if not entries:
            return default_max_rows(share)
        below = [entry for entry in entries if entry.share <= share + 1e-9]
        return max(below, key=lambda entry: entry.share).max_rows if below else 0

    return rule


def measure(
    shapes: Iterable[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    model_bytes: int,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[BreakEven]:
    """Time both ways at each shape [inputs, outputs], share and number of rows, interleaved.

    On a GPU what is timed are CUDA graphs, as of a compiled step: kernels that are launched one by
    one by a program take what the launches take, whichever they are.

    `model_bytes` are those of all the weights: where they fit into a cache they are timed there.
    """
    kernels = kernels_for(device)
    where = place(device, dtype)
    table = []
    for inputs, outputs in sorted(set(shapes)):
        on_stage(f"timing {inputs} x {outputs}")
        weights = _Weights(inputs, outputs, dtype, device, model_bytes)
        for share in SHARES:
            most = _most_rows(kernels, weights, share)
            table.append(
                BreakEven(
                    place=where,
                    inputs=inputs,
                    outputs=outputs,
                    share=share,
                    max_rows=most,
                )
            )
    return table


class _Weights:
    """Equal weights at several places in memory, which take turns."""

    def __init__(
        self, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, model_bytes: int
    ) -> None:
        self.first_DN = _random(inputs, outputs, dtype, device)
        size = self.first_DN.numel() * self.first_DN.element_size()
        count = max(1, -(-min(model_bytes, MOST_BYTES) // size))
        self.count = count
        copies = [self.first_DN, *(self.first_DN.clone() for _ in range(count - 1))]
        self._turns = itertools.cycle(copies)

    def next(self) -> Tensor:
        return next(self._turns)


def _most_rows(kernels: Kernels, weights: _Weights, share: float) -> int:
    """The last of `ROWS` up to which the sparse kernel was faster."""
    inputs, dtype, device = (
        weights.first_DN.shape[0],
        weights.first_DN.dtype,
        weights.first_DN.device,
    )
    most = 0
    for rows in ROWS:
        x_BD = kernels.select(
            _random(rows, inputs, dtype, device), round((1 - share) * inputs), None
        )

        def sparse(x_BD: Tensor = x_BD) -> object:
            return kernels.sparse_linear(x_BD, weights.next(), None)

        def dense(x_BD: Tensor = x_BD) -> object:
            return x_BD @ weights.next()

        sparse_s, dense_s = _medians([sparse, dense], device, weights.count)
        if sparse_s > dense_s:
            break
        most = rows
    return most


def row_major_pays(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether prompts are that much faster on a row-major copy of the weights."""
    wt_DN = _random(*shape, dtype, device)
    w_ND = wt_DN.T.contiguous()
    x_TD = _random(PROMPT_TOKENS, shape[0], dtype, device)
    copied, own = _medians(
        [lambda: torch.nn.functional.linear(x_TD, w_ND), lambda: x_TD @ wt_DN], device
    )
    return own > PAYS * copied


def _medians(
    calls: Sequence[Callable[[], object]], device: torch.device, num_copies: int = 1
) -> list[float]:
    """Median seconds of each call, over interleaved rounds after one to warm up."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _rounds([_captured(call, max(GRAPH_CALLS, num_copies)) for call in calls])
    return _rounds([_by_clock(call) for call in calls])


def _rounds(timed: Sequence[Callable[[], float]]) -> list[float]:
    times: list[list[float]] = [[] for _ in timed]
    for number in range(ROUNDS + 1):
        for one, own in zip(timed, times, strict=True):
            spent = one()
            if number:
                own.append(spent)
    return [statistics.median(own) for own in times]


def _by_clock(call: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start = perf_counter()
        call()
        return perf_counter() - start

    return timed


def _captured(call: Callable[[], object], num_calls: int) -> Callable[[], float]:
    """The device's own time of a call, from a graph of several: a launch takes longer than one."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_calls):
            call()

    def timed() -> float:
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / num_calls

    return timed


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + columns)
    return torch.randn(rows, columns, generator=generator).to(device, dtype)
