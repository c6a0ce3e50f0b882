"""The modules that take the place of a model's norms and projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optim.larosa.kernels.choice import Kernels


@dataclass
class Meter:
    """Of one model on one device.

    On a GPU nothing is counted, since that would mean waiting for it: there `sparsity` is the
    planned one, which is exact where channels are chosen by number and unknown by threshold.
    """

    num_weights: int
    """Block-linear weights of the model."""
    planned_sparsity: float | None
    counts: bool
    unmasked_weights: int = 0
    """Those of sites that keep everything."""
    num_tokens: int = 0
    """Tokens that were masked."""
    kept_weights: float = 0.0
    """Sum over those tokens of the masked sites' weights whose input was kept."""
    layer_bytes: int = 0
    """Bytes of weights that masked passes would read if they read all."""
    skipped_bytes: int = 0
    """Bytes of them that were not read."""
    select_s: float = 0.0

    def reset(self) -> None:
        """Start over."""
        self.num_tokens, self.kept_weights, self.select_s = 0, 0.0, 0.0
        self.layer_bytes = self.skipped_bytes = 0

    def facts(self) -> dict[str, Any]:
        """The columns of `cells` that it answers for; null what is not known."""
        if not self.counts:
            sparsity = self.planned_sparsity
            return {
                "sparsity": sparsity, "layer_bytes": None, "skipped_bytes": None, "select_s": None
            }  # fmt: skip
        sparsity = None
        if self.num_tokens:
            kept = self.kept_weights / self.num_tokens + self.unmasked_weights
            sparsity = 1 - kept / self.num_weights
        return {
            "sparsity": sparsity,
            "layer_bytes": self.layer_bytes,
            "skipped_bytes": self.skipped_bytes,
            "select_s": self.select_s,
        }


class Phase:
    """Shared by all modules of one model; says which forward passes are sparse.

    Left alone, a pass over one token per sequence is decoding and any other a prefill, which is
    right for `generate` without speculation. Who knows better says so by `of`.
    """

    def __init__(self, *, sparsify_prefill: bool) -> None:
        self.sparsify_prefill = sparsify_prefill
        self.stated: Literal["prefill", "decode"] | None = None

    @contextmanager
    def of(self, stated: Literal["prefill", "decode"]) -> Iterator[None]:
        before, self.stated = self.stated, stated
        try:
            yield
        finally:
            self.stated = before

    def is_sparse(self, x_BTD: Tensor) -> bool:
        """Whether a pass with these activations [batch, tokens, channels] is masked."""
        if self.sparsify_prefill:
            return True
        if self.stated is not None:
            return self.stated == "decode"
        return x_BTD.shape[-2] == 1


@dataclass
class Mask:
    """What is kept of one site's activations: the `k` largest, or those above a threshold."""

    kernels: Kernels
    meter: Meter
    num_outputs: int
    """Weights that one input channel has, over all projections that read the site."""
    k: int | None = None
    threshold: float | None = None
    score_D: Tensor | None = None
    """Channels are ranked by |x| times this [D, float32]; None ranks by |x|."""
    counts_tokens: bool = False
    """True of one mask of a model: it tells the meter how many tokens there were."""

    def __call__(self, x_BD: Tensor) -> Tensor:
        """x with what is not kept set to zero."""
        # Nothing is timed or counted where nobody asks: a compiled graph admits neither.
        if not self.meter.counts:
            return self._selected(x_BD)
        start = perf_counter()
        return self._noted(self._selected(x_BD), start)

    def normalized(self, x_BD: Tensor, eps: float) -> Tensor:
        """The same of x over its root mean square, in one pass."""
        if not self.meter.counts:
            return self._normalized(x_BD, eps)
        start = perf_counter()
        return self._noted(self._normalized(x_BD, eps), start)

    def _selected(self, x_BD: Tensor) -> Tensor:
        if self.threshold is not None:
            return self.kernels.above(x_BD, self.threshold)
        assert self.k is not None
        return self.kernels.select(x_BD, self.k, self.score_D)

    def _normalized(self, x_BD: Tensor, eps: float) -> Tensor:
        if self.threshold is not None:
            return self.kernels.above(
                self.kernels.normalize_select(x_BD, eps, None, None), self.threshold
            )
        return self.kernels.normalize_select(x_BD, eps, self.k, self.score_D)

    def _noted(self, kept_BD: Tensor, start: float) -> Tensor:
        meter = self.meter
        meter.select_s += perf_counter() - start
        num_rows = kept_BD.numel() // kept_BD.shape[-1]
        if self.k is not None:
            kept = num_rows * min(self.k, kept_BD.shape[-1])
        else:
            kept = int(torch.count_nonzero(kept_BD))
        meter.kept_weights += kept * self.num_outputs
        if self.counts_tokens:
            meter.num_tokens += num_rows
        return kept_BD


