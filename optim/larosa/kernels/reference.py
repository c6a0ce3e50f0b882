"""What the kernels compute, in plain torch: the definition, for tests and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


def select(x_BD: Tensor, k: int, score_D: Tensor | None = None) -> Tensor:
    """x with all but the `k` entries of each row set to zero that rank highest by |x| * score.

    Exactly k are kept: of equal ranks the one with the lowest index comes first. A NaN ranks above
    all else, so that it is never hidden. `score_D` is float32, and so is the product.
    """
    if k >= x_BD.shape[-1]:
        return x_BD.clone()
    rank_BD = x_BD.float() if score_D is None else x_BD.float() * score_D
    # A sort puts NaN above everything.
    order_BD = torch.sort(rank_BD.abs(), descending=True, stable=True).indices
    kept_BD = torch.zeros_like(x_BD, dtype=torch.bool)
    kept_BD.scatter_(-1, order_BD[..., :k], True)
    return torch.where(kept_BD, x_BD, torch.zeros((), dtype=x_BD.dtype))


def above(x_BD: Tensor, threshold: float) -> Tensor:
    """x with every entry of magnitude up to `threshold` set to zero; a NaN stays."""
    return x_BD.masked_fill(x_BD.float().abs() <= threshold, 0)


def normalize(x_BD: Tensor, eps: float) -> Tensor:
    """Each row over its root mean square, in float32 (RMSNorm without gain)."""
    wide_BD = x_BD.float()
    scale_B1 = torch.rsqrt(wide_BD.pow(2).mean(-1, keepdim=True) + eps)
    return (wide_BD * scale_B1).to(x_BD.dtype)


def sparse_linear(x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`x @ wt + bias` in float64, rounded to x's dtype."""
    y_BN = x_BD.double() @ wt_DN.double()
    return (y_BN if bias_N is None else y_BN + bias_N.double()).to(x_BD.dtype)
