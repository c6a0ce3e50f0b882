"""Gains, means and rotations folded into the weights of one layer, exactly (float64).

Conventions: a row vector x of the residual stream becomes x Q. A projection that reads it becomes
W Q, one that writes it QᵀW, an embedding table E Q. After SliceGPT (Ashkboos et al. 2024), section
3, for LayerNorm: the mean is taken out of what writes the stream, so that the norm is an RMSNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optim.larosa.architecture import Architecture
from optim.larosa.projections import Projection, norm_affine, projection, value_rows


class Layer:
    """The projections of one layer in float64; with `folds`, gains and means folded in."""

    def __init__(
        self,
        layer: nn.Module,
        architecture: Architecture,
        heads: tuple[int, int, int],
        *,
        folds: bool,
    ) -> None:
        self.architecture = architecture
        self.heads = heads
        self.projections: dict[str, Projection] = {}
        for site in architecture.sites():
            for path in site.consumers:
                self.projections[path] = projection(layer, path).to(torch.float64)
        if not folds:
            return
        for site in architecture.sites():
            if site.norm is not None:
                gain, bias = norm_affine(layer.get_submodule(site.norm), architecture)
                for path in site.consumers:
                    self.projections[path] = folded(self.projections[path], gain, bias)
        if architecture.norm == "layer":
            for path in (architecture.attention_output, architecture.mlp_output):
                self.projections[path] = centred(self.projections[path])

    def rotate_stream(self, q_DD: Tensor) -> None:
        """Q on what reads the residual stream, Qᵀ on what writes it."""
        for site in self.architecture.sites():
            if site.norm is not None:
                for path in site.consumers:
                    weight, bias = self.projections[path]
                    self.projections[path] = Projection(weight @ q_DD, bias)
        for path in (self.architecture.attention_output, self.architecture.mlp_output):
            weight, bias = self.projections[path]
            self.projections[path] = Projection(
                q_DD.T @ weight, None if bias is None else bias @ q_DD
            )

    def rotate_values(self, r_GSS: Tensor) -> None:
        """One orthogonal R per key-value head, into the value rows and the output's columns."""
        queries, keys, size = self.heads
        path = self.architecture.attention_inputs[-1]
        weight, bias = self.projections[path]
        rows = value_rows(self.architecture, weight.shape[0], self.heads).to(weight.device)
        weight = weight.clone()
        weight[rows] = r_GSS.transpose(1, 2) @ weight[rows]
        if bias is not None:
            bias = bias.clone()
            bias[rows] = (r_GSS.transpose(1, 2) @ bias[rows].unsqueeze(-1)).squeeze(-1)
        self.projections[path] = Projection(weight, bias)
        path = self.architecture.attention_output
        weight, bias = self.projections[path]
        per_head = weight.view(weight.shape[0], keys, queries // keys, size)
        turned = torch.einsum("ngqs,gst->ngqt", per_head, r_GSS)
        self.projections[path] = Projection(turned.reshape(weight.shape), bias)

    def value_gram(self) -> Tensor:
        """Per key-value head, the sum over its query heads of WᵀW of the output's columns."""
        queries, keys, size = self.heads
        weight, _ = self.projections[self.architecture.attention_output]
        per_head = weight.view(weight.shape[0], keys, queries // keys, size)
        return torch.einsum("ngqs,ngqt->gst", per_head, per_head)

    def column_norms(self, paths: tuple[str, ...]) -> Tensor:
        """Per input, the norm of its weights over all projections that read it [D]."""
        squares = [self.projections[path].weight_ND.pow(2).sum(0) for path in paths]
        return torch.stack(squares).sum(0).sqrt()


def folded(linear: Projection, gain_D: Tensor, bias_D: Tensor | None) -> Projection:
    """A projection that reads a norm's output without its gain and bias."""
    if bias_D is None:
        return Projection(linear.weight_ND * gain_D, linear.bias_N)
    weight, bias = linear.with_bias()
    return Projection(weight * gain_D, bias + weight @ bias_D)


def centred(linear: Projection) -> Projection:
    """A projection whose output has mean zero: what a LayerNorm would take off anyway."""
    weight, bias = linear
    weight = weight - weight.mean(0, keepdim=True)
    return Projection(weight, None if bias is None else bias - bias.mean())


def centred_rows(table_VD: Tensor) -> Tensor:
    """An embedding table whose rows have mean zero."""
    return table_VD - table_VD.mean(-1, keepdim=True)
