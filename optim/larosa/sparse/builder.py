"""A sparse model: a copy of a model's tree with LaRoSA's modules and an artifact's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

from optim import tree
from optim.errors import InputError
from optim.larosa.architecture import Architecture, Site, architecture_of, layers_of
from optim.larosa.kernels.choice import Kernels, kernels_for
from optim.larosa.projections import norm_eps
from optim.larosa.sparse.break_even import RowRule
from optim.larosa.sparse.modules import (
    AdaptedLayer,
    FinalNorm,
    Mask,
    MaskedNorm,
    Meter,
    Phase,
    SparseLinear,
    StreamNorm,
)


@dataclass(frozen=True)
class Selection:
    """What is kept of one site: a number of channels, or what is above a threshold."""

    share: float
    """Of the channels that are dropped (with a threshold: that it was calibrated to drop)."""
    k: int | None = None
    threshold: float | None = None


_PLACED: WeakValueDictionary[Hashable, nn.Parameter] = WeakValueDictionary()
"""What some model holds: configurations that differ in sparsity share their weights."""


class Weights:
    """The tensors of an artifact, by name, in the dtype and on the device of the model.

    `key` names the artifact: of one key, models that are alive share each tensor.
    """

    def __init__(
        self, read: Callable[[str], Tensor], names: frozenset[str], like: Tensor, key: str
    ) -> None:
        self._read, self.names, self._like, self._key = read, names, like, key

    def get(self, name: str) -> nn.Parameter | None:
        """A weight; None where there is none of that name."""
        return self._placed(name, lambda tensor: tensor) if name in self.names else None

    def row_major(self, name: str) -> nn.Parameter:
        """A transposed copy of a weight."""
        return self._placed(name, lambda tensor: tensor.T.contiguous(), "row-major")

    def _placed(
        self, name: str, change: Callable[[Tensor], Tensor], kind: str = ""
    ) -> nn.Parameter:
        device, dtype = self._like.device, self._like.dtype
        place = (self._key, name, kind, device, dtype)
        found = _PLACED.get(place)
        if found is None:
            made = change(self._read(name).to(device, dtype))
            found = _PLACED[place] = nn.Parameter(made, requires_grad=False)
        return found

    def score(self, name: str) -> Tensor | None:
        """What channels are ranked by, float32."""
        return self._read(name).to(self._like.device) if name in self.names else None


@dataclass
class Built:
    """A sparse model and what steers and counts it."""

    model: PreTrainedModel
    phase: Phase
    meter: Meter


class Builder:
    """Puts the pieces together; `max_rows` says which products go through the sparse kernel.

    Where all of a site is kept its projections are dense, unless `forces_kernel` (for measuring).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Weights,
        *,
        folds: bool,
        adapted: frozenset[int],
        selections: list[dict[str, Selection]],
        max_rows: RowRule,
        row_major: bool,
        sparsify_prefill: bool,
        forces_kernel: bool = False,
    ) -> None:
        self.architecture: Architecture = architecture_of(model)
        self.weights = weights
        self.folds, self.adapted, self.selections = folds, adapted, selections
        self.max_rows, self.row_major = max_rows, row_major
        self.forces_kernel = forces_kernel
        self.kernels: Kernels = kernels_for(model.device)
        self.phase = Phase(sparsify_prefill=sparsify_prefill)
        self.meter = Meter(0, None, counts=self.kernels.counts)
        self.model = tree.copied(model)
        self._kept = 0
        self._has_mask = False

    def build(self) -> Built:
        """The new model; the one given is left as it is."""
        layers = layers_of(self.model, self.architecture)
        for index, layer in enumerate(layers):
            self._layer(index, layer)
            if index in self.adapted:
                adapter = self.weights.get(f"layers.{index}.adapter")
                assert adapter is not None, f"the artifact lacks layers.{index}.adapter"
                layers[index] = AdaptedLayer(
                    layer,
                    adapter,
                    kernels=self.kernels,
                    phase=self.phase,
                    max_rows=self._adapter_rows(index, adapter.shape[0]),
                )
        if self.folds:
            self._ends()
        if not any("threshold" in self._kinds(s) for s in self.selections):
            self.meter.planned_sparsity = 1 - self._kept / self.meter.num_weights
        # What it would write loads as a plain model whose weights are random.
        self.model.save_pretrained = _refuse_to_save
        return Built(self.model, self.phase, self.meter)

    @staticmethod
    def _kinds(selections: dict[str, Selection]) -> set[str]:
        return {"k" if chosen.threshold is None else "threshold" for chosen in selections.values()}

    def _layer(self, index: int, layer: nn.Module) -> None:
        for site in self.architecture.sites():
            wts = [self._weight(index, path) for path in site.consumers]
            mask = self._mask(index, site, wts)
            if site.norm is not None:
                norm = layer.get_submodule(site.norm)
                tree.replace(layer, site.norm, self._norm(norm, mask))
            for path, wt_DN in zip(site.consumers, wts, strict=True):
                is_sparse = mask is not None or self.forces_kernel
                share = self.selections[index][site.name].share
                tree.replace(
                    layer,
                    path,
                    SparseLinear(
                        wt_DN,
                        self.weights.get(f"layers.{index}.{path}.bias"),
                        kernels=self.kernels,
                        phase=self.phase,
                        meter=self.meter,
                        mask=mask if site.norm is None else None,
                        max_rows=self.max_rows(wt_DN.shape[0], wt_DN.shape[1], share)
                        if is_sparse
                        else 0,
                        w_ND=self._row_major(index, path),
                    ),
                )

    def _row_major(self, index: int, path: str) -> nn.Parameter | None:
        if not self.row_major:
            return None
        return self.weights.row_major(f"layers.{index}.{path}.weight")

    def _adapter_rows(self, index: int, width: int) -> int:
        """As for a product of which nothing is dropped; none where the whole layer is dense."""
        is_dense = not any(chosen.share for chosen in self.selections[index].values())
        return 0 if is_dense and not self.forces_kernel else self.max_rows(width, width, 0.0)

    def _weight(self, index: int, path: str) -> nn.Parameter:
        wt_DN = self.weights.get(f"layers.{index}.{path}.weight")
        assert wt_DN is not None, f"the artifact lacks layers.{index}.{path}.weight"
        return wt_DN

    def _mask(self, index: int, site: Site, wts: list[nn.Parameter]) -> Mask | None:
        """What selects at a site; None where all is kept."""
        chosen = self.selections[index][site.name]
        num_inputs, num_outputs = wts[0].shape[0], sum(wt.shape[1] for wt in wts)
        self.meter.num_weights += num_inputs * num_outputs
        k = num_inputs if chosen.k is None else chosen.k
        self._kept += k * num_outputs
        if chosen.threshold is None and k >= num_inputs:
            self.meter.unmasked_weights += num_inputs * num_outputs
            return None
        is_first, self._has_mask = not self._has_mask, True
        return Mask(
            self.kernels,
            self.meter,
            num_outputs,
            k=chosen.k,
            threshold=chosen.threshold,
            score_D=self.weights.score(f"layers.{index}.{site.name}.score"),
            counts_tokens=is_first,
        )

    def _norm(self, norm: nn.Module, mask: Mask | None) -> nn.Module:
        if self.folds:
            eps = norm_eps(norm)
            if mask is None:
                return FinalNorm(eps, self.kernels)
            return StreamNorm(eps, mask, self.phase)
        return norm if mask is None else MaskedNorm(norm, mask, self.phase)

    def _ends(self) -> None:
        """Embeddings, final norm and head, which a rotation of the stream changes too."""
        for index, path in enumerate(self.architecture.embeddings):
            table = self.model.get_submodule(path)
            rows = self.weights.get(f"embeddings.{index}.weight")
            assert rows is not None
            table._parameters["weight"] = rows
        norm = self.model.get_submodule(self.architecture.final_norm)
        tree.replace(
            self.model, self.architecture.final_norm, FinalNorm(norm_eps(norm), self.kernels)
        )
        head = self.model.get_submodule("lm_head")
        weight, bias = self.weights.get("head.weight"), self.weights.get("head.bias")
        assert weight is not None
        head._parameters["weight"], head._parameters["bias"] = weight, bias
        config = copy.deepcopy(self.model.config)
        config.tie_word_embeddings = False
        self.model.config = config


def _refuse_to_save(*args: Any, **kwargs: Any) -> NoReturn:
    raise InputError(
        "a sparse model is not saved: its artifact is what was saved",
        field="model",
        mend="Copy the artifact's folder; optim.larosa.auto loads it",
    )
