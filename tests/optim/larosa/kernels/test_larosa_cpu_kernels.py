"""The CPU kernels against their definition, in every variant that this processor has."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optim.errors import InputError
from optim.larosa.kernels import cpu, reference

# Where there is a compiler, a library that is missing is a failure.
pytestmark = pytest.mark.skipif(
    not cpu.available() and shutil.which("cc") is None, reason="there is no C compiler"
)
DTYPES = [torch.float32, torch.bfloat16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40]


@pytest.fixture(params=cpu.VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in cpu.variants():
        pytest.skip(f"this processor has no {request.param}")
    cpu.set_variant(request.param)
    yield request.param
    cpu.set_variant(None)


def rows(count: int, width: int, seed: int, dtype: torch.dtype, kind: str = "normal") -> Tensor:
    """Normal numbers, some of them or all of them replaced by special ones (which tie)."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(count, width, generator=generator)
    if kind != "normal":
        pool = torch.tensor(SPECIAL)
        special_BD = pool[torch.randint(len(pool), x_BD.shape, generator=generator)]
        share = 1.0 if kind == "special" else 0.2
        chosen_BD = torch.rand(x_BD.shape, generator=generator) < share
        x_BD = torch.where(chosen_BD, special_BD, x_BD)
    return x_BD.to(dtype)


def sparse_rows(count: int, width: int, seed: int, dtype: torch.dtype, kept: float) -> Tensor:
    return reference.select(rows(count, width, seed, dtype), round(kept * width))


