"""Orthogonal bases in which few channels carry most of what a layer computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def principal_axes(moments_DD: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix as columns [D, D], largest eigenvalue first, float64.

    Signs are fixed (the largest entry of each column is positive), so that equal input gives equal
    output. Works on stacks [..., D, D].
    """
    ascending: Tensor = torch.linalg.eigh(moments_DD.double()).eigenvectors
    vectors = ascending.flip(-1)
    largest = vectors.abs().argmax(-2, keepdim=True)
    return vectors * torch.sign(vectors.gather(-2, largest))


def unit_trace(part_DD: Tensor) -> Tensor:
    """A matrix, or a stack of them, scaled to trace 1."""
    return part_DD / part_DD.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def geometric_mean(first_DD: Tensor, second_DD: Tensor) -> Tensor:
    """exp((log A + log B) / 2) of two positive semi-definite matrices (stacks of them), trace 1.

    The log-Euclidean mean (Arsigny et al. 2007): with an activation's second moments and the Gram
    matrix of the weights that read it, its axes are large where both are. Directions that are
    empty in one of them count as 1e-7 of its largest.
    """
    logs = []
    for part in (first_DD, second_DD):
        values, vectors = torch.linalg.eigh(part.double())
        floor = values.amax(-1, keepdim=True) * 1e-7
        logs.append((vectors * values.clamp_min(floor).log()[..., None, :]) @ vectors.mT)
    values, vectors = torch.linalg.eigh((logs[0] + logs[1]) / 2)
    return unit_trace((vectors * values.exp()[..., None, :]) @ vectors.mT)


def orthogonality_error(q_DD: Tensor) -> float:
    """Largest entry of |QᵀQ - I|."""
    eye = torch.eye(q_DD.shape[-1], dtype=q_DD.dtype, device=q_DD.device)
    return float((q_DD.transpose(-2, -1) @ q_DD - eye).abs().max())


def gram(weights: Iterable[Tensor]) -> Tensor:
    """Sum of WᵀW [inputs, inputs] in float64: what an error in each input costs the outputs."""
    total: Tensor | None = None
    for weight_ND in weights:
        wide = weight_ND.double()
        own = wide.T @ wide
        total = own if total is None else total + own
    assert total is not None
    return total
