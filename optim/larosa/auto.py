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
from optim.larosa.sparse.break_even import max_rows, place
from optim.larosa.sparse.sparse_model import at_sparsity, selections, sparse_model
from optim.model import DTYPES, wrap

_OF_THE_HUB = frozenset(
    {"adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only",
     "proxies", "revision", "subfolder", "token", "use_auth_token", "_commit_hash"}
)  # fmt: skip
"""What transformers hands on whatever it was called with; an artifact is a local folder."""


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
        *,
        sparsity: float = 0.0,
        sparsify_prefill: bool = False,
        device: str = "cpu",
        config: LarosaConfig | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> Any:
        """The model at a sparsity (0 is exact), in the artifact's dtype, on one device.

        Raises InputError where the folder is no sound artifact or the sparsity is out of range, and
        TypeError for what other models' `from_pretrained` may take and this one does not. Code that
        comes with a model is never run.
        """
        unknown = sorted(others.keys() - _OF_THE_HUB)
        if unknown:
            raise TypeError(f"an artifact of larosa is not loaded with {', '.join(unknown)}")
        if not 0 <= sparsity < 1:
            raise InputError(f"must be from 0 to below 1, got {sparsity}", field="sparsity")
        artifact = Artifact.open(folder)
        config = config or AutoConfig.from_pretrained(folder)
        if not config.base_config:
            raise InputError("its config.json holds no base_config", source=folder, field=FIELD)
        lm = wrap(
            _skeleton(config.base_config, artifact).to(device),
            AutoTokenizer.from_pretrained(folder),
        )
        shares, thresholds = at_sparsity(artifact.manifest.levels, sparsity)
        where = place(lm.device, lm.model.dtype)
        return sparse_model(
            lm,
            artifact,
            selections(artifact, shares, thresholds if sparsity else None),
            rule=max_rows(artifact.manifest.break_even, where),
            sparsify_prefill=sparsify_prefill,
            row_major=where in artifact.manifest.row_major,
        ).model


def _skeleton(base_config: dict[str, Any], artifact: Artifact) -> Any:
    """A model of the original class with what LaRoSA's modules leave as it is."""
    values = dict(base_config)
    base = AutoConfig.for_model(values.pop("model_type"), **values)
    with no_init_weights():
        # Weights that are never filled take no memory, and all of them are replaced.
        made = AutoModelForCausalLM.from_config(base, dtype=DTYPES[artifact.manifest.dtype])
    made.tie_weights()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if f"kept.{name}" in artifact.names:
                parameter.copy_(artifact.read(f"kept.{name}"))
    if (artifact.folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(artifact.folder)
    return made.eval().requires_grad_(False)


AutoConfig.register("larosa", LarosaConfig)
AutoModelForCausalLM.register(LarosaConfig, LarosaForCausalLM)
