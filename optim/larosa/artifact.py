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

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optim.artifact_files import FileEntry, manifest_in, problem_of
from optim.errors import InputError
from optim.larosa.architecture import ARCHITECTURES, Architecture
from optim.larosa.manifest import Manifest

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
