"""LaRoSA's Triton kernels: in Triton's interpreter where there is no CUDA device, else on it."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optim.errors import InputError
from optim.larosa import kernels
from optim.larosa.kernels import cuda, reference

triton = pytest.importorskip("triton")

HAS_DEVICE = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_DEVICE else torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = ("num_inputs", "num_outputs", "part_D")
IDS = ["fp32", "bf16", "fp16"]
MODULES = ("triton_gemv", "triton_select")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=IDS)


@pytest.fixture(autouse=True)
def interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels interpreted, for one test: Triton decides so when a function is decorated.

    Others in this process may have imported Triton already, so that its own library and our
    modules are made anew, and put back afterwards.
    """
    if HAS_DEVICE or "compiler" in request.fixturenames:
        yield
        return
    from triton.runtime import interpreter, jit

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("TRITON_INTERPRET", "1")
        for library in (triton.language, triton.language.standard):
            for name, member in list(vars(library).items()):
                if isinstance(member, jit.JITFunction):
                    patch.setattr(library, name, triton.jit(member.fn))
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        for name in MODULES:
            patch.setattr(kernels, name, fresh(name, patch), raising=False)
        yield


def fresh(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """A module of kernels, made anew for as long as the patch lasts."""
    spec = importlib.util.find_spec(f"optim.larosa.kernels.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def cast(builder: Any, source: Any, type_: Any) -> Any:
    """A conversion as a device makes it: to nearest even, where the interpreter cuts bfloat16."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    if type_.scalar == triton.language.bfloat16:
        narrow = torch.from_numpy(np.array(widened(source), np.float32)).bfloat16()
        return TensorHandle(narrow.view(torch.uint16).numpy(), type_.scalar)
    return TensorHandle(widened(source).astype(_get_np_dtype(type_)), type_.scalar)


def dot(builder: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
    """A product with float32 sums, where the interpreter takes bfloat16 for an integer."""
    from triton.runtime.interpreter import TensorHandle

    made = np.matmul(widened(a), widened(b), dtype=np.float32)
    return TensorHandle(made + total.data, total.dtype.scalar)


def widened(handle: Any) -> Any:
    """The interpreter's values, and float32 for the bits that it keeps of bfloat16."""
    if handle.dtype.scalar != triton.language.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(DEVICE, dtype)


def sparse(seed: int, *shape: int, dtype: torch.dtype, share: float = 0.5) -> Tensor:
    """Values of which about `share` are zero, some of them negative zero."""
    values = normal(seed, *shape, dtype=dtype)
    dropped = torch.rand(*shape, generator=generator(seed + 1)).to(DEVICE) < share
    return torch.where(dropped, values * 0, values)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the sign of zero; any NaN is like another."""
    a, b = a.cpu(), b.cpu()
    signs = torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())
    return (
        a.dtype == b.dtype
        and signs
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(1e4, 3e4, -3e4), b.nan_to_num(1e4, 3e4, -3e4))
    )


def expected(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What the reference makes of the same arguments, on the CPU."""
    return function(*(a.cpu() if isinstance(a, Tensor) else a for a in arguments))


def rows_of_all_kinds(dtype: torch.dtype, width: int) -> Tensor:
    """Plain values, ties, zeros of both signs, subnormals, NaNs and infinities: [7, width]."""
    x_BD = normal(width, 7, width, dtype=dtype).cpu()
    x_BD[1] = (x_BD[1] * 2).round() / 2
    x_BD[2] = -1.0
    x_BD[3] = torch.where(x_BD[3] > 0, 0.0, -0.0)
    x_BD[4] *= torch.finfo(dtype).smallest_normal
    x_BD[5, ::3], x_BD[5, 1::5] = float("nan"), float("-inf")
    x_BD[6, ::2], x_BD[6, 1::4] = float("inf"), -float("nan")
    return x_BD.to(DEVICE)


# --- the choice of entries ---


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


# --- the product ---

SHAPES = [
    # inputs, outputs, rows
    (1, 1, 1),
    (3, 130, 2),
    (64, 64, 1),
    (257, 33, 3),
    (300, 100, 8),
    (513, 40, 17),
]


def error(made_BN: Tensor, x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None) -> float:
    """The distance to the reference over the reference's norm."""
    wide = [None if t is None else t.cpu().double() for t in (x_BD, wt_DN, bias_N)]
    right_BN = reference.sparse_linear(*wide)  # type: ignore[arg-type]
    return float((made_BN.cpu() - right_BN).norm() / right_BN.norm().clamp(min=1e-30))


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


# --- operators of torch ---


def test_operators_are_what_torch_asks_of_them() -> None:
    half = torch.bfloat16
    x_BD, wt_DN = sparse(1, 2, 3, 40, dtype=half), normal(2, 40, 20, dtype=half)
    bias_N, score_D = normal(3, 20, dtype=half), normal(4, 40)
    for bias in (None, bias_N):
        torch.library.opcheck(cuda._sparse_linear, (x_BD, wt_DN, bias))
    torch.library.opcheck(cuda._select, (x_BD, 10, None, None))
    torch.library.opcheck(cuda._select, (x_BD, 40, score_D, 1e-6))
    torch.library.opcheck(cuda._above, (x_BD, 0.4))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_they_are_compiled_whole(backend: str) -> None:
    def step(x_BD: Tensor, wt_DN: Tensor) -> Tensor:
        kept_BD = cuda.normalize_select(x_BD, 1e-6, 20)
        y_BN = cuda.sparse_linear(kept_BD, wt_DN)
        return cuda.select(cuda.above(y_BN.relu(), 0.2), 10)

    x_BD, wt_DN = normal(1, 2, 40), normal(2, 40, 30)
    torch.compiler.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    with torch.inference_mode():
        assert same(compiled(x_BD, wt_DN), step(x_BD, wt_DN))


# --- what is refused ---


def test_what_does_not_fit_is_refused() -> None:
    x_BD, wt_DN = normal(1, 2, 40), normal(2, 40, 20)
    half_DN = wt_DN.half()
    for arguments in (
        (x_BD, wt_DN[1:], None),
        (x_BD, wt_DN.T, None),
        (x_BD, wt_DN.T.contiguous().T, None),
        (x_BD, wt_DN, normal(3, 21)),
        (x_BD, wt_DN.to("meta"), None),
    ):
        with pytest.raises(ValueError):  # noqa: PT011  (the words are torch's shapes)
            cuda.sparse_linear(*arguments)
    with pytest.raises(InputError, match="float16"):
        cuda.sparse_linear(x_BD, half_DN)
    with pytest.raises(InputError, match="float64"):
        cuda.sparse_linear(x_BD.double(), wt_DN.double())
    with pytest.raises(InputError, match="int32"):
        cuda.select(x_BD.int(), 3)
    with pytest.raises(ValueError, match="cannot be kept"):
        cuda.select(x_BD, -1)
    with pytest.raises(ValueError, match="eps"):
        cuda.normalize_select(x_BD, -1.0, 3)
    with pytest.raises(ValueError, match="score"):
        cuda.select(x_BD, 3, normal(1, 39))
    with pytest.raises(ValueError, match="score"):
        cuda.normalize_select(x_BD, 1e-6, 3, normal(1, 40).double())


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.available()
    cuda.require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not cuda.available()
    for call in (cuda.require, lambda: cuda.select(normal(1, 2, 3), 1)):
        with pytest.raises(InputError, match="Triton") as caught:
            call()
        assert caught.value.field == "optimizations.larosa"
        assert caught.value.mend is not None


def test_importing_does_not_import_triton() -> None:
    code = "import optim.larosa.kernels.cuda, sys; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- compiled for devices that are not there ---


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton compiles: in one where it has interpreted it cannot."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def compiled(
    folder: Path, capability: int, module: str, kernel: str, warps: int, arguments: dict[str, Any]
) -> tuple[int, str, str]:
    """Bytes of shared memory, the compiler's code and the device's; no device is needed."""
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"optim.larosa.kernels.{module}"), kernel)
    types = {n: a if isinstance(a, str) else "constexpr" for n, a in arguments.items()}
    places = {name: (function.arg_names.index(name),) for name in arguments}
    # As the tensors and sizes of real models are, so that loads are as wide.
    aligned = [n for n, t in types.items() if t[0] == "*" or n in SIZES]
    source = ASTSource(
        function,
        {name: types[name] for name in function.arg_names},
        {places[n]: a for n, a in arguments.items() if not isinstance(a, str)},
        {places[n]: [["tt.divisibility", 16]] for n in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"num_warps": warps})
    return made.metadata.shared, made.asm["ttgir"], made.asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_products_are_compiled_to_copies_ahead(
    compiler: ProcessPoolExecutor, tmp_path: Path, dtype: torch.dtype, capability: int
) -> None:
    from optim.larosa.kernels import triton_gemv

    pointer = "*fp32" if dtype == torch.float32 else "*bf16"
    for num_outputs, rows in ((4096, 3), (28672, 1)):
        chosen = triton_gemv.plan(4096, num_outputs, dtype.itemsize, 132)
        group_D = chosen.block_D // 4
        arguments = dict.fromkeys(("x_BD", "wt_DN", "bias_N", "y_PBN"), pointer)
        arguments |= dict.fromkeys(("num_rows", *SIZES), "i32")
        constants = {
            "ROWS": 16,
            "USED_ROWS": rows,
            "GROUPS": 4,
            "GROUP_D": group_D,
            "BLOCK_N": chosen.block_N,
            "NUM_STAGES": 2 * chosen.depth + 1,
        }
        shared, code, ptx = compiler.submit(
            compiled, tmp_path, capability, "triton_gemv", "_multiply", 4, arguments | constants
        ).result()
        assert shared <= 99 << 10, "what a program may have on the smallest devices"
        buffer = f"memdesc<{chosen.depth}x4x{group_D}x{chosen.block_N}x"
        assert buffer in code, "as many tiles of weights as are to be in flight"
        assert "cp.async.cg" in ptx
        assert ("mma.sync" in ptx) == (dtype == torch.bfloat16)
        assert "tf32" not in ptx
        assert "atom" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
