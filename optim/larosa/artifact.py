"""Artifacts on disk: a folder of safetensors, `larosa.json`, and a config for transformers.

```
<out>/larosa.json                         the manifest: sources, sparsities, sha256 of the files
      config.json                         model_type `larosa`, with the original config inside
      layers-00000.safetensors …          input-channel-major weights, a file per layer
      embeddings-0, head.safetensors      vocabulary and head, where the stream is rotated
      kept.safetensors                    what nothing is done to
      rotation-00000.safetensors …        the orthogonal matrices, for who wants to check them
      tokenizer.json …                    the tokenizer, unchanged
```

Weights are mapped, not read: a worker's memory holds what it touches, and the workers of a node
share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optim.artifact_files import FileEntry, manifest_in, problem_of
from optim.errors import InputError
from optim.larosa.architecture import ARCHITECTURES, Architecture


def members(folder: Path) -> list[Path]:
    """The artifacts in a folder, by name; the folder itself where it is one, or is nothing."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) or [folder]


def content(folder: Path) -> str:
    """What names an artifact, or all those in a folder; InputError where there is none."""
    found = [read_manifest(path)[1] for path in members(folder)]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()


def made_from(folder: Path, identity: str) -> Path:
    """The artifact in a folder that was made from a model.

    A folder that is an artifact itself is given as it is. InputError where there is no such one.
    """
    found = members(folder)
    if len(found) == 1:
        return found[0]
    inputs = {path: read_manifest(path)[0].input for path in found}
    for path, made_of in inputs.items():
        if made_of == identity:
            return path
    listed = ", ".join(f"{path.name} from {made_of[:12]}…" for path, made_of in inputs.items())
    raise InputError(
        f"none of its artifacts was made from this model, {identity[:12]}… ({listed})",
        source=folder,
        field=FIELD,
        mend=f"Add one: optrial prepare larosa --model MODEL --data DATA --out {folder}/NAME",
    )


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


MANIFEST = "larosa.json"
FIELD = "optimizations.larosa.artifact"


class Artifact:
    """An artifact that was opened: its files are all there and are the ones that were written."""

    def __init__(self, folder: Path, manifest: Manifest, fingerprint: str) -> None:
        self.folder, self.manifest, self.fingerprint = folder, manifest, fingerprint
        names = [n for n in manifest.files if n.endswith(".safetensors")]
        files: list[Any] = [safe_open(folder / n, framework="pt", device="cpu") for n in names]
        self._place = {key: file for file in files for key in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> frozenset[str]:
        """Names of its tensors."""
        return frozenset(self._place)

    def read(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        tensor: Tensor = self._place[name].get_tensor(name)
        return tensor

    @property
    def architecture(self) -> Architecture:
        """Where its weights belong."""
        return ARCHITECTURES[self.manifest.model_type]

    def shape(self, layer: int, path: str) -> tuple[int, int]:
        """[inputs, outputs] of a projection."""
        name = f"layers.{layer}.{path}.weight"
        inputs, outputs = self._place[name].get_slice(name).get_shape()
        return inputs, outputs

    def width(self, layer: int, site: str) -> int:
        """Channels of a site."""
        path = next(s.consumers[0] for s in self.architecture.sites() if s.name == site)
        return self.shape(layer, path)[0]

    def sizes(self) -> list[dict[str, int]]:
        """Per layer: site -> weights that it feeds."""
        num_layers = len({n.split(".")[1] for n in self.names if n.startswith("layers.")})
        return [
            {
                site.name: sum(math.prod(self.shape(layer, path)) for path in site.consumers)
                for site in self.architecture.sites()
            }
            for layer in range(num_layers)
        ]

    @classmethod
    def open(cls, path: str | Path, *, check: bool = True) -> Artifact:
        """Open an artifact and check its files; InputError where it is not what was written."""
        folder = Path(path).expanduser()
        manifest, fingerprint = read_manifest(folder)
        if manifest.model_type not in ARCHITECTURES:
            raise _broken(folder / MANIFEST, f"model_type: {manifest.model_type!r} is not known")
        for name, entry in manifest.files.items() if check else ():
            _check_file(folder, name, entry)
        try:
            made = cls(folder, manifest, fingerprint)
        except (SafetensorError, OSError) as error:
            raise _broken(folder, f"cannot be read: {error}") from error
        if check:
            made.require_whole()
        return made

    def require_whole(self) -> None:
        """InputError where a tensor or a layer's shares are missing, or levels are out of order."""
        manifest = self.manifest
        layers = sorted({int(n.split(".")[1]) for n in self.names if n.startswith("layers.")})
        wanted = {f"layers.{i}.adapter" for i in manifest.adapted}
        for site in self.architecture.sites():
            wanted |= {f"layers.{i}.{path}.weight" for i in layers for path in site.consumers}
        if manifest.folds:
            wanted |= {"head.weight"}
            wanted |= {f"embeddings.{i}.weight" for i in range(len(self.architecture.embeddings))}
        missing = sorted(wanted - self.names)
        if missing or not layers:
            raise _broken(self.folder, f"lacks the tensor {missing[0] if missing else 'layers.0'}")
        if manifest.folds != ("head.weight" in self.names):
            raise _broken(self.folder / MANIFEST, "folds: its tensors say otherwise")
        self._require_levels(len(layers))

    def _require_levels(self, num_layers: int) -> None:
        levels, place = self.manifest.levels, self.folder / MANIFEST
        values = [level.sparsity for level in levels]
        if not values or values != sorted(values):
            raise _broken(place, "levels: there are none, or not by growing sparsity")
        sites = sorted(site.name for site in self.architecture.sites())
        for shares in (s for level in levels for s in (level.sites, level.thresholds) if s):
            if [sorted(own) for own in shares] != [sites] * num_layers:
                raise _broken(place, "levels: not one share for each layer and site")


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of an artifact and its fingerprint, without a look at the other files."""
    return manifest_in(folder, MANIFEST, Manifest, "larosa")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    problem = problem_of(folder, name, entry)
    if problem is not None:
        is_outside = problem.startswith("names")
        raise _broken(folder / (MANIFEST if is_outside else name), problem)


def _broken(path: Path, problem: str) -> InputError:
    return InputError(problem, source=path, field=FIELD, mend="Prepare the artifact again")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file of contiguous tensors."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_config(folder: Path, base: Mapping[str, Any]) -> None:
    """The config that transformers reads, with the original model's inside."""
    config = {
        "model_type": "larosa",
        "architectures": ["LarosaForCausalLM"],
        "base_config": dict(base),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
