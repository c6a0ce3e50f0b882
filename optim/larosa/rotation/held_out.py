"""What an allocation of sparsity costs, on text that was held out of the calibration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optim.errors import InputError
from optim.larosa.allocation import Shares
from optim.larosa.artifact import Artifact
from optim.larosa.rotation.calibration import divergence
from optim.larosa.sparse.sparse_model import selections, sparse_model
from optim.model import LanguageModel

MOST_LOGITS = 64 << 20
"""Logits of the dense model that are kept for comparison, over all held-out sequences."""


class HeldOut:
    """Measures allocations on held-out text, every token masked."""

    def __init__(self, lm: LanguageModel, artifact: Artifact, held_out_NT: Tensor) -> None:
        self.lm, self.artifact, self.held_out_NT = lm, artifact, held_out_NT
        size = lm.model.get_output_embeddings().weight.shape[0]
        num_kept = max(1, MOST_LOGITS // (size * len(held_out_NT)))
        step = -(-held_out_NT.shape[1] // num_kept)
        self._places_T = torch.arange(0, held_out_NT.shape[1], step, device=lm.device)
        self._dense: list[Tensor] | None = None
        self._sparse: LanguageModel | None = None

    def divergence(self, shares: Shares) -> float:
        """Mean KL(dense || sparse) per token, nats."""
        if self._dense is None:
            self._dense = [
                torch.log_softmax(self._logits(self.lm, index).float(), -1)
                for index in range(len(self.held_out_NT))
            ]
        # Kept, so that the next one finds its weights in place.
        self._sparse = sparse = sparse_model(
            self.lm,
            self.artifact,
            selections(self.artifact, shares),
            rule=lambda inputs, outputs, share: 0,
            sparsify_prefill=True,
        )
        found = divergence(self._dense, lambda index: self._logits(sparse, index))
        if not math.isfinite(found):
            raise InputError(
                "its logits are not finite (NaN or infinite) on the held-out text",
                field="model",
                mend="Check the weights, or prepare in another dtype",
            )
        return found

    def _logits(self, lm: LanguageModel, index: int) -> Tensor:
        with torch.inference_mode():
            row_1T = self.held_out_NT[index][None].to(lm.device)
            out = lm.model(input_ids=row_1T, use_cache=False, logits_to_keep=self._places_T)
            logits_TV: Tensor = out.logits[0]
            return logits_TV
