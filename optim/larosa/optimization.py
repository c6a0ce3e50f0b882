"""`Larosa`: the optimisation that a trial names."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from optim.errors import InputError
from optim.larosa.architecture import architecture_of
from optim.larosa.artifact import Artifact, content, made_from, members, read_manifest
from optim.larosa.kernels.choice import require_dtype
from optim.larosa.preparation import LarosaPreparation
from optim.larosa.sparse.break_even import RowRule, max_rows, place
from optim.larosa.sparse.sparse_model import at_sparsity, selections, sparse_model
from optim.model import LanguageModel

if TYPE_CHECKING:
    from optim.names import Stage
    from optim.optimization import Preparation

_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
_FIELD = "optimizations.larosa"


class Larosa(BaseModel):
    """Rotated activation sparsity: while generating, most activations' weights are not read.

    Approximate: it changes what is computed of a token, not how many tokens a text has. Faster
    where weights are much larger than the cache and few sequences are generated at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    name: ClassVar[str] = "larosa"
    stage: ClassVar[Stage] = "weights"
    preparation: ClassVar[type[Preparation] | None] = LarosaPreparation
    places: ClassVar[frozenset[str]] = frozenset({"artifact"})

    artifact: Annotated[str, Field(min_length=1)]
    """The folder that `optrial prepare larosa` wrote; its variant is chosen there. Or a folder of
    such folders, of which the one that was made from the model at hand is taken."""
    sparsity: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.4
    """Share of the weights of attention and MLP that are not read for a generated token."""
    sparsify_prefill: bool = False
    """Drop activations of prompts, too. By default prompts are computed in full."""
    sparse_rows: Annotated[int, Field(ge=0)] | None = None
    """Most sequences per step that the sparse kernel is used for; above, the same masked
    activations go through a dense product. null: what the artifact says pays."""

    @field_validator("artifact")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute())

    def content(self) -> str:
        """Fingerprint of the artifact; InputError where there is none."""
        return content(Path(self.artifact))

    def notes(self) -> list[str]:
        """What the artifact says of how it was made; of several in a folder, each by its name."""
        found = members(Path(self.artifact))
        said = [(path, note) for path in found for note in read_manifest(path)[0].notes]
        return [note if len(found) == 1 else f"{path.name}: {note}" for path, note in said]

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """The rotated model, sparse while decoding; shares what is unchanged with `lm`.

        Raises InputError where the architecture or the device has no such thing, where the kernels
        are missing, and where the artifact is of another model or a narrower dtype.
        """
        architecture_of(lm.model)
        require_dtype(lm.device, lm.model.dtype)
        artifact = Artifact.open(made_from(Path(self.artifact), lm.identity()))
        self._check_fits(artifact, lm)
        shares, thresholds = at_sparsity(artifact.manifest.levels, self.sparsity)
        made = sparse_model(
            lm,
            artifact,
            selections(artifact, shares, thresholds if self.sparsity else None),
            rule=self._rule(artifact, lm),
            sparsify_prefill=self.sparsify_prefill,
            row_major=place(lm.device, lm.model.dtype) in artifact.manifest.row_major,
        )
        return replace(made, fingerprint=self._fingerprint(lm, artifact))

    def _rule(self, artifact: Artifact, lm: LanguageModel) -> RowRule:
        if self.sparse_rows is not None:
            rows = self.sparse_rows
            return lambda inputs, outputs, share: rows
        return max_rows(artifact.manifest.break_even, place(lm.device, lm.model.dtype))

    def _check_fits(self, artifact: Artifact, lm: LanguageModel) -> None:
        manifest = artifact.manifest
        if manifest.input != lm.identity():
            raise InputError(
                f"was made from another model ({manifest.input[:12]}…, this one is "
                f"{lm.identity()[:12]}…)",
                source=artifact.folder,
                field=f"{_FIELD}.artifact",
                mend="Prepare one for this model: optrial prepare larosa --model MODEL --data DATA "
                "--out OUT",
            )
        own, wanted = getattr(torch, manifest.dtype), lm.model.dtype
        if own != wanted and _DTYPES.index(own) < _DTYPES.index(wanted):
            raise InputError(
                f"holds weights in {manifest.dtype}, and the model is in "
                f"{str(wanted).removeprefix('torch.')}",
                source=artifact.folder,
                field=f"{_FIELD}.artifact",
                mend=f"Prepare it with --dtype {str(wanted).removeprefix('torch.')}",
            )

    def _fingerprint(self, lm: LanguageModel, artifact: Artifact) -> str:
        parts: list[Any] = [lm.identity(), artifact.fingerprint, self.sparsity]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
