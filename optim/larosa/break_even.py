"""Up to how many rows the sparse kernel beats a dense product: measured once, then a rule.

Workers never decide by timing: what is measured here is written to the artifact, whose fingerprint
is part of every configuration that uses it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from optim.larosa.kernels.choice import kernels_for
from optim.larosa.manifest import BreakEven

ROWS = (1, 2, 4, 8)
ROUNDS = 7
PROMPT_TOKENS = 64
PAYS = 1.25
"""A row-major copy is kept where it makes prompts this many times faster."""


def default_max_rows(sparsity: float) -> int:
    """The rule where nothing was measured: one row, where enough is skipped to pay for choosing."""
    return 1 if sparsity >= 0.2 else 0


def max_rows(table: Sequence[BreakEven], device: str, dtype: str, sparsity: float) -> RowRule:
    """The rule for a device, dtype and sparsity: by shape, the nearest measured sparsity below."""
    found: dict[tuple[int, int], BreakEven] = {}
    for entry in table:
        if (entry.device, entry.dtype) != (device, dtype) or entry.sparsity > sparsity + 1e-9:
            continue
        best = found.get((entry.inputs, entry.outputs))
        if best is None or entry.sparsity > best.sparsity:
            found[entry.inputs, entry.outputs] = entry

    def rule(inputs: int, outputs: int) -> int:
        entry = found.get((inputs, outputs))
        return default_max_rows(sparsity) if entry is None else entry.max_rows

    return rule


RowRule = Callable[[int, int], int]


def measure(
    shapes: Iterable[tuple[int, int]],
    sparsities: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[BreakEven]:
    """Time both ways at each shape [inputs, outputs], sparsity and number of rows, interleaved."""
    kernels = kernels_for(device)
    table = []
    for inputs, outputs in sorted(set(shapes)):
        on_stage(f"timing {inputs} x {outputs}")
        wt_DN = _random(inputs, outputs, dtype, device)
        for sparsity in sparsities:
            most = 0
            for rows in ROWS:
                x_BD = kernels.select(
                    _random(rows, inputs, dtype, device), round((1 - sparsity) * inputs), None
                )
                sparse, dense = _medians(
                    [
                        lambda x=x_BD, w=wt_DN: kernels.sparse_linear(x, w, None),  # type: ignore[misc]
                        lambda x=x_BD, w=wt_DN: x @ w,  # type: ignore[misc]
                    ],
                    device,
                )
                if sparse > dense:
                    break
                most = rows
            table.append(
                BreakEven(
                    device=device.type,
                    dtype=str(dtype).removeprefix("torch."),
                    inputs=inputs,
                    outputs=outputs,
                    sparsity=sparsity,
                    max_rows=most,
                )
            )
    return table


def row_major_pays(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether prompts are that much faster on a row-major copy of the weights."""
    wt_DN = _random(*shape, dtype, device)
    w_ND = wt_DN.T.contiguous()
    x_TD = _random(PROMPT_TOKENS, shape[0], dtype, device)
    copied, own = _medians(
        [lambda: torch.nn.functional.linear(x_TD, w_ND), lambda: x_TD @ wt_DN], device
    )
    return own > PAYS * copied


def _medians(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Median seconds of each call, over interleaved rounds after one to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 1):
        for call, own in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                own.append(perf_counter() - start)
    return [statistics.median(own) for own in times]


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + columns)
    return torch.randn(rows, columns, generator=generator).to(device, dtype)
