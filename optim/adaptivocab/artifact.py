"""Artifacts on disk: a folder that transformers loads, beside what Optrial knows of it.

```
<out>/adaptivocab.json     the manifest: sources, savings, quality, sha256 of the files
      tokens.json          which tokens are new, and which are gone
      config.json  generation_config.json  model.safetensors
      tokenizer.json  tokenizer_config.json  (patches.json where a patch layer encodes)
      tuned/               the control: the base's vocabulary, tuned on the same text
```
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from optim.adaptivocab.tokenizer.tokens import TOKENS, Tokens
from optim.artifact_files import FileEntry, file_entries, manifest_in, problem_of
from optim.errors import InputError


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


MANIFEST = "adaptivocab.json"
CONTROL = "tuned"
"""The folder of the control within an artifact's."""
FIELD = "optimizations.adaptivocab.artifact"


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files are all there and are the ones that were written."""

    folder: Path
    manifest: Manifest
    fingerprint: str
    """sha256 of the manifest."""

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open an artifact and check its files; InputError where it is not what was written."""
        folder = Path(path).expanduser()
        manifest, fingerprint = read_manifest(folder)
        for name in ("config.json", TOKENS):
            if name not in manifest.files:
                raise _broken(folder / MANIFEST, f"files: lacks {name}")
        for name, entry in manifest.files.items():
            problem = problem_of(folder, name, entry)
            if problem is not None:
                raise _broken(folder / (MANIFEST if problem.startswith("names") else name), problem)
        # transformers reads what it finds: a chat template, say, or a second file of weights.
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name != MANIFEST and name not in manifest.files:
                raise _broken(path, "was not written with the artifact", "Move it elsewhere")
        return cls(folder, manifest, fingerprint)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens that are new and gone."""
        try:
            return Tokens.model_validate_json((self.folder / TOKENS).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise _broken(self.folder / TOKENS, f"{where}: {first['msg']}") from error

    @property
    def control(self) -> Path:
        """The folder of the tuned control; InputError where there is none."""
        if self.manifest.control is None:
            raise InputError(
                "has no tuned control",
                source=self.folder,
                field="optimizations.tuned.artifact",
                mend="Prepare it with --tune and --control",
            )
        return self.folder / CONTROL


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of an artifact and its fingerprint, without a look at the other files."""
    return manifest_in(folder, MANIFEST, Manifest, "adaptivocab")


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write the manifest, with the sizes and sha256 of the files that are there; fingerprint."""
    complete = manifest.model_copy(update={"files": file_entries(folder, MANIFEST)})
    data = complete.model_dump_json(indent=1).encode()
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _broken(path: Path, problem: str, mend: str = "Prepare the artifact again") -> InputError:
    return InputError(problem, source=path, field=FIELD, mend=mend)
