"""LaRoSA's Triton kernels on a CUDA device: real shapes, compiled graphs, graphs of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_interpreter import (
    error,
    every_dtype,
    expected,
    normal,
    rows_of_all_kinds,
    same,
    sparse,
)

from optim.larosa.kernels import cuda, reference
from optim.larosa.sparse import break_even

pytestmark = pytest.mark.gpu

REAL = [(4096, 4096), (4096, 28672), (14336, 4096), (8192, 1024), (4864, 896)]


@every_dtype
@pytest.mark.parametrize("shape", REAL, ids=str)
def test_products_of_real_shapes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    wt_DN, bias_N = normal(1, *shape, dtype=dtype), normal(2, shape[1], dtype=dtype)
    x_BD = sparse(3, 8, shape[0], dtype=dtype)
    made_BN = cuda.sparse_linear(x_BD, wt_DN, bias_N)
    assert error(made_BN, x_BD, wt_DN, bias_N) <= (1e-5 if dtype == torch.float32 else 1e-2)
    for _ in range(10):
        assert same(cuda.sparse_linear(x_BD, wt_DN, bias_N), made_BN)
    for rows in (1, 3, 4, 7):
        assert same(cuda.sparse_linear(x_BD[:rows], wt_DN, bias_N), made_BN[:rows])
    spoilt_DN = wt_DN.masked_fill((x_BD[:2] == 0).all(0)[:, None], float("nan"))
    assert same(cuda.sparse_linear(x_BD[:2], spoilt_DN, bias_N), made_BN[:2])


@every_dtype
@pytest.mark.parametrize("width", [896, 4096, 14336, 28672, 53248])
def test_selection_of_real_widths(dtype: torch.dtype, width: int) -> None:
    x_BD = rows_of_all_kinds(dtype, width)
    score_D = normal(1, width).abs()
    for k in (1, width // 4, width // 2, width - 1):
        for score in (None, score_D):
            made_BD = cuda.select(x_BD, k, score)
            assert same(made_BD, expected(reference.select, x_BD, k, score))


def test_break_even_is_measured_by_the_devices_own_time() -> None:
    device = torch.device("cuda", 0)
    found = break_even.measure([(4096, 8192)], torch.bfloat16, device, 1 << 30)
    assert {entry.place for entry in found} == {"cuda bfloat16"}
    most = {entry.share: entry.max_rows for entry in found}
    assert most[0.8] >= 1, "with a fifth of the weights the kernel is the faster one"


def two_layers(x_BD: Tensor, in_DN: Tensor, out_ND: Tensor) -> Tensor:
    kept_BD = cuda.normalize_select(x_BD, 1e-6, x_BD.shape[1] // 2)
    middle_BN = cuda.above(cuda.sparse_linear(kept_BD, in_DN), 0.3)
    return cuda.sparse_linear(cuda.select(middle_BN, in_DN.shape[1] // 4), out_ND)


# Whatever torch warns of when it compiles is not these kernels'.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("rows", [1, 4])
def test_they_run_in_compiled_graphs(rows: int) -> None:
    in_DN, out_ND = normal(1, 2048, 8192).bfloat16(), normal(2, 8192, 2048).bfloat16()
    torch.compiler.reset()
    compiled_layers = torch.compile(two_layers, fullgraph=True, mode="reduce-overhead")
    with torch.inference_mode():
        for seed in range(5):
            x_BD = normal(10 + seed, rows, 2048).bfloat16()
            made_BD = compiled_layers(x_BD, in_DN, out_ND).clone()
            assert same(made_BD, two_layers(x_BD, in_DN, out_ND))


def test_they_run_in_a_graph_of_ones_own() -> None:
    in_DN, out_ND = normal(1, 2048, 8192).bfloat16(), normal(2, 8192, 2048).bfloat16()
    x_BD = normal(3, 2, 2048).bfloat16()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        two_layers(x_BD, in_DN, out_ND)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made_BD = two_layers(x_BD, in_DN, out_ND)
    for seed in range(5):
        x_BD.copy_(normal(10 + seed, 2, 2048))
        graph.replay()
        assert same(made_BD, two_layers(x_BD, in_DN, out_ND))
