"""The rotated (or merely transposed) weights of a model, layer by layer, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optim.larosa.architecture import architecture_of, heads_of, layers_of
from optim.larosa.projections import Projection, norm_affine, projection
from optim.larosa.rotation.bases import (
    geometric_mean,
    gram,
    orthogonality_error,
    principal_axes,
    unit_trace,
)
from optim.larosa.rotation.calibration import LayerByLayer
from optim.larosa.rotation.folding import Layer, centred_rows
from optim.larosa.rotation.moments import Moments, Watch
from optim.model import LanguageModel

Tensors = dict[str, Tensor]
ROWS = 8192
"""Rows of a vocabulary that are rotated at once."""


@dataclass(frozen=True)
class Recipe:
    """What is done to a model's weights."""

    rotates: bool = True
    """Rotate the residual stream (where the architecture lets it be absorbed)."""
    moments: tuple[str, ...] = ("h1", "h3")
    """The activations whose principal axes the stream is turned to."""
    rotates_values: bool = True
    """Rotate h2 within each key-value head."""
    weight_aware: bool = True
    """Let the weights that read an activation have their say in its basis and ranking."""
    span: int = 1
    """Neighbouring layers that share a rotation; 0 for all of them."""
    with_magnitudes: bool = False


@dataclass
class Facts:
    """What is known once all layers are written."""

    adapted: list[int] = field(default_factory=list)
    adapter_bytes: int = 0
    orthogonality_error: float = 0.0
    magnitudes: list[dict[str, list[Tensor]]] = field(default_factory=list)
    num_tokens: int = 0


