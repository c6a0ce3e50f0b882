"""The choice of entries by LaRoSA's Triton kernels: bit by bit what the reference chooses."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import (
    DEVICE,
    every_dtype,
    expected,
    interpreter,  # noqa: F401  (it is of every test here)
    normal,
    rows_of_all_kinds,
    same,
)

from optim.larosa.kernels import cuda, reference


@every_dtype
@pytest.mark.parametrize("width", [1, 2, 37, 128])
def test_selection_is_the_reference_bit_by_bit(dtype: torch.dtype, width: int) -> None:
    x_BD = rows_of_all_kinds(dtype, width)
    for k in sorted({0, 1, width // 2, width - 1, width, width + 5}):
        assert same(cuda.select(x_BD, k), expected(reference.select, x_BD, k)), k
    score_D, k = normal(3, width).abs(), width // 3
    made_BD = cuda.select(x_BD, k, score_D)
    assert same(made_BD, expected(reference.select, x_BD, k, score_D))


@every_dtype
def test_long_rows_of_few_values_are_selected(dtype: torch.dtype) -> None:
    x_BD = (normal(1, 2, 3000) * 3).round().to(dtype)
    for k in (10, 1500, 2990):
        assert same(cuda.select(x_BD, k), expected(reference.select, x_BD, k)), k


@pytest.mark.parametrize("k", [1, 2, 3, 30, 290, 299])
def test_rows_with_huge_entries_take_few_counts(k: int) -> None:
    x_BD = normal(4, 3, 300)
    x_BD[0, :3] = torch.tensor([2e38, 2.5e38, 3e38])
    x_BD[1, ::40] = torch.logspace(34, 38, 8)
    x_BD[2] = x_BD[2].exp() ** 9
    assert same(cuda.select(x_BD, k), expected(reference.select, x_BD, k))


@every_dtype
def test_exactly_k_are_kept_and_the_first_of_equals(dtype: torch.dtype) -> None:
    x_BD = torch.ones(2, 3, 50, dtype=dtype, device=DEVICE)
    made_BD = cuda.select(x_BD, 20)
    assert made_BD.shape == x_BD.shape
    assert made_BD[..., :20].eq(1).all()
    assert made_BD[..., 20:].eq(0).all()


@every_dtype
def test_what_is_above_a_threshold_is_the_reference(dtype: torch.dtype) -> None:
    for width in (1, 50, 1500):
        x_BD = rows_of_all_kinds(dtype, width)
        x_BD[:, -1] = 0.1
        for threshold in (-1.0, 0.0, 0.1, 1.0, float("inf")):
            made_BD = cuda.above(x_BD, threshold)
            assert same(made_BD, expected(reference.above, x_BD, threshold))


@every_dtype
def test_normalized_rows_are_those_of_the_reference_to_a_rounding(dtype: torch.dtype) -> None:
    step = 2 * torch.finfo(dtype).eps
    for width in (1, 37, 700):
        x_BD = normal(width, 5, width, dtype=dtype) * 3
        made_BD = cuda.normalize_select(x_BD, 1e-5, None)
        plain_BD = expected(reference.normalize, x_BD, 1e-5)
        torch.testing.assert_close(made_BD.cpu(), plain_BD, rtol=step, atol=0.0)


@every_dtype
def test_normalized_rows_are_selected_as_others(dtype: torch.dtype) -> None:
    x_BD = rows_of_all_kinds(dtype, 70)
    plain_BD = cuda.normalize_select(x_BD, 1e-6, None)
    for score in (None, normal(6, 70).abs()):
        for k in (0, 30, 70):
            made_BD = cuda.normalize_select(x_BD, 1e-6, k, score)
            assert same(made_BD, expected(reference.select, plain_BD, k, score))


def test_selection_of_what_is_not_contiguous() -> None:
    x_BD = normal(0, 40, 3).T
    score_D = normal(1, 80)[::2]
    assert same(cuda.select(x_BD, 9, score_D), expected(reference.select, x_BD, 9, score_D))
    assert same(cuda.above(x_BD, 0.3), expected(reference.above, x_BD, 0.3))
