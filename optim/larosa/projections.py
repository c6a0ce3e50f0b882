"""A layer's projections as plain matrices, whatever module holds them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optim.larosa.architecture import Architecture


class Projection(NamedTuple):
    """`y = x @ weight.T + bias`, weight [outputs, inputs]."""

    weight_ND: Tensor
    bias_N: Tensor | None

    def to(self, dtype: torch.dtype) -> Projection:
        bias = None if self.bias_N is None else self.bias_N.to(dtype)
        return Projection(self.weight_ND.to(dtype), bias)

    def with_bias(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, a zero one where there is none."""
        if self.bias_N is not None:
            return self.weight_ND, self.bias_N
        return self.weight_ND, self.weight_ND.new_zeros(self.weight_ND.shape[0])


def projection(layer: nn.Module, path: str) -> Projection:
    """The projection at a path, in its own dtype; a view, not a copy."""
    module = layer.get_submodule(path)
    if isinstance(module, Conv1D):
        return Projection(module.weight.detach().T, module.bias.detach())
    assert isinstance(module, nn.Linear), f"{path} is a {type(module).__name__}"
    bias = None if module.bias is None else module.bias.detach()
    return Projection(module.weight.detach(), bias)


def value_rows(architecture: Architecture, num_outputs: int, heads: tuple[int, int, int]) -> Tensor:
    """[key-value heads, head size] indices of the value rows in the projection that makes them.

    That is the last of `attention_inputs`, with `num_outputs` rows.
    """
    _, num_heads, size = heads
    if architecture.values == "interleaved":
        rows = torch.arange(num_heads * 3 * size).view(num_heads, 3, size)
        return rows[:, 2]
    return torch.arange(num_outputs - num_heads * size, num_outputs).view(num_heads, size)


def norm_affine(norm: nn.Module, architecture: Architecture) -> tuple[Tensor, Tensor | None]:
    """A norm's gain [D], and its bias [D] where it has one, in float64."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    bias = getattr(norm, "bias", None)
    gain = weight.detach().double() + architecture.gain_offset
    return gain, None if bias is None else bias.detach().double()


def norm_eps(norm: nn.Module) -> float:
    """What a norm adds to the mean square."""
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise TypeError(f"{type(norm).__name__} has no epsilon")
