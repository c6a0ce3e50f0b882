"""`Meter`: what was skipped, and what choosing it cost, since it was last reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
