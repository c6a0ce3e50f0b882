"""What an artifact's JSON says: where it comes from, how it was made, what it saves and costs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from optim.artifact_files import FileEntry


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Texts that were read."""

    source: str
    sha256: str
    num_texts: int
    num_bytes: int
    is_cut: bool
    """Whether there was more than was read."""


class TokenCount(_Frozen):
    """The same texts in both vocabularies."""

    num_bytes: int
    base_tokens: int
    tokens: int

    @property
    def saving(self) -> float:
        """Share of the base's tokens that is saved; below 0 it is an inflation."""
        return 1 - self.tokens / self.base_tokens if self.base_tokens else 0.0


class Quality(_Frozen):
    """Bits per byte of the held-out texts, in equal segments of bytes; None where not measured."""

    base: float
    """The untouched model."""
    tuned: float | None
    """The control: the base vocabulary, tuned on the same bytes."""
    adapted: float
    """The new vocabulary before tuning."""
    adapted_tuned: float | None


class Manifest(_Frozen):
    """`adaptivocab.json`: all of an artifact but its tokens and tensors; its sha256 names it."""

    format: Literal[1] = 1
    base: str
    """Fingerprint of the model that it was made from."""
    model_type: str
    settings: dict[str, Any]
    """Of the preparation, as given."""
    mode: Literal["replace", "expand"]
    num_new: int
    num_removed: int
    num_unreachable: int
    """Of the removed: tokens that no text is encoded to."""
    encoding: Literal["native", "patch"]
    method: Literal["merges", "dp", "greedy"]
    longest: int | None
    """Base tokens of a new one, at most; chosen on dev texts where it was left open."""
    dev_tokens: dict[str, int]
    """What was tried for it -> tokens of the dev texts."""
    is_tied: bool
    """Whether input embeddings and head are one matrix."""
    data: Source
    protected: Source | None
    dev: TokenCount
    held_out: TokenCount
    off_domain: TokenCount | None
    """Protected texts that no decision saw."""
    quality: Quality
    segment_bytes: int
    """Of the segments that quality was measured on."""
    measured_bytes: int | None = None
    """Of held-out text that quality was measured on; None before there was a limit: all of it."""
    tuning: dict[str, Any] | None
    """Facts of tuning: steps, bytes and tokens of text, parameters, losses."""
    control: dict[str, Any] | None
    """The same of the control."""
    notes: list[str]
    files: dict[str, FileEntry]
    versions: dict[str, str]
