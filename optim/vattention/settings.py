"""How a `vattention` cache is laid out and when it gives memory back."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Choices that change memory and speed, never tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pages: Literal["auto", "base", "huge"] = "auto"
    """Base pages of the system (CPU), huge ones of 2 MiB, or what suits the device. On a CPU huge
    pages are given back faster, hold more that nobody uses, are slower to attend to at long
    contexts, and may change a float32 logit's last bits: their layout is token-major."""
    reclaim: Literal["eager", "deferred"] = "eager"
    """When a sequence ends, give its memory back, or keep it for the next one."""
    deferred_bytes: int = Field(default=64 << 20, ge=0)
    """With deferred reclaim: the most that is kept beyond what live sequences need."""
    budget_bytes: int | None = Field(default=None, gt=0)
    """The most that may be committed at once for full-attention layers; None for no limit. Shared
    prompts count where a sequence maps them, not while they wait for one."""
    pool_bytes: int = Field(default=64 << 20, ge=0)
    """On a GPU: the most memory that nobody uses and that is kept for the next commit, which is
    faster than asking the driver; what is beyond goes back to the driver."""
    look_ahead: int = Field(default=16, ge=0, le=4096)
    """Tokens of every row beyond the current step whose pages are committed, in the background,
    as soon as the next step would find a row without one; 0 for none."""

    @property
    def kept_bytes(self) -> int:
        """The most that is kept beyond what live sequences need."""
        return self.deferred_bytes if self.reclaim == "deferred" else 0