def is_same(a: Tensor, b: Tensor) -> bool:
    """The same bits, but for those of a NaN."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = (torch.where(x.isnan(), torch.full_like(x, 7), x) for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))


def relative_error(y_BN: Tensor, expected_BN: Tensor) -> float:
    difference = (y_BN.double() - expected_BN.double()).norm() / expected_BN.double().norm()
    return float(difference)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(cpu.VARIANTS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**20)),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["normal", "mixed", "special"]),
    share=st.floats(0, 1.1),
    has_score=st.booleans(),
)
def test_selections_are_bit_for_bit_the_definitions(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, kind: str, share: float,
    has_score: bool,
) -> None:  # fmt: skip
    count, width, seed = shape
    x_BD = rows(count, width, seed, dtype, kind)
    score_D = rows(1, width, seed + 1, torch.float32)[0] if has_score else None
    k = round(share * width)
    cpu.set_variant(name if name in cpu.variants() else None)
    try:
        assert is_same(cpu.select(x_BD, k, score_D), reference.select(x_BD, k, score_D))
        assert is_same(cpu.above(x_BD, share), reference.above(x_BD, share))
        normal_BD = cpu.normalize_select(x_BD, 1e-5, None)
        fused_BD = cpu.normalize_select(x_BD, 1e-5, k, score_D)
        assert is_same(fused_BD, reference.select(normal_BD, k, score_D))
    finally:
        cpu.set_variant(None)


@pytest.mark.parametrize("width", [4096, 11008])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_of_long_rows(variant: str, width: int, dtype: torch.dtype) -> None:
    for kind in ("normal", "mixed"):
        x_BD = rows(2, width, 0, dtype, kind)
        for k in (1, width // 4, width // 2, width - 1):
            assert is_same(cpu.select(x_BD, k), reference.select(x_BD, k))


@pytest.mark.parametrize("threshold", [0.0, -0.0, -1.0, float("inf"), float("nan"), 1e-40, 1.0])
def test_thresholds_at_the_edges(variant: str, threshold: float) -> None:
    for dtype in DTYPES:
        x_BD = rows(2, 100, 0, dtype, "special")
        assert is_same(cpu.above(x_BD, threshold), reference.above(x_BD, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_agrees_and_knows_one_row_only(variant: str, dtype: torch.dtype) -> None:
    x_BD = rows(4, 1003, 0, dtype) * 3
    y_BD = cpu.normalize_select(x_BD, 1e-5, None)
    expected_BD = reference.normalize(x_BD, 1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(y_BD, expected_BD, rtol=tolerance, atol=0)
    for row in range(4):
        assert is_same(cpu.normalize_select(x_BD[row], 1e-5, None), y_BD[row])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_products_agree_with_float64(variant: str, dtype: torch.dtype, bound: float) -> None:
    shapes = [(1, 1, 1), (1, 4096, 1100), (2, 7, 5), (3, 200, 130), (5, 64, 4111), (1, 40, 16500)]
    for count, inputs, outputs in shapes:
        x_BD = sparse_rows(count, inputs, 0, dtype, 0.6)
        wt_DN = rows(inputs, outputs, 1, dtype)
        bias_N = rows(1, outputs, 2, dtype)[0]
        for bias in (None, bias_N):
            y_BN, num_read = cpu.sparse_linear(x_BD, wt_DN, bias)
            assert relative_error(y_BN, reference.sparse_linear(x_BD, wt_DN, bias)) <= bound
            assert num_read == int((x_BD != 0).any(0).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 32),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    kept=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_a_row_is_the_same_alone_and_in_any_batch(
    seed: int, count: int, inputs: int, outputs: int, kept: float, dtype: torch.dtype
) -> None:
    x_BD = sparse_rows(count, inputs, seed, dtype, kept)
    wt_DN = rows(inputs, outputs, seed + 1, dtype)
    y_BN, num_read = cpu.sparse_linear(x_BD, wt_DN)
    assert num_read == int((x_BD != 0).any(0).sum())
    for row in range(count):
        alone_N, num_read = cpu.sparse_linear(x_BD[row], wt_DN)
        assert is_same(alone_N, y_BN[row])
        assert num_read == int((x_BD[row] != 0).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_fused_variants_change_no_bit(dtype: torch.dtype) -> None:
    wt_DN = rows(1100, 2100, 1, dtype)  # more than a megabyte for each of three threads
    for count in (1, 3):
        x_BD = sparse_rows(count, 1100, 0, dtype, 0.9)
        expected_BN, _ = cpu.sparse_linear(x_BD, wt_DN, num_threads=1)
        for threads in (0, 2, 3, 8):
            assert is_same(cpu.sparse_linear(x_BD, wt_DN, num_threads=threads)[0], expected_BN)
        for name in cpu.variants():
            cpu.set_variant(name)
            y_BN, _ = cpu.sparse_linear(x_BD, wt_DN)
            cpu.set_variant(None)
            # The portable one of x86-64 rounds each product before it adds it.
            if name == "portable":
                assert relative_error(y_BN, expected_BN) < (1e-6 if dtype.itemsize == 4 else 1e-2)
            else:
                assert is_same(y_BN, expected_BN)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_inputs_that_are_zero_are_not_read(variant: str, dtype: torch.dtype) -> None:
    x_BD = sparse_rows(4, 90, 0, dtype, 0.5)
    x_BD[:, 3], x_BD[:, 5] = 0.0, -0.0
    wt_DN = rows(90, 77, 1, dtype)
    expected_BN, num_read = cpu.sparse_linear(x_BD, wt_DN)
    wt_DN[(x_BD == 0).all(0)] = float("nan")
    assert is_same(cpu.sparse_linear(x_BD, wt_DN)[0], expected_BN)
    assert num_read == int((x_BD != 0).any(0).sum())
    # Nor does a row see the weights that only another row needs.
    wt_DN[x_BD[0] == 0] = float("inf")
    assert is_same(cpu.sparse_linear(x_BD, wt_DN)[0][0], expected_BN[0])


def test_values_that_are_not_finite_or_not_normal_count(variant: str) -> None:
    wt_DN = torch.ones(4, 3)
    x_BD = torch.tensor([[0.0, float("nan"), 0, 0], [0, 0, float("inf"), 0], [0, 0, 0, 1e-40]])
    y_BN, num_read = cpu.sparse_linear(x_BD, wt_DN)
    assert num_read == 3
    assert y_BN[0].isnan().all()
    assert y_BN[1].isinf().all()
    assert torch.equal(y_BN[2], torch.full((3,), 1e-40))


def test_nothing_active_leaves_the_bias(variant: str) -> None:
    bias_N = torch.arange(5.0)
    y_BN, num_read = cpu.sparse_linear(torch.zeros(2, 9), torch.full((9, 5), torch.nan), bias_N)
    assert num_read == 0
    assert torch.equal(y_BN, bias_N.expand(2, 5))


@pytest.mark.parametrize("shape", [(2, 3, 8), (8,), (0, 8), (2, 0, 8)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    x_BD = torch.ones(shape)
    y_BN, _ = cpu.sparse_linear(x_BD, torch.ones(8, 6))
    assert torch.equal(y_BN, torch.full((*shape[:-1], 6), 8.0))
    assert cpu.select(x_BD, 3).shape == shape


def test_empty_sides_and_strided_activations() -> None:
    y_BN, num_read = cpu.sparse_linear(torch.empty(2, 0), torch.empty(0, 3))
    assert (y_BN.tolist(), num_read) == ([[0, 0, 0], [0, 0, 0]], 0)
    assert cpu.sparse_linear(torch.ones(2, 3), torch.empty(3, 0))[0].shape == (2, 0)
    wide_BD, wt_DN = rows(4, 40, 0, torch.float32), rows(20, 17, 1, torch.float32)
    x_BD, score_D = wide_BD[:, ::2], wide_BD[0, 1::2]
    expected_BN, _ = cpu.sparse_linear(x_BD.contiguous(), wt_DN)
    assert torch.equal(cpu.sparse_linear(x_BD, wt_DN)[0], expected_BN)
    assert torch.equal(cpu.select(x_BD, 7, score_D), reference.select(x_BD, 7, score_D))


def test_what_cannot_be_computed_is_refused() -> None:
    x_BD, wt_DN = torch.ones(1, 4), torch.ones(4, 3)
    for dtype in (torch.float16, torch.float64):
        with pytest.raises(InputError, match="float32 and bfloat16"):
            cpu.select(x_BD.to(dtype), 1)
        with pytest.raises(InputError, match="float32 and bfloat16"):
            cpu.sparse_linear(x_BD.to(dtype), wt_DN.to(dtype))
    with pytest.raises(InputError, match="one dtype"):
        cpu.sparse_linear(x_BD, wt_DN.bfloat16())
    with pytest.raises(InputError, match="one dtype"):
        cpu.sparse_linear(x_BD, wt_DN, torch.ones(3, dtype=torch.bfloat16))
    for x, wt, bias in [(x_BD[:, :3], wt_DN, None), (x_BD, torch.ones(3, 4).T, None),
                        (x_BD, wt_DN, torch.ones(4))]:  # fmt: skip
        with pytest.raises(ValueError, match=r"contiguous|bias"):
            cpu.sparse_linear(x, wt, bias)
    for score in (torch.ones(3), torch.ones(4, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="score"):
            cpu.select(x_BD, 1, score)
    with pytest.raises(ValueError, match="kept"):
        cpu.select(x_BD, -1)
    with pytest.raises(ValueError, match="no variant"):
        cpu.set_variant("mmx")


def test_workers_treat_denormals_as_their_caller() -> None:
    x_BD, wt_DN = torch.full((1, 1024), 1e-20), torch.full((1024, 1024), 1e-20)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        flushed_BN = [cpu.sparse_linear(x_BD, wt_DN, num_threads=n)[0] for n in (1, 3)]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(*flushed_BN)
    assert not torch.equal(cpu.sparse_linear(x_BD, wt_DN, num_threads=3)[0], flushed_BN[0])


def test_several_threads_may_call_at_once() -> None:
    wt_DN = rows(1024, 1024, 1, torch.float32)
    inputs = [sparse_rows(1, 1024, seed, torch.float32, 0.7) for seed in range(4)]
    expected = [cpu.sparse_linear(x_BD, wt_DN, num_threads=1)[0] for x_BD in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(40):
            if not torch.equal(cpu.sparse_linear(inputs[i], wt_DN, num_threads=3)[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKING = """
import os
import threading
import torch
from optim.larosa.kernels import cpu

torch.set_num_threads(1)
x_BD, wt_DN = torch.randn(1, 1024), torch.randn(1024, 1024)
expected_BN, _ = cpu.sparse_linear(x_BD, wt_DN, num_threads=1)
stopped = threading.Event()

def works():
    return torch.equal(cpu.sparse_linear(x_BD, wt_DN, num_threads=3)[0], expected_BN)

def keep_busy():
    while not stopped.is_set():
        works()

assert works()
busy = threading.Thread(target=keep_busy)
busy.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        has_workers = all(works() for _ in range(5)) and len(os.listdir("/proc/self/task")) == 3
        os._exit(0 if has_workers else 1)
    assert os.waitpid(child, 0)[1] == 0
stopped.set()
busy.join()
assert all(works() for _ in range(5))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_forked_child_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60)
