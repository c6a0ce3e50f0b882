"""The product with sparse inputs by LaRoSA's Triton kernel, and the plan that it goes by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_interpreter import (
    DEVICE,
    error,
    every_dtype,
    interpreter,  # noqa: F401  (it is of every test here)
    normal,
    same,
    sparse,
)

from optim.larosa.kernels import cuda

SHAPES = [
    # inputs, outputs, rows
    (1, 1, 1),
    (3, 130, 2),
    (64, 64, 1),
    (257, 33, 3),
    (300, 100, 8),
    (513, 40, 17),
]


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_reference(
    dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    num_inputs, num_outputs, num_rows = shape
    wt_DN = normal(1, num_inputs, num_outputs, dtype=dtype)
    for bias_N in (None, normal(2, num_outputs, dtype=dtype)):
        x_BD = sparse(3, num_rows, num_inputs, dtype=dtype, share=0.5 if num_inputs > 1 else 0.0)
        made_BN = cuda.sparse_linear(x_BD, wt_DN, bias_N)
        assert made_BN.dtype == dtype
        assert made_BN.shape == (num_rows, num_outputs)
        assert error(made_BN, x_BD, wt_DN, bias_N) <= (1e-5 if dtype == torch.float32 else 1e-2)


@every_dtype
def test_inputs_split_between_programs_are_added_up(dtype: torch.dtype) -> None:
    from optim.larosa.kernels import triton_gemv

    x_BD = sparse(1, 3, 700, dtype=dtype)
    wt_DN, bias_N = normal(2, 700, 50, dtype=dtype), normal(3, 50, dtype=dtype)
    for part_D in (64, 512, 1024):
        chosen = triton_gemv.Plan(block_D=64, block_N=16, part_D=part_D, depth=2)
        made_BN = triton_gemv.multiply(x_BD, wt_DN, bias_N, chosen)
        assert error(made_BN, x_BD, wt_DN, bias_N) <= (1e-5 if dtype == torch.float32 else 1e-2)
        assert same(made_BN, triton_gemv.multiply(x_BD, wt_DN, bias_N, chosen))
        assert same(made_BN[1:2], triton_gemv.multiply(x_BD[1:2], wt_DN, bias_N, chosen))


@every_dtype
@pytest.mark.parametrize("shape", [(300, 70), (4200, 40)], ids=str)
def test_a_rows_result_does_not_depend_on_the_others(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    wt_DN, bias_N = normal(1, *shape, dtype=dtype), normal(2, shape[1], dtype=dtype)
    x_BD = sparse(3, 5, shape[0], dtype=dtype)
    x_BD[3] = 0
    together_BN = cuda.sparse_linear(x_BD, wt_DN, bias_N)
    assert same(together_BN, cuda.sparse_linear(x_BD, wt_DN, bias_N))
    assert same(together_BN[3], bias_N)
    for row in range(5):
        alone_BN = cuda.sparse_linear(x_BD[row : row + 1], wt_DN, bias_N)
        assert same(alone_BN[0], together_BN[row])


@every_dtype
def test_weights_of_inactive_inputs_are_not_used(dtype: torch.dtype) -> None:
    x_BD = sparse(1, 2, 300, dtype=dtype, share=0.8)
    wt_DN = normal(2, 300, 50, dtype=dtype)
    made_BN = cuda.sparse_linear(x_BD, wt_DN)
    spoilt_DN = wt_DN.masked_fill((x_BD == 0).all(0)[:, None], float("nan"))
    assert spoilt_DN.isnan().any()
    assert same(cuda.sparse_linear(x_BD, spoilt_DN), made_BN)


@every_dtype
def test_nothing_beyond_the_tensors_is_used(dtype: torch.dtype) -> None:
    def within(tensor: Tensor) -> Tensor:
        padded = torch.full((tensor.numel() + 2048,), float("nan"), dtype=dtype, device=DEVICE)
        inner = padded[1024 : 1024 + tensor.numel()].view(tensor.shape)
        return inner.copy_(tensor)

    x_BD, wt_DN = sparse(1, 3, 100, dtype=dtype), normal(2, 100, 40, dtype=dtype)
    bias_N = normal(3, 40, dtype=dtype)
    made_BN = cuda.sparse_linear(within(x_BD), within(wt_DN), within(bias_N))
    assert same(made_BN, cuda.sparse_linear(x_BD, wt_DN, bias_N))
    assert same(cuda.select(within(x_BD), 30), cuda.select(x_BD, 30))
    assert same(cuda.normalize_select(within(x_BD), 1e-6, 9), cuda.normalize_select(x_BD, 1e-6, 9))


def test_what_is_not_a_number_is_not_hidden() -> None:
    x_BD, wt_DN = sparse(1, 2, 100, dtype=torch.float32), normal(2, 100, 40)
    x_BD[1, 50] = float("nan")
    made_BN = cuda.sparse_linear(x_BD, wt_DN)
    assert made_BN[1].isnan().all()
    assert not made_BN[0].isnan().any()


def test_leading_dimensions_stay_and_nothing_makes_nothing() -> None:
    wt_DN, bias_N = normal(1, 60, 20), normal(2, 20)
    x_BTD = sparse(3, 2, 3, 60, dtype=torch.float32)
    made_BTN = cuda.sparse_linear(x_BTD, wt_DN, bias_N)
    assert made_BTN.shape == (2, 3, 20)
    assert same(made_BTN.flatten(0, 1), cuda.sparse_linear(x_BTD.flatten(0, 1), wt_DN, bias_N))
    assert cuda.sparse_linear(x_BTD[0, 0], wt_DN).shape == (20,)
    assert cuda.sparse_linear(x_BTD[:0], wt_DN, bias_N).shape == (0, 3, 20)
    assert cuda.sparse_linear(x_BTD, wt_DN[:, :0].contiguous()).shape == (2, 3, 0)
    assert same(cuda.sparse_linear(x_BTD[0, :, :0], wt_DN[:0], bias_N), bias_N.expand(3, 20))
    assert cuda.select(x_BTD[:0], 3).shape == (0, 3, 60)
    assert cuda.above(x_BTD[..., :0], 3).shape == (2, 3, 0)


# --- the plan ---


@pytest.mark.parametrize("multiprocessors", [1, 40, 84, 108, 132, 148])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_cover_the_inputs_with_whole_tiles(itemsize: int, multiprocessors: int) -> None:
    from optim.larosa.kernels import triton_gemv

    for num_inputs in (0, 1, 64, 896, 4096, 11008, 28672):
        for num_outputs in (1, 100, 1024, 4096, 28672):
            chosen = triton_gemv.plan(num_inputs, num_outputs, itemsize, multiprocessors)
            assert chosen.part_D % chosen.block_D == 0
            parts = -(-num_inputs // chosen.part_D)
            assert parts <= 16
            assert chosen.block_N * itemsize in (64, 128)
            if parts > 1:
                assert parts * -(-num_outputs // chosen.block_N) <= multiprocessors
                assert chosen.part_D >= 8 * chosen.block_D


def test_inputs_are_split_only_where_outputs_are_few() -> None:
    from optim.larosa.kernels import triton_gemv

    def parts(num_inputs: int, num_outputs: int) -> tuple[int, int]:
        chosen = triton_gemv.plan(num_inputs, num_outputs, 2, 132)
        return chosen.block_N, -(-num_inputs // chosen.part_D)

    assert parts(4096, 28672) == (64, 1)
    assert parts(4096, 4096) == (32, 1)
    assert parts(11008, 4096) == (32, 1)
    assert parts(8192, 1024) == (32, 4)
    assert parts(896, 896) == (32, 1)
