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

from pydantic import ValidationError

from optim.adaptivocab.manifest import Manifest
from optim.adaptivocab.tokens import TOKENS, Tokens
from optim.artifact_files import file_entries, manifest_in, problem_of
from optim.errors import InputError

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
