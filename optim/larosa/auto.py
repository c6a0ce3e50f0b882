"""Artifacts as transformers models: `AutoModelForCausalLM.from_pretrained(folder, sparsity=0.4)`.

Importing this module teaches transformers the model type `larosa`; without it, transformers refuses
an artifact by name rather than reading rotated weights as if they were plain ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights

from optim.errors import InputError
from optim.larosa.artifact import FIELD, Artifact
from optim.larosa.break_even import max_rows
from optim.larosa.sparse_model import at_sparsity, selections, sparse_model
from optim.model import DTYPES, wrap


class LarosaConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config of an artifact: the original model's, inside."""

    model_type = "larosa"

    def __init__(self, base_config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.base_config = base_config
        super().__init__(**kwargs)


class LarosaForCausalLM:
    """Makes the model of an artifact: one of the original class with other modules in it."""

    config_class = LarosaConfig

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *args: Any,
        sparsity: float = 0.0,
        sparsify_prefill: bool = False,
        device: str = "cpu",
        **kwargs: Any,
    ) -> Any:
        """The model at a sparsity (0 is exact), in the artifact's dtype, on one device.

        Raises InputError where the folder is no sound artifact or the sparsity is out of range.
        """
        if not 0 <= sparsity < 1:
            raise InputError(f"must be from 0 to below 1, got {sparsity}", field="sparsity")
        artifact = Artifact.open(folder)
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(folder)
        if not config.base_config:
            raise InputError("its config.json holds no base_config", source=folder, field=FIELD)
        values = dict(config.base_config)
        base = AutoConfig.for_model(values.pop("model_type"), **values)
        dtype = DTYPES[artifact.manifest.dtype]
        with no_init_weights():
            # Weights that are never filled take no memory, and all of them are replaced.
            skeleton = AutoModelForCausalLM.from_config(base, dtype=dtype)
        skeleton.tie_weights()
        if (Path(folder) / "generation_config.json").is_file():
            skeleton.generation_config = GenerationConfig.from_pretrained(folder)
        lm = wrap(_loaded(skeleton, artifact).to(device), AutoTokenizer.from_pretrained(folder))
        shares, thresholds = at_sparsity(artifact.manifest.levels, sparsity)
        made = sparse_model(
            lm,
            artifact,
            selections(artifact, shares, thresholds if sparsity else None),
            rule=max_rows(artifact.manifest.break_even, lm.device.type, artifact.manifest.dtype),
            sparsify_prefill=sparsify_prefill,
            row_major=artifact.manifest.row_major,
        )
        return made.model


def _loaded(skeleton: Any, artifact: Artifact) -> Any:
    """The skeleton with the tensors that LaRoSA's modules leave as they are."""
    with torch.no_grad():
        for name, parameter in skeleton.named_parameters():
            if f"kept.{name}" in artifact.names:
                parameter.copy_(artifact.read(f"kept.{name}"))
    return skeleton.eval().requires_grad_(False)


AutoConfig.register("larosa", LarosaConfig)
AutoModelForCausalLM.register(LarosaConfig, LarosaForCausalLM)
