"""The CUDA kernels, in Triton, as operators of torch: for torch.compile and for CUDA graphs.

Activations are bfloat16, float16 or float32 and weights of the same dtype; sums are float32, never
TF32. What is enqueued depends on shapes, dtypes and the device alone. No call waits for the device,
and the same call on the same kind of device gives the same bits: nothing is tuned by measurement
and no sum depends on which program comes first. Results have no gradient.

The first call with a new shape or dtype compiles for seconds, so it has to be made before a CUDA
graph is captured. Triton is imported by the first call, so that this module can be imported without
it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math

import torch
from torch import Tensor

from optim.errors import InputError

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# What kernels are planned for where there is no device, in Triton's interpreter: an H100.
_MULTIPROCESSORS = 132


def available() -> bool:
    """Whether Triton is installed. It says nothing about devices."""
    return importlib.util.find_spec("triton") is not None


def require() -> None:
    """InputError, which says how to mend it, where Triton is missing."""
    if not available():
        raise InputError(
            "the CUDA kernels need Triton, which is not installed",
            field="optimizations.larosa",
            mend="Install triton, which optrial[gpu] brings, or use device: cpu",
        )


def sparse_linear(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`x @ wt + bias`, [..., D] -> [..., N], reading the weights of inputs that are not zero.

    Read are those whose input is not zero in at least one row out of 16. A row's result does not
    depend on the other rows, as long as all weights are finite. It is meant for 1 to 16 rows, and
    right for any number. `wt` has to be contiguous. ValueError for shapes that do not fit or mixed
    devices, InputError for mixed or other dtypes and without Triton.
    """
    y_BN: Tensor = _sparse_linear(x_BD, wt_DN, bias_N)
    return y_BN


def select(x_BD: Tensor, k: int, score_D: Tensor | None = None) -> Tensor:
    """x with all but the `k` entries of each row [..., D] zero that rank highest by |x| * score.

    Exactly k are kept: of equal ranks the lowest index first, and any NaN before all else.
    `score_D` is float32; None ranks by |x|. Rows of up to 16384 entries stay in registers, longer
    ones are slower. ValueError for shapes that do not fit, mixed devices and a k below 0,
    InputError for another dtype and without Triton.
    """
    kept_BD: Tensor = _select(x_BD, k, score_D, None)
    return kept_BD


def above(x_BD: Tensor, threshold: float) -> Tensor:
    """x with every entry of magnitude up to `threshold` set to zero; a NaN stays.

    Errors are those of `select`.
    """
    kept_BD: Tensor = _above(x_BD, threshold)
    return kept_BD


def normalize_select(
    x_BD: Tensor, eps: float, k: int | None, score_D: Tensor | None = None
) -> Tensor:
    """Each row over its root mean square, rounded to x's dtype, and then as `select` does it.

    `k` of None keeps all entries. Errors are those of `select`, and ValueError for an eps below 0.
    """
    num_kept = x_BD.shape[-1] if k is None else k
    kept_BD: Tensor = _select(x_BD, num_kept, score_D, eps)
    return kept_BD


@torch.library.custom_op("optrial::cuda_sparse_linear", mutates_args=())
def _sparse_linear(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None) -> Tensor:
    require()
    from optim.larosa.kernels import triton_gemv

    shape = _product_shape(x_BD, wt_DN, bias_N)
    num_inputs, num_outputs = wt_DN.shape
    num_rows = math.prod(shape[:-1])
    if num_rows * num_outputs == 0:
        return x_BD.new_empty(shape)
    multiprocessors = _multiprocessors(x_BD.device)
    chosen = triton_gemv.plan(num_inputs, num_outputs, wt_DN.element_size(), multiprocessors)
    rows_BD = x_BD.reshape(num_rows, num_inputs).contiguous()
    with _on(x_BD.device):
        return triton_gemv.multiply(rows_BD, wt_DN, _dense(bias_N), chosen).view(shape)


