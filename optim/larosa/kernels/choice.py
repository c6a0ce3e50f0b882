"""The kernels of a device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from optim.errors import InputError


class Kernels(Protocol):
    """What `optim.larosa.kernels.reference` defines, on one kind of device."""

    counts: bool
    """Whether work is done when a call returns, so that it can be counted and timed."""

    def select(self, x_BD: Tensor, k: int, score_D: Tensor | None) -> Tensor: ...

    def above(self, x_BD: Tensor, threshold: float) -> Tensor: ...

    def normalize_select(
        self, x_BD: Tensor, eps: float, k: int | None, score_D: Tensor | None
    ) -> Tensor: ...

    def sparse_linear(
        self, x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None
    ) -> tuple[Tensor, int]:
        """The product, and the rows of `wt_DN` that were read; -1 where that is not known."""
        ...


class CudaKernels:
    """Triton's."""

    counts = False

    def __init__(self) -> None:
        from optim.larosa.kernels import cuda

        cuda.require()
        self.select = cuda.select
        self.above = cuda.above
        self.normalize_select = cuda.normalize_select
        self._linear = cuda.sparse_linear

    def sparse_linear(
        self, x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None
    ) -> tuple[Tensor, int]:
        return self._linear(x_BD, wt_DN, bias_N), -1


class CpuKernels:
    """The compiled library's."""

    counts = True

    def __init__(self) -> None:
        from optim.larosa.kernels import cpu

        cpu.require()
        self.select = cpu.select
        self.above = cpu.above
        self.normalize_select = cpu.normalize_select
        self.sparse_linear = cpu.sparse_linear


_CPU_DTYPES = (torch.float32, torch.bfloat16)


def require_dtype(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The kernels of a device, which have the dtype; InputError where they have not."""
    kernels = kernels_for(device)
    if device.type == "cpu" and dtype not in _CPU_DTYPES:
        raise InputError(
            f"larosa's CPU kernels do not work on {str(dtype).removeprefix('torch.')}",
            field="dtype",
            mend="Use float32 or bfloat16",
        )
    return kernels


def kernels_for(device: torch.device) -> Kernels:
    """The kernels of a device; InputError where there are none, or what they need is missing."""
    if device.type == "cuda":
        return CudaKernels()
    if device.type == "cpu":
        return CpuKernels()
    raise InputError(
        f"larosa has no kernel for {device.type}",
        field="device",
        mend="Use device: cpu or cuda",
    )
