"""The choice of a row's largest entries on a CUDA device, one program to a row.

The magnitudes' bits are ordered as the magnitudes are, so the k-th largest is found by counting how
many entries reach a number, over values that stay in registers, where a sort would move them; and
unlike a histogram with atomics a count has one result. Each count makes the program's threads wait
for one another, which costs more than the comparisons do. So it does not go bit by bit, which takes
15 or 31 counts: it begins where the k-th largest of a normal distribution with the row's mean
magnitude would be, brackets it, and goes on by interpolation. Every third count inside the bracket
halves it, so that no row takes more than some hundred.
"""

from __future__ import annotations

import functools
import math
import statistics

import torch
import triton
import triton.language as tl
from torch import Tensor

_NAN_BITS = {torch.float32: 0x7F800001, torch.float16: 0x7C01, torch.bfloat16: 0x7F81}
"""One above infinity, for any NaN."""
_MANTISSA = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
_ABOVE_BLOCK = 1024


@functools.cache
def _first_guess(k: int, num_inputs: int, mantissa: int) -> tuple[float, float]:
    """Where the search begins: as if the entries were normal and had no mean.

    The k-th largest magnitude over the mean magnitude, and by how much a number's bits have to grow
    there for one entry fewer to reach it.
    """
    normal = statistics.NormalDist()
    share = min(max(k / num_inputs, 0.5 / num_inputs), 1 - 0.5 / num_inputs)
    deviations = normal.inv_cdf(1 - share / 2)
    per_octave = num_inputs * 2 * normal.pdf(deviations) * deviations * math.log(2)
    return deviations / math.sqrt(2 / math.pi), 2**mantissa / max(per_octave, 1.0)


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
    over_mean, bits_per_entry = _first_guess(k, num_inputs, _MANTISSA[ranked])
    _keep_largest[(num_rows,)](
        x_BD,
        score_D,
        y_BD,
        num_inputs,
        k,
        0.0 if eps is None else eps,
        over_mean,
        bits_per_entry,
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
def _bits(x, NUM_BITS: tl.constexpr):
    """The bits of magnitudes, as int32."""
    if NUM_BITS == 31:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    return bits


@triton.jit
def _kth(bits_D, first, k, bits_per_entry, NAN_BITS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(low, high, entries from low on, entries from high on): the k-th largest is in [low, high).

    Either low is the k-th itself and high is one above, or both are a number that exactly k reach.
    """
    low, from_low = tl.full((), 0, tl.int32), tl.full((), BLOCK_D, tl.int32)
    high, from_high = tl.full((), NAN_BITS + 1, tl.int32), tl.full((), 0, tl.int32)
    middle = tl.minimum(tl.maximum(first, 1), NAN_BITS)
    step, turn = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    while high - low > 1:
        count = tl.sum((bits_D >= middle).to(tl.int32), axis=0)
        is_low = count >= k
        # Until both ends are known: from what was counted, and then in steps that grow.
        missed = tl.abs(count - k).to(tl.float32) * bits_per_entry * 1.25
        step = tl.maximum(tl.minimum(missed, 1.0e8).to(tl.int32) + 1, tl.minimum(step, 1 << 26) * 4)
        # No further than the end, or it would come out beyond what 32 bits hold.
        outwards = tl.where(is_low, middle + tl.minimum(step, high - middle), middle - step)

        low = tl.where(is_low, middle, low)
        from_low = tl.where(is_low, count, from_low)
        high = tl.where(is_low, high, middle)
        from_high = tl.where(is_low, from_high, count)
        high = tl.where(count == k, low, high)
        from_high = tl.where(count == k, count, from_high)

        between = (from_low - k).to(tl.float32) / tl.maximum(from_low - from_high, 1)
        inside = low + (between * (high - low).to(tl.float32)).to(tl.int32)
        inside = tl.where(turn % 3 == 2, low + (high - low) // 2, inside)
        is_between = (low > 0) & (high <= NAN_BITS)
        turn += is_between.to(tl.int32)
        middle = tl.where(is_between, inside, outwards)
        middle = tl.minimum(tl.maximum(middle, low + 1), high - 1)
    return low, high, from_low, from_high


@triton.jit(do_not_specialize=["k"])
def _keep_largest(
    x_BD,
    score_D,
    y_BD,
    num_inputs,
    k,
    eps,
    over_mean,
    bits_per_entry,
    NORMALIZES: tl.constexpr,
    SELECTS: tl.constexpr,
    NUM_BITS: tl.constexpr,
    NAN_BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of equal entries the first come first; what is beyond the row, zeros, comes last of all."""
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
        bits_D = tl.minimum(_bits(ranked_D, NUM_BITS), NAN_BITS)
        mean = tl.sum(tl.abs(ranked_D.to(tl.float32)), axis=0) / num_inputs
        first = _bits((mean * over_mean).to(ranked_D.dtype), NUM_BITS)
        low, high, from_low, from_high = _kth(bits_D, first, k, bits_per_entry, NAN_BITS, BLOCK_D)
        is_kept_D = bits_D >= low
        if from_low > k:
            is_kth_D = is_kept_D & (bits_D < high)
            rank_D = tl.cumsum(is_kth_D.to(tl.int32), axis=0)
            is_kept_D = (bits_D >= high) | (is_kth_D & (rank_D <= k - from_high))
        x_D = tl.where(is_kept_D, x_D, 0.0)
    tl.store(y_BD + row + inputs_D, x_D, mask=is_input_D)


@triton.jit
def _keep_above(x_BD, y_BD, num_inputs, threshold, BLOCK_D: tl.constexpr):
    inputs_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_input_D = inputs_D < num_inputs
    row = tl.program_id(1).to(tl.int64) * num_inputs
    x_D = tl.load(x_BD + row + inputs_D, mask=is_input_D, other=0.0)
    x_D = tl.where(tl.abs(x_D.to(tl.float32)) <= threshold, 0.0, x_D)
    tl.store(y_BD + row + inputs_D, x_D, mask=is_input_D)
