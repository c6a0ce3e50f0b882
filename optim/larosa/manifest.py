"""What an artifact's JSON says: where it comes from, and what to keep at which sparsity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from optim.artifact_files import FileEntry

Variant = Literal["larosa+", "larosa", "topk", "threshold"]


Share = Annotated[float, Field(ge=0, le=1)]
Magnitude = Annotated[float, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Level(_Frozen):
    """The sites' sparsities at one sparsity of the model; lists have one mapping per layer."""

    sparsity: Share
    """Share of the block-linear weights whose input is dropped."""
    sites: list[dict[str, Share]]
    """h1 to h4 -> share of its channels that are dropped."""
    thresholds: list[dict[str, Magnitude]] | None = None
    """h1 to h4 -> magnitude up to which a channel is dropped (variant `threshold`)."""
    shape: str = "uniform"
    """How the sites' shares were found: uniform, or by what search."""
    divergence: float | None = None
    """KL(dense || sparse) per token in nats on text that was held out of the calibration."""


class BreakEven(_Frozen):
    """Up to how many rows the sparse kernel beat a dense product, where it was measured."""

    place: str
    """Kind of device and dtype, such as `cpu float32`."""
    inputs: int
    outputs: int
    share: float
    """Of the inputs that are dropped."""
    max_rows: int


class Calibration(_Frozen):
    """The text that activations were taken from."""

    source: str
    num_sequences: int
    sequence_length: int
    """Tokens."""
    sha256: str
    """Of the token ids."""


class Manifest(_Frozen):
    """`larosa.json`: all of an artifact but its tensors; its sha256 names the artifact."""

    format: Literal[1] = 1
    variant: Variant
    input: str
    """Fingerprint of the model that it was made from."""
    model_type: str
    dtype: Literal["float32", "bfloat16", "float16"]
    span: int
    """Neighbouring layers that share a rotation; 0 for all of them."""
    folds: bool
    """Whether norms' gains (and means) are folded into the weights, and the stream is rotated."""
    adapted: list[int]
    """Layers whose output is brought into the next layer's basis by a product."""
    weight_aware: bool
    calibration: Calibration
    levels: list[Level]
    """By growing sparsity."""
    break_even: list[BreakEven]
    row_major: list[str] = []
    """Places at which a row-major copy of the weights pays for prompts."""
    adapter_bytes: int
    orthogonality_error: float
    """Largest entry of |QᵀQ - I| over all rotations, float64."""
    notes: list[str]
    files: dict[str, FileEntry]
    versions: dict[str, str]