@_sparse_linear.register_fake
def _fake_sparse_linear(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None) -> Tensor:
    return x_BD.new_empty(_product_shape(x_BD, wt_DN, bias_N))


def _product_shape(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None) -> list[int]:
    """The shape of a product, if there is nothing wrong with what it is made of."""
    num_inputs, num_outputs = wt_DN.shape
    if x_BD.shape[-1] != num_inputs or not wt_DN.is_contiguous():
        raise ValueError(f"x {list(x_BD.shape)} needs a contiguous [{x_BD.shape[-1]}, N]")
    _check_dtype(x_BD)
    weights = [wt_DN]
    if bias_N is not None:
        if bias_N.shape != (num_outputs,):
            raise ValueError(f"a bias of {list(bias_N.shape)} for {num_outputs} outputs")
        weights.append(bias_N)
    for weight in weights:
        _check_place(x_BD, weight)
        if weight.dtype != x_BD.dtype:
            raise InputError(
                f"activations of {x_BD.dtype} with weights of {weight.dtype}",
                field="optimizations.larosa",
                mend="Use one dtype for both",
            )
    return [*x_BD.shape[:-1], num_outputs]


@torch.library.custom_op("optrial::cuda_select", mutates_args=())
def _select(x_BD: Tensor, k: int, score_D: Tensor | None, eps: float | None) -> Tensor:
    require()
    from optim.larosa.kernels import triton_select

    _check_selection(x_BD, k, score_D, eps)
    if x_BD.numel() == 0:
        return x_BD.new_empty(x_BD.shape)
    rows_BD = x_BD.reshape(-1, x_BD.shape[-1]).contiguous()
    with _on(x_BD.device):
        return triton_select.keep_largest(rows_BD, k, _dense(score_D), eps).view(x_BD.shape)


@_select.register_fake
def _fake_select(x_BD: Tensor, k: int, score_D: Tensor | None, eps: float | None) -> Tensor:
    _check_selection(x_BD, k, score_D, eps)
    return x_BD.new_empty(x_BD.shape)


@torch.library.custom_op("optrial::cuda_above", mutates_args=())
def _above(x_BD: Tensor, threshold: float) -> Tensor:
    require()
    from optim.larosa.kernels import triton_select

    _check_selection(x_BD, 0, None)
    if x_BD.numel() == 0:
        return x_BD.new_empty(x_BD.shape)
    rows_BD = x_BD.reshape(-1, x_BD.shape[-1]).contiguous()
    with _on(x_BD.device):
        return triton_select.keep_above(rows_BD, threshold).view(x_BD.shape)


@_above.register_fake
def _fake_above(x_BD: Tensor, threshold: float) -> Tensor:
    _check_selection(x_BD, 0, None)
    return x_BD.new_empty(x_BD.shape)


def _check_selection(
    x_BD: Tensor, k: int, score_D: Tensor | None, eps: float | None = None
) -> None:
    if k < 0 or (eps is not None and eps < 0):
        raise ValueError(f"{k} entries cannot be kept, nor an eps of {eps} be added")
    _check_dtype(x_BD)
    if score_D is None:
        return
    _check_place(x_BD, score_D)
    if score_D.dtype != torch.float32 or score_D.shape != x_BD.shape[-1:]:
        raise ValueError(
            f"a score of {score_D.dtype} {list(score_D.shape)} for {x_BD.shape[-1]} inputs"
        )


def _check_dtype(x_BD: Tensor) -> None:
    if x_BD.dtype not in _DTYPES:
        raise InputError(
            f"the CUDA kernels have no {x_BD.dtype}",
            field="optimizations.larosa",
            mend="They have bfloat16, float16 and float32",
        )


def _check_place(x_BD: Tensor, other: Tensor) -> None:
    if other.device != x_BD.device:
        raise ValueError(f"activations on {x_BD.device} with weights on {other.device}")


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors' one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
