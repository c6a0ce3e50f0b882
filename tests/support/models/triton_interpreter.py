"""LaRoSA's Triton kernels in Triton's interpreter, and what tests of them have in common.

Where there is a CUDA device nothing is interpreted: the same tests run on it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optim.larosa import kernels
from optim.larosa.kernels import reference

triton = pytest.importorskip("triton")

HAS_DEVICE = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_DEVICE else torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IDS = ["fp32", "bf16", "fp16"]
MODULES = ("triton_gemv", "triton_select")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=IDS)


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """The kernels interpreted, for one test: Triton decides so when a function is decorated.

    Of every test in a module that imports it. Others in this process may have imported Triton
    already, so that its own library and our modules are made anew, and put back afterwards.
    """
    if HAS_DEVICE:
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


def error(made_BN: Tensor, x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None) -> float:
    """The distance to the reference over the reference's norm."""
    wide = [None if t is None else t.cpu().double() for t in (x_BD, wt_DN, bias_N)]
    right_BN = reference.sparse_linear(*wide)  # type: ignore[arg-type]
    return float((made_BN.cpu() - right_BN).norm() / right_BN.norm().clamp(min=1e-30))
