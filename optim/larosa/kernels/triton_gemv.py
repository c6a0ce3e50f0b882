"""`x @ wt` on a CUDA device for a few rows of x, without the weights of inputs that are zero.

A program sums a block of outputs over the inputs, tile by tile, with the tensor cores: they take
16 rows whether there are 16 or one, so that a batch costs no more than the weights that it reads,
and every row is summed in the same order, whoever is beside it. A weight is fetched if its input
is not zero in at least one of the rows; a run of weights that is not fetched is zero in the tile.

Why tiles keep their gaps. A list of the active inputs would make them dense, but it depends on the
data: an earlier kernel would have to write it and this one to wait for it. The copies to shared
memory are asynchronous and tiles ahead, and one that is masked costs an instruction but no bytes.
By arithmetic a program works through a tile of 16 KiB in some 400 cycles, in which the memory of an
H100 brings each multiprocessor a third of it: gaps begin to cost where two in three inputs are
zero, and then the product is hardly what a step waits for.

Why inputs are rarely split between programs. The sums of the parts need a second kernel, since an
atomic addition depends on who comes first; and in the two microseconds that one may take to start,
an H100 can read, by its data sheet, a fifth of a half-precision matrix of 4096 x 4096. So the block
of outputs is narrowed first, down to the 64 bytes below which memory is fetched in vain, and inputs
are split only where that leaves most multiprocessors idle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # What the tensor cores take.
_WARPS = 4
_RUN_BYTES = (128, 64)
_MIN_TILES = 8  # Fewer are summed before the kernel that adds the parts up would have begun.
_MAX_PARTS = 16
_PARTS_BLOCK = 256


@dataclass(frozen=True)
class Plan:
    """How a product is cut up. It decides the order of summation, and does not know the rows.

    A tile is `block_D` inputs, at least 64, by `block_N` outputs, at least 16, both powers of two;
    `part_D` inputs, whole tiles, belong to one program; `depth` tiles are in flight.
    """

    block_D: int
    block_N: int
    part_D: int
    depth: int


def plan(num_inputs: int, num_outputs: int, itemsize: int, multiprocessors: int) -> Plan:
    """The plan for a matrix on a device with so many multiprocessors: always the same one.

    It is reckoned and not tuned by measurement, so that it does not depend on the moment.
    """
    # Programs that run at the same time share the bandwidth, so that they end together however
    # they are spread over the multiprocessors: nearly one for each is enough.
    for run in _RUN_BYTES:
        block_N = run // itemsize
        programs = triton.cdiv(num_outputs, block_N)
        if 8 * programs >= 7 * multiprocessors:
            break
    # Two activities per thread in half precision: copies of less than 4 bytes are not asynchronous.
    block_D = 512 // itemsize
    # With the rows of x some 80 KiB of shared memory: two programs on an A100, one on an RTX 3090.
    depth = 2 if block_D * run == 32768 else 3
    tiles = triton.cdiv(num_inputs, block_D)
    parts = max(1, min(multiprocessors // programs, tiles // _MIN_TILES, _MAX_PARTS))
    return Plan(block_D, block_N, max(1, triton.cdiv(tiles, parts)) * block_D, depth)


def multiply(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None, chosen: Plan) -> Tensor:
    """`x @ wt + bias`, [B, N] in x's dtype; all contiguous, on one device, and B and N not zero.

    Enqueues one kernel, or two and a buffer of float32 [parts, B, N] where the inputs are split.
    """
    num_rows, num_inputs = x_BD.shape
    num_outputs = wt_DN.shape[1]
    num_parts = max(1, triton.cdiv(num_inputs, chosen.part_D))
    y_BN = x_BD.new_empty(num_rows, num_outputs)
    sums_PBN = y_BN
    if num_parts > 1:
        sums_PBN = x_BD.new_empty(num_parts, num_rows, num_outputs, dtype=torch.float32)
    grid = (
        triton.cdiv(num_outputs, chosen.block_N),
        num_parts,
        triton.cdiv(num_rows, _ROWS),
    )
    _multiply[grid](
        x_BD,
        wt_DN,
        bias_N if num_parts == 1 else None,
        sums_PBN,
        num_rows,
        num_inputs,
        num_outputs,
        chosen.part_D,
        ROWS=_ROWS,
        USED_ROWS=min(num_rows, _ROWS),
        GROUPS=_WARPS,
        GROUP_D=chosen.block_D // _WARPS,
        BLOCK_N=chosen.block_N,
        # The compiler divides the stages between the activity and what is fetched by it.
        NUM_STAGES=2 * chosen.depth + 1,
        num_warps=_WARPS,
    )
    if num_parts > 1:
        _add_parts[(triton.cdiv(num_outputs, _PARTS_BLOCK), num_rows)](
            sums_PBN,
            bias_N,
            y_BN,
            num_rows,
            num_outputs,
            PARTS=num_parts,
            BLOCK_N=_PARTS_BLOCK,
            num_warps=4,
        )
    return y_BN


@triton.jit
def _active(x_GK, is_input_GK, first_row, num_rows, num_inputs, USED_ROWS: tl.constexpr):
    """Which inputs are not zero in at least one row, the first of which is at `x_GK`; NaN is not.

    These are the pipeline's first loads, and the mask of all others.
    """
    first_GK = tl.load(x_GK, mask=is_input_GK, other=0.0, eviction_policy="evict_last")
    is_active_GK = first_GK != 0.0
    for row in tl.static_range(1, USED_ROWS):
        is_there_GK = is_input_GK & (first_row + row < num_rows)
        next_GK = tl.load(
            x_GK + row * num_inputs, mask=is_there_GK, other=0.0, eviction_policy="evict_last"
        )
        is_active_GK = is_active_GK | (next_GK != 0.0)
    return is_active_GK


@triton.jit
def _multiply(
    x_BD,
    wt_DN,
    bias_N,
    y_PBN,
    num_rows,
    num_inputs,
    num_outputs,
    part_D,
    ROWS: tl.constexpr,
    USED_ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Rows by outputs, summed over one part of the inputs.

    Each warp has a group of the tile's inputs, G x K, and sums of its own: one sum after the other
    would be a chain of tensor-core instructions as long as the tile.
    """
    first_row = tl.program_id(2) * ROWS
    rows_B = first_row + tl.arange(0, ROWS)
    outputs_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row_B, is_output_N = rows_B < num_rows, outputs_N < num_outputs
    tile_GK = tl.arange(0, GROUPS)[:, None] * GROUP_D + tl.arange(0, GROUP_D)[None, :]
    start = tl.program_id(1) * part_D
    end = tl.minimum(start + part_D, num_inputs)
    own_x_BD = x_BD + first_row.to(tl.int64) * num_inputs
    x_G1B1 = own_x_BD + (tl.arange(0, ROWS) * num_inputs)[None, :, None]
    # Offsets within a tile fit 32 bits, those of tiles in the weights need not.
    offsets_GKN = tile_GK[:, :, None] * num_outputs + outputs_N[None, None, :]

    sums_GBN = tl.zeros([GROUPS, ROWS, BLOCK_N], tl.float32)
    for first in tl.range(start, end, GROUPS * GROUP_D, num_stages=NUM_STAGES):
        inputs_GK = first + tile_GK
        is_input_GK = inputs_GK < end
        is_active_GK = _active(
            own_x_BD + inputs_GK, is_input_GK, first_row, num_rows, num_inputs, USED_ROWS
        )
        # Weights are read once and may be the first to go; activations are read by every program.
        wt_GKN = tl.load(
            wt_DN + tl.cast(first, tl.int64) * num_outputs + offsets_GKN,
            mask=is_active_GK[:, :, None] & is_output_N[None, None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        x_GBK = tl.load(
            x_G1B1 + inputs_GK[:, None, :],
            mask=is_row_B[None, :, None] & is_input_GK[:, None, :],
            other=0.0,
            eviction_policy="evict_last",
        )
        # "ieee": float32 is not to be shortened to TF32.
        sums_GBN = tl.dot(x_GBK, wt_GKN, sums_GBN, input_precision="ieee")

    sums_BN = tl.sum(sums_GBN, axis=0)
    if bias_N is not None:
        sums_BN += tl.load(bias_N + outputs_N, mask=is_output_N, other=0.0).to(tl.float32)[None, :]
    y_rows_B = (tl.program_id(1) * num_rows + rows_B).to(tl.int64)
    tl.store(
        y_PBN + y_rows_B[:, None] * num_outputs + outputs_N[None, :],
        sums_BN.to(y_PBN.dtype.element_ty),
        mask=is_row_B[:, None] & is_output_N[None, :],
    )


@triton.jit
def _add_parts(
    sums_PBN, bias_N, y_BN, num_rows, num_outputs, PARTS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The sums of all parts in their order, and the bias."""
    outputs_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output_N = outputs_N < num_outputs
    row = tl.program_id(1)
    sums_N = tl.zeros([BLOCK_N], tl.float32)
    for part in tl.static_range(PARTS):
        part_N = sums_PBN + (part * num_rows + row).to(tl.int64) * num_outputs + outputs_N
        sums_N += tl.load(part_N, mask=is_output_N, other=0.0)
    if bias_N is not None:
        sums_N += tl.load(bias_N + outputs_N, mask=is_output_N, other=0.0).to(tl.float32)
    tl.store(
        y_BN + row.to(tl.int64) * num_outputs + outputs_N,
        sums_N.to(y_BN.dtype.element_ty),
        mask=is_output_N,
    )
