"""Second moments of a layer's activations, streamed over a calibration set in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optim.errors import InputError
from optim.larosa.architecture import Architecture, Site
from optim.larosa.projections import norm_eps

NUM_MAGNITUDES = 1 << 18
"""Most magnitudes kept of one site, for quantiles."""


@dataclass
class Moments:
    """Of one layer, over all calibration tokens."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """h1 and h3 -> sum of outer products [D, D] of the norm's output without its gain."""
    heads_GSS: Tensor | None = None
    """h2 -> the same within each key-value head, summed over the query heads that read it."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    """Site -> sum of squares [D] of what its projections read."""
    magnitudes: dict[str, list[Tensor]] = field(default_factory=dict)
    """Site -> samples of the magnitudes of what its projections read."""
    num_tokens: int = 0


Observer = Callable[[str, Tensor], None]


class Watch:
    """Watches the sites of one layer while calibration tokens pass through it."""

    def __init__(
        self,
        architecture: Architecture,
        heads: tuple[int, int, int],
        *,
        with_magnitudes: bool,
        place: str,
    ) -> None:
        self.architecture = architecture
        self.heads = heads
        self.with_magnitudes = with_magnitudes
        self.place = place
        """Which layer, for errors."""
        self.moments = Moments()

    @contextmanager
    def of(self, layer: nn.Module) -> Iterator[None]:
        """Hooks on the layer for as long as the context lasts."""
        handles = []
        for site in self.architecture.sites():
            if site.norm is not None:
                norm = layer.get_submodule(site.norm)
                handles.append(norm.register_forward_pre_hook(self._norm_hook(site, norm)))
            reader = layer.get_submodule(site.consumers[0])
            handles.append(reader.register_forward_pre_hook(self._reader_hook(site)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _norm_hook(self, site: Site, norm: nn.Module) -> Callable[..., None]:
        eps = norm_eps(norm)

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x_TD = inputs[0].detach().flatten(0, -2).double()
            self._require_finite(x_TD, site)
            if self.architecture.norm == "layer":
                x_TD = x_TD - x_TD.mean(-1, keepdim=True)
            x_TD = x_TD * torch.rsqrt(x_TD.pow(2).mean(-1, keepdim=True) + eps)
            _add(self.moments.inputs, site.name, x_TD.T @ x_TD)

        return hook

    def _reader_hook(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x_TD = inputs[0].detach().flatten(0, -2).double()
            self._require_finite(x_TD, site)
            _add(self.moments.squares, site.name, x_TD.pow(2).sum(0))
            if site.name == "h1":
                self.moments.num_tokens += x_TD.shape[0]
            if site.name == "h2":
                self._add_heads(x_TD)
            if self.with_magnitudes:
                kept = self.moments.magnitudes.setdefault(site.name, [])
                kept.append(_sample(x_TD.abs().flatten(), NUM_MAGNITUDES // 16))

        return hook

    def _add_heads(self, x_TD: Tensor) -> None:
        queries, keys, size = self.heads
        grouped = x_TD.view(-1, keys, queries // keys, size).permute(1, 0, 2, 3)
        flat_GXS = grouped.reshape(keys, -1, size)
        added = flat_GXS.transpose(1, 2) @ flat_GXS
        old = self.moments.heads_GSS
        self.moments.heads_GSS = added if old is None else old + added

    def _require_finite(self, x_TD: Tensor, site: Site) -> None:
        if not bool(torch.isfinite(x_TD).all()):
            raise InputError(
                f"activation {site.name} of {self.place} is not finite (NaN or infinite) on the "
                "calibration text",
                field="model",
                mend="Check the weights, or calibrate in another dtype",
            )


def quantile(samples: list[Tensor], share: float) -> float:
    """The magnitude that `share` of a site's activations do not exceed."""
    flat = _sample(torch.cat(samples), NUM_MAGNITUDES)
    rank = round(share * flat.numel())
    return float(torch.kthvalue(flat, max(1, rank)).values) if rank else 0.0


def _sample(flat: Tensor, count: int) -> Tensor:
    """`count` values at most, drawn evenly over all channels; the same ones every time."""
    if flat.numel() <= count:
        return flat.clone()
    generator = torch.Generator().manual_seed(flat.numel())
    # Not every n-th one: n may share a factor with the width, and then channels are left out.
    places = torch.randint(flat.numel(), (count,), generator=generator)
    return flat[places.to(flat.device)]


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