class StreamNorm(nn.Module):
    """RMSNorm without a gain, in front of projections that it was folded into."""

    def __init__(self, eps: float, mask: Mask, phase: Phase) -> None:
        super().__init__()
        self.eps, self.mask, self.phase = eps, mask, phase

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.phase.is_sparse(x_BTD):
            return self.mask.normalized(x_BTD, self.eps)
        return self.mask.kernels.normalize_select(x_BTD, self.eps, None, None)


class FinalNorm(nn.Module):
    """RMSNorm without a gain, in front of the head that it was folded into."""

    def __init__(self, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.kernels.normalize_select(x_BTD, self.eps, None, None)


class MaskedNorm(nn.Module):
    """A model's own norm, and a selection of what comes out of it."""

    def __init__(self, norm: nn.Module, mask: Mask, phase: Phase) -> None:
        super().__init__()
        self.norm, self.mask, self.phase = norm, mask, phase

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.norm(x_BTD)
        return self.mask(y_BTD) if self.phase.is_sparse(x_BTD) else y_BTD


class SparseLinear(nn.Module):
    """A projection that does not read the weights of inputs that are zero.

    With a mask it selects from its own input first; without one that has been done before it.
    `max_rows` is the most rows (sequences of a decode step) that the sparse kernel is used for:
    above, the same masked input goes through a dense product. `wt_ND` is a second, row-major copy
    for many rows, where that pays.
    """

    wt_DN: Tensor
    bias_N: Tensor | None
    w_ND: Tensor | None

    def __init__(
        self,
        wt_DN: nn.Parameter,
        bias_N: nn.Parameter | None,
        *,
        kernels: Kernels,
        phase: Phase,
        meter: Meter,
        mask: Mask | None,
        max_rows: int,
        w_ND: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.wt_DN, self.bias_N, self.w_ND = wt_DN, bias_N, w_ND
        self.kernels, self.phase, self.meter, self.mask = kernels, phase, meter, mask
        self.max_rows = max_rows
        self.row_bytes = wt_DN.shape[1] * wt_DN.element_size()

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.phase.is_sparse(x_BTD):
            return self._dense(x_BTD)
        if self.mask is not None:
            x_BTD = self.mask(x_BTD)
        if self.meter.counts:
            self.meter.layer_bytes += self.wt_DN.shape[0] * self.row_bytes
        if x_BTD.numel() > self.max_rows * x_BTD.shape[-1]:
            return self._dense(x_BTD)
        y_BTN, num_read = self.kernels.sparse_linear(x_BTD, self.wt_DN, self.bias_N)
        if num_read >= 0:
            self.meter.skipped_bytes += (self.wt_DN.shape[0] - num_read) * self.row_bytes
        return y_BTN

    def _dense(self, x_BTD: Tensor) -> Tensor:
        if self.w_ND is not None:
            return nn.functional.linear(x_BTD, self.w_ND, self.bias_N)
        y_BTN = x_BTD @ self.wt_DN
        return y_BTN if self.bias_N is None else y_BTN + self.bias_N


class AdaptedLayer(nn.Module):
    """A decoder layer whose output is brought into the next layer's basis: `x @ adapter`.

    While decoding up to `max_rows` rows go through the kernel, which reads all of the adapter, but
    may do so faster.
    """

    def __init__(
        self,
        layer: nn.Module,
        adapter_DD: nn.Parameter,
        *,
        kernels: Kernels,
        phase: Phase,
        max_rows: int,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.adapter_DD = adapter_DD
        self.kernels, self.phase, self.max_rows = kernels, phase, max_rows

    def __getattr__(self, name: str) -> Any:
        # What a model asks its layers for (`attention_type`, …) is still there.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.layer(*args, **kwargs)
        if isinstance(out, tuple):
            return (self._adapted(out[0]), *out[1:])
        return self._adapted(out)

    def _adapted(self, x_BTD: Tensor) -> Tensor:
        is_few = x_BTD.numel() <= self.max_rows * x_BTD.shape[-1]
        if is_few and self.phase.is_sparse(x_BTD):
            return self.kernels.sparse_linear(x_BTD, self.adapter_DD, None)[0]
        return x_BTD @ self.adapter_DD
