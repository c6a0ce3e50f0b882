"""The choice of a row's largest entries on a CUDA device, one program to a row.

The magnitudes' bits are ordered as the magnitudes are, so the k-th largest is found bit by bit: the
largest number that at least k of them reach. That is 15 or 31 counts over values that stay in
registers, where a sort would move them; and unlike a sort or a histogram with atomics it has one
result and takes one time, whatever the values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NAN_BITS = {torch.float32: 0x7F800001, torch.float16: 0x7C01, torch.bfloat16: 0x7F81}
"""One above infinity, for any NaN."""
_ABOVE_BLOCK = 1024


def keep_largest(
    x_BD: Tensor, k: int, score_D: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """`optim.larosa.kernels.reference.select`, of normalized rows where there is an `eps`.

    x [B, D] contiguous with B and D not zero, in a dtype of _NAN_BITS; `score_D` float32,
    contiguous.
    """
    num_rows, num_inputs = x_BD.shape
    block = triton.next_power_of_2(num_inputs)
    y_BD = torch.empty_like(x_BD)
    ranked = x_BD.dtype if score_D is None else torch.float32
    _keep_largest[(num_rows,)](
        x_BD,
        score_D,
        y_BD,
        num_inputs,
        k,
        0.0 if eps is None else eps,
        NORMALIZES=eps is not None,
        SELECTS=k < num_inputs,
        NUM_BITS=8 * ranked.itemsize - 1,
        NAN_BITS=_NAN_BITS[ranked],
        BLOCK_D=block,
        # 16 entries to a thread, until there are 1024 threads.
        num_warps=max(1, min(32, block // 512)),
    )
    return y_BD


def keep_above(x_BD: Tensor, threshold: float) -> Tensor:
    """`optim.larosa.kernels.reference.above`, for tensors as those of `keep_largest`."""
    num_rows, num_inputs = x_BD.shape
    y_BD = torch.empty_like(x_BD)
    _keep_above[(triton.cdiv(num_inputs, _ABOVE_BLOCK), num_rows)](
        x_BD, y_BD, num_inputs, threshold, BLOCK_D=_ABOVE_BLOCK, num_warps=4
    )
    return y_BD


@triton.jit
def _is_largest(x_D, k, NUM_BITS: tl.constexpr, NAN_BITS: tl.constexpr):
    """Whether an entry is one of the k of largest magnitude; of equal ones the first come first.

    Zeros at the end, those beyond the row, come last of all and are kept only if nothing is left.
    """
    if NUM_BITS == 31:
        bits_D = x_D.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        bits_D = x_D.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    bits_D = tl.minimum(bits_D, NAN_BITS)

    kth = tl.zeros((), tl.int32)
    for bit in tl.static_range(NUM_BITS):
        candidate = kth + (1 << (NUM_BITS - 1 - bit))
        count = tl.sum((bits_D >= candidate).to(tl.int32), axis=0)
        kth = tl.where(count >= k, candidate, kth)

    is_larger_D = bits_D > kth
    is_equal_D = bits_D == kth
    wanted = k - tl.sum(is_larger_D.to(tl.int32), axis=0)
    rank_D = tl.cumsum(is_equal_D.to(tl.int32), axis=0)
    return is_larger_D | (is_equal_D & (rank_D <= wanted))


@triton.jit(do_not_specialize=["k"])
def _keep_largest(
    x_BD,
    score_D,
    y_BD,
    num_inputs,
    k,
    eps,
    NORMALIZES: tl.constexpr,
    SELECTS: tl.constexpr,
    NUM_BITS: tl.constexpr,
    NAN_BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    inputs_D = tl.arange(0, BLOCK_D)
    is_input_D = inputs_D < num_inputs
    row = tl.program_id(0).to(tl.int64) * num_inputs
    x_D = tl.load(x_BD + row + inputs_D, mask=is_input_D, other=0.0)
    if NORMALIZES:
        wide_D = x_D.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide_D * wide_D, axis=0) / num_inputs + eps)
        x_D = (wide_D * scale).to(x_D.dtype)
    if SELECTS:
        ranked_D = x_D
        if score_D is not None:
            own_score_D = tl.load(score_D + inputs_D, mask=is_input_D, other=0.0)
            ranked_D = x_D.to(tl.float32) * own_score_D
        x_D = tl.where(_is_largest(ranked_D, k, NUM_BITS, NAN_BITS), x_D, 0.0)
    tl.store(y_BD + row + inputs_D, x_D, mask=is_input_D)


@triton.jit
def _keep_above(x_BD, y_BD, num_inputs, threshold, BLOCK_D: tl.constexpr):
    inputs_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_input_D = inputs_D < num_inputs
    row = tl.program_id(1).to(tl.int64) * num_inputs
    x_D = tl.load(x_BD + row + inputs_D, mask=is_input_D, other=0.0)
    x_D = tl.where(tl.abs(x_D.to(tl.float32)) <= threshold, 0.0, x_D)
    tl.store(y_BD + row + inputs_D, x_D, mask=is_input_D)
