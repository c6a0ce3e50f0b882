"""LaRoSA's Triton kernels as operators of torch: compiled around, and what they refuse."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from triton_interpreter import (
    interpreter,  # noqa: F401  (it is of every test here)
    normal,
    same,
    sparse,
)

from optim.errors import InputError
from optim.larosa.kernels import cuda


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
