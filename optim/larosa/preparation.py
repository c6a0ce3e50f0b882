"""`optrial prepare larosa`: from a model and calibration text to an artifact."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from optim.artifact_files import beside, file_entries, publish, require_new
from optim.countdown import Countdown
from optim.larosa.allocation import (
    Allocated,
    Allocation,
    Search,
    num_measures,
    num_published,
    spent,
    uniform,
)
from optim.larosa.architecture import architecture_of
from optim.larosa.artifact import (
    MANIFEST,
    Artifact,
    Calibration,
    Level,
    Manifest,
    Variant,
    save_tensors,
    write_config,
)
from optim.larosa.kernels.choice import require_dtype
from optim.larosa.rotation.calibration import Sequences, cut
from optim.larosa.rotation.held_out import HeldOut
from optim.larosa.rotation.moments import quantile
from optim.larosa.rotation.rotated_weights import Facts, Recipe, Rotation
from optim.larosa.sparse import break_even
from optim.model import LanguageModel
from optim.resources import Resources

OnStage = Callable[[str], None]

RECIPES: dict[Variant, Recipe] = {
    "larosa+": Recipe(),
    "larosa": Recipe(moments=("h1",), rotates_values=False, weight_aware=False),
    "topk": Recipe(rotates=False, rotates_values=False, weight_aware=False),
    "threshold": Recipe(
        rotates=False, rotates_values=False, weight_aware=False, with_magnitudes=True
    ),
}


class LarosaPreparation(BaseModel):
    """How an artifact is made. The corpus is the calibration text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    name: ClassVar[str] = "larosa"
    paths: ClassVar[frozenset[str]] = frozenset()
    quick: ClassVar[dict[str, object]] = {
        "sequences": 8,
        "tokens": 512,
        "held_out": 1,
        "allocation": "sites",
    }
    """Settings for a first look."""
    quick_costs: ClassVar[str] = (
        "on the demo's model it loses 0.008 bits per byte at 40 %, a full one 0.005"
    )

    variant: Variant = "larosa+"
    """larosa+: ours. larosa: as published. topk: no rotation. threshold: no rotation, a fixed
    threshold instead of a fixed number (TEAL)."""
    span: Annotated[int, Field(ge=0)] = 1
    """Neighbouring layers that share a rotation; between two that do not stands one dense product
    of the model's width. 0: one rotation for all layers, and no product."""
    sequences: Annotated[int, Field(ge=1)] = 16
    """Sequences to calibrate with."""
    tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens of each, at most the model's context."""
    held_out: Annotated[int, Field(ge=0)] = 4
    """More sequences, held out, on which it is found out how to share the sparsity among the
    sites; 0 drops the same share everywhere."""
    levels: tuple[Annotated[float, Field(gt=0, le=0.9)], ...] = (0.25, 0.4, 0.5, 0.65)
    """Sparsities that are searched; between them, shares are interpolated."""
    allocation: Allocated = "layers"
    """How `larosa+` shares the sparsity out, by what dropping costs on held-out text. layers: by
    site and layer, which measures every layer. sites: by site. even: the same everywhere."""
    break_even: bool = True
    """Measure on this machine from how many rows on a dense product is faster."""

    @field_validator("levels")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("give one sparsity or more")
        return tuple(sorted(set(value)))

    def run(
        self,
        lm: LanguageModel,
        corpus: Iterable[str],
        out_dir: Path,
        *,
        source: str,
        on_stage: OnStage = lambda stage: None,
        resources: Resources | None = None,
    ) -> str:
        """Write the artifact and return its fingerprint; nothing is left behind by a failure.

        `source` says where the corpus came from. Raises InputError where the architecture is not
        known, the text is too short, an activation is not finite, or `out_dir` is not empty.
        """
        architecture_of(lm.model)
        require_dtype(lm.device, lm.model.dtype)
        require_new(out_dir)
        on_stage("reading the calibration text")
        text = cut(
            lm,
            corpus,
            self.sequences,
            self.tokens,
            max(1, self.held_out),
        )
        with beside(out_dir) as folder:
            facts, folds = self._write_weights(lm, text.calibration_NT, folder, on_stage)
            draft = self._draft(lm, text, facts, folds, source)
            write_manifest(folder, draft)
            levels = self._levels(lm, folder, facts, text, on_stage)
            finished = draft.model_copy(
                update={"levels": levels, **self._timings(lm, folder, on_stage)}
            )
            write_manifest(folder, finished)
            fingerprint = Artifact.open(folder).fingerprint
            publish(folder, out_dir)
        return fingerprint

    def forward_tokens(self, num_layers: int, context: int | None, corpus_bytes: int) -> int:
        """About how many tokens pass through the whole model, which is what takes the time."""
        length = min(self.tokens, context or self.tokens)
        sizes = [dict.fromkeys(("h1", "h2", "h3", "h4"), 1)] * num_layers
        measured = self.held_out * length * (1 + self._num_measures(sizes))
        return self.sequences * length + measured

    def _num_measures(self, sizes: Sequence[Mapping[str, int]]) -> int:
        if not self._searches:
            return 0
        if self.variant == "larosa":
            return num_published(sizes, self.levels)
        return num_measures(sizes, self.levels, self.allocation)

    @property
    def _searches(self) -> bool:
        by_cost = self.variant == "larosa" or (
            self.variant == "larosa+" and self.allocation != "even"
        )
        return by_cost and self.held_out > 0

    @property
    def recipe(self) -> Recipe:
        """What is done to the weights."""
        return replace(RECIPES[self.variant], span=self.span)

    def _write_weights(
        self, lm: LanguageModel, calibration_NT: Tensor, folder: Path, on_stage: OnStage
    ) -> tuple[Facts, bool]:
        rotation = Rotation(lm, self.recipe, calibration_NT, on_stage)
        for stem, tensors in rotation.files():
            save_tensors(folder / f"{stem}.safetensors", tensors)
        write_config(folder, lm.model.config.to_dict())
        lm.tokenizer.save_pretrained(folder)
        if lm.model.generation_config is not None:
            lm.model.generation_config.save_pretrained(folder)
        return rotation.facts, rotation.folds

    def _draft(
        self, lm: LanguageModel, text: Sequences, facts: Facts, folds: bool, source: str
    ) -> Manifest:
        architecture = architecture_of(lm.model)
        has_note = self.recipe.rotates and architecture.note
        return Manifest(
            variant=self.variant,
            input=lm.identity(),
            model_type=lm.model.config.model_type,
            dtype=str(lm.model.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            span=self.span,
            folds=folds,
            adapted=facts.adapted,
            weight_aware=self.recipe.weight_aware,
            calibration=Calibration(
                source=source,
                num_sequences=text.calibration_NT.shape[0],
                sequence_length=text.calibration_NT.shape[1],
                sha256=text.sha256,
            ),
            levels=[],
            break_even=[],
            adapter_bytes=facts.adapter_bytes,
            orthogonality_error=facts.orthogonality_error,
            notes=[architecture.note] if has_note else [],
            files={},
            versions={
                name: importlib.metadata.version(name)
                for name in ("optrial", "torch", "transformers")
            },
        )

    # --- sparsities ----------------------------------------------------------------------------

    def _levels(
        self, lm: LanguageModel, folder: Path, facts: Facts, text: Sequences, on_stage: OnStage
    ) -> list[Level]:
        artifact = Artifact.open(folder, check=False)
        sizes = artifact.sizes()
        countdown = Countdown(self._num_measures(sizes), on_stage)
        if countdown.num_steps:
            on_stage(
                f"sharing out the sparsity: {countdown.num_steps} measurements on "
                f"{text.held_out_NT.numel():,} held-out tokens each"
            )
        search = Search(sizes, HeldOut(lm, artifact, text.held_out_NT).divergence, countdown)
        found = []
        for level in self.levels:
            thresholds = None
            if self.variant == "threshold":
                chosen = Allocation(uniform(sizes, level), None, "uniform")
                thresholds = [
                    {site: quantile(kept, level) for site, kept in layer.items()}
                    for layer in facts.magnitudes
                ]
            elif not self._searches:
                chosen = Allocation(uniform(sizes, level), None, "uniform")
            elif self.variant == "larosa":
                chosen = search.published(level)
            else:
                chosen = search.best(level, self.allocation)
            found.append(
                Level(
                    sparsity=spent(sizes, chosen.shares),
                    sites=chosen.shares,
                    thresholds=thresholds,
                    shape=chosen.shape,
                    divergence=chosen.cost,
                )
            )
        return found

    def _timings(self, lm: LanguageModel, folder: Path, on_stage: OnStage) -> dict[str, object]:
        if not self.break_even:
            return {}
        artifact = Artifact.open(folder, check=False)
        paths = [path for site in artifact.architecture.sites() for path in site.consumers]
        shapes = {artifact.shape(0, path) for path in paths}
        if artifact.manifest.adapted:
            width = artifact.width(0, "h1")
            shapes.add((width, width))
        num_weights = sum(sum(layer.values()) for layer in artifact.sizes())
        table = break_even.measure(
            shapes, lm.model.dtype, lm.device, num_weights * lm.model.dtype.itemsize, on_stage
        )
        largest = max(shapes, key=math.prod)
        pays = break_even.row_major_pays(largest, lm.model.dtype, lm.device)
        place = break_even.place(lm.device, lm.model.dtype)
        return {"break_even": table, "row_major": [place] if pays else []}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with the sizes and sha256 of the files that are there."""
    complete = manifest.model_copy(update={"files": file_entries(folder, MANIFEST)})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=1), encoding="utf-8")