class Rotation:
    """Makes the weights of a sparse model from those of a dense one and calibration sequences."""

    def __init__(
        self,
        lm: LanguageModel,
        recipe: Recipe,
        sequences_NT: Tensor,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.lm, self.recipe, self.on_stage = lm, recipe, on_stage
        self.architecture = architecture_of(lm.model)
        self.heads = heads_of(lm.model)
        self.layers = layers_of(lm.model, self.architecture)
        self.folds = recipe.rotates and self.architecture.rotates_stream
        self.dtype = lm.model.dtype
        self.facts = Facts()
        self._passage = LayerByLayer(lm, sequences_NT)
        self._first: Tensor | None = None  # rotation of the first layer
        self._last: Tensor | None = None  # of the layer that was written last

    def files(self) -> Iterator[tuple[str, Tensors]]:
        """File stems and their tensors, one layer in memory at a time."""
        span = self.recipe.span or len(self.layers)
        for start in range(0, len(self.layers), span):
            group = range(start, min(start + span, len(self.layers)))
            q_DD, value_axes = self._bases(group)
            if q_DD is not None:
                yield from self._boundary(start, q_DD)
                yield f"rotation-{start:05d}", {f"layers.{start}.stream": q_DD.float()}
            for index in group:
                yield f"layers-{index:05d}", self._layer(index, q_DD, value_axes[index - start])
            self._last = q_DD
        if self.folds:
            yield from self._ends()
        if kept := self._kept():
            yield "kept", kept

    def _boundary(self, start: int, q_DD: Tensor) -> Iterator[tuple[str, Tensors]]:
        """The product that brings the stream from one group's basis to the next one's."""
        if self._last is None:
            self._first = q_DD
            return
        adapter = (self._last.T @ q_DD).to(self.dtype)
        self.facts.adapted.append(start - 1)
        self.facts.adapter_bytes += adapter.numel() * adapter.element_size()
        yield f"adapter-{start - 1:05d}", {f"layers.{start - 1}.adapter": adapter}

    # --- bases ---------------------------------------------------------------------------------

    def _bases(self, group: range) -> tuple[Tensor | None, list[Tensor | None]]:
        """The stream's basis of a group of layers, and each layer's bases of its values."""
        total_DD: Tensor | None = None
        value_axes: list[Tensor | None] = []
        for index in group:
            self.on_stage(f"calibrating layer {index + 1} of {len(self.layers)}")
            moments = self._observe(index)
            layer = Layer(self.layers[index], self.architecture, self.heads, folds=self.folds)
            if self.folds:
                for part in self._stream_parts(moments, layer):
                    total_DD = part if total_DD is None else total_DD + part
            value_axes.append(self._value_axes(moments, layer))
        if total_DD is None:
            return None, value_axes
        q_DD = principal_axes(total_DD)
        self._note_error(q_DD)
        return q_DD, value_axes

    def _observe(self, index: int) -> Moments:
        watch = Watch(
            self.architecture,
            self.heads,
            with_magnitudes=self.recipe.with_magnitudes,
            place=f"layer {index}",
        )
        with watch.of(self.layers[index]):
            self._passage.advance(index)
        self.facts.magnitudes.append(watch.moments.magnitudes)
        self.facts.num_tokens = watch.moments.num_tokens
        return watch.moments

    def _stream_parts(self, moments: Moments, layer: Layer) -> Iterator[Tensor]:
        for site in self.architecture.sites():
            if site.name in self.recipe.moments and site.name in moments.inputs:
                own = moments.inputs[site.name]
                if self.recipe.weight_aware:
                    reads = gram(layer.projections[p].weight_ND for p in site.consumers)
                    own = geometric_mean(own, reads)
                yield unit_trace(own)

    def _value_axes(self, moments: Moments, layer: Layer) -> Tensor | None:
        if not self.recipe.rotates_values or moments.heads_GSS is None:
            return None
        own = moments.heads_GSS
        if self.recipe.weight_aware:
            own = geometric_mean(own, layer.value_gram())
        axes = principal_axes(own)
        self._note_error(axes)
        return axes

    def _note_error(self, q: Tensor) -> None:
        error = orthogonality_error(q)
        self.facts.orthogonality_error = max(self.facts.orthogonality_error, error)

    # --- weights -------------------------------------------------------------------------------

    def _layer(self, index: int, q_DD: Tensor | None, value_axes: Tensor | None) -> Tensors:
        layer = Layer(self.layers[index], self.architecture, self.heads, folds=self.folds)
        if q_DD is not None:
            layer.rotate_stream(q_DD)
        if value_axes is not None:
            layer.rotate_values(value_axes)
        tensors: Tensors = {}
        for path, linear in layer.projections.items():
            tensors |= self._named(f"layers.{index}.{path}", linear)
        if self.recipe.weight_aware:
            for site in self.architecture.sites():
                norms = layer.column_norms(site.consumers)
                tensors[f"layers.{index}.{site.name}.score"] = norms.float()
        return tensors

    def _named(self, name: str, linear: Projection) -> Tensors:
        tensors = {f"{name}.weight": linear.weight_ND.T.to(self.dtype).contiguous().cpu()}
        if linear.bias_N is not None:
            tensors[f"{name}.bias"] = linear.bias_N.to(self.dtype).cpu()
        return tensors

    def _ends(self) -> Iterator[tuple[str, Tensors]]:
        """Embeddings in the first layer's basis, the head in the last one's."""
        assert self._first is not None
        assert self._last is not None
        for index, path in enumerate(self.architecture.embeddings):
            table = self.lm.model.get_submodule(path).weight
            assert isinstance(table, Tensor)
            rows = self._by_rows(table.detach(), self._embedded, self._first)
            yield f"embeddings-{index}", {f"embeddings.{index}.weight": rows}
            del rows
        weight_VD, bias_V = projection(self.lm.model, "lm_head")
        norm = self.lm.model.get_submodule(self.architecture.final_norm)
        gain_D, shift_D = norm_affine(norm, self.architecture)
        tensors = {"head.weight": self._by_rows(weight_VD, lambda rows: rows * gain_D, self._last)}
        if shift_D is not None:
            parts = [rows.double() @ shift_D for rows in torch.split(weight_VD, ROWS)]
            shift_V = torch.cat(parts)
            bias_V = shift_V if bias_V is None else bias_V.double() + shift_V
        if bias_V is not None:
            tensors["head.bias"] = bias_V.to(self.dtype).cpu()
        yield "head", tensors

    def _embedded(self, rows_VD: Tensor) -> Tensor:
        return centred_rows(rows_VD) if self.architecture.norm == "layer" else rows_VD

    def _by_rows(
        self, table_VD: Tensor, change: Callable[[Tensor], Tensor], q_DD: Tensor
    ) -> Tensor:
        """`change(table) Q`, some rows at a time: a vocabulary in float64 may not fit."""
        made = torch.empty(table_VD.shape, dtype=self.dtype)
        for start in range(0, table_VD.shape[0], ROWS):
            rows = table_VD[start : start + ROWS].double()
            made[start : start + ROWS] = change(rows) @ q_DD
        return made

    def _kept(self) -> Tensors:
        """What nothing is done to, so that the artifact holds a whole model."""
        replaced = {
            f"{self.architecture.layers}.{index}.{path}"
            for index in range(len(self.layers))
            for site in self.architecture.sites()
            for path in (*site.consumers, *([site.norm] if self.folds and site.norm else []))
        }
        if self.folds:
            replaced |= {*self.architecture.embeddings, self.architecture.final_norm, "lm_head"}
        return {
            f"kept.{name}": parameter.detach().cpu()
            for name, parameter in self.lm.model.named_parameters()
            if name.rpartition(".")[0] not in replaced
        }