@every_dtype
def test_other_kernels_are_compiled(
    compiler: ProcessPoolExecutor, tmp_path: Path, dtype: torch.dtype, capability: int
) -> None:
    from optim.larosa.kernels import triton_select

    pointer = f"*{IDS[DTYPES.index(dtype)]}"
    above = {"x_BD": pointer, "y_BD": pointer, "num_inputs": "i32", "threshold": "fp32"}
    selects = {
        "x_BD": pointer,
        "score_D": "*fp32",
        "y_BD": pointer,
        "num_inputs": "i32",
        "k": "i32",
        "eps": "fp32",
        "NORMALIZES": True,
        "SELECTS": True,
        "NUM_BITS": 31,
        "NAN_BITS": triton_select._NAN_BITS[torch.float32],
        "BLOCK_D": 4096,
    }
    adds: dict[str, Any] = {
        "sums_PBN": "*fp32",
        "bias_N": pointer,
        "y_BN": pointer,
        "num_rows": "i32",
    }
    adds |= {"num_outputs": "i32", "PARTS": 4, "BLOCK_N": 256}
    for module, kernel, warps, arguments in (
        ("triton_select", "_keep_largest", 8, selects),
        ("triton_select", "_keep_above", 4, {**above, "BLOCK_D": 1024}),
        ("triton_gemv", "_add_parts", 4, adds),
    ):
        *_, ptx = compiler.submit(
            compiled, tmp_path, capability, module, kernel, warps, arguments
        ).result()
        assert "atom" not in ptx


# --- on a device ---

REAL = [(4096, 4096), (4096, 28672), (14336, 4096), (8192, 1024), (4864, 896)]


@pytest.mark.gpu
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


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("width", [896, 4096, 14336, 28672, 53248])
def test_selection_of_real_widths(dtype: torch.dtype, width: int) -> None:
    x_BD = rows_of_all_kinds(dtype, width)
    score_D = normal(1, width).abs()
    for k in (1, width // 4, width // 2, width - 1):
        for score in (None, score_D):
            made_BD = cuda.select(x_BD, k, score)
            assert same(made_BD, expected(reference.select, x_BD, k, score))


def two_layers(x_BD: Tensor, in_DN: Tensor, out_ND: Tensor) -> Tensor:
    kept_BD = cuda.normalize_select(x_BD, 1e-6, x_BD.shape[1] // 2)
    middle_BN = cuda.above(cuda.sparse_linear(kept_BD, in_DN), 0.3)
    return cuda.sparse_linear(cuda.select(middle_BN, in_DN.shape[1] // 4), out_ND)


# Whatever torch warns of when it compiles is not these kernels'.
@pytest.mark.gpu
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


@pytest.mark.gpu
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
