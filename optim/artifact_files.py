"""The files of an artifact: written down with size and sha256, and checked against it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from optim.errors import InputError
from optim.models.adapters import require_no_adapter


def require_new(out_dir: Path) -> None:
    """InputError where a folder cannot be put in place in one step, or holds something."""
    if out_dir.is_symlink() or out_dir.is_mount():
        raise InputError(
            "is a link or a mount point, which cannot be put in place in one step",
            source=out_dir,
            field="--out",
            mend="Give a new folder inside it",
        )
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(
            "is there already, and not empty",
            source=out_dir,
            field="--out",
            mend="Choose another folder, or remove this one",
        )


@contextmanager
def beside(out_dir: Path) -> Iterator[Path]:
    """A folder next to the wanted one, which is removed whatever happens."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", source=out_dir, field="--out",
            mend="Choose a place that you may write to",
        ) from error  # fmt: skip
    try:
        yield made
    except InterruptedError:  # An OSError by descent; of whoever wants the work to end.
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be written: {error}", source=out_dir, field="--out",
            mend="See that there is room, or choose another place",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(made, ignore_errors=True)


def publish(folder: Path, out_dir: Path) -> None:
    """Put a finished folder in the wanted place."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the workers' user may be another one
    if out_dir.exists():
        out_dir.rmdir()
    os.replace(folder, out_dir)


ManifestT = TypeVar("ManifestT", bound=BaseModel)

_SHA256: dict[Hashable, str] = {}
"""Of files that were read through by this process, by what would change with them."""


class FileEntry(BaseModel):
    """What a manifest says of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


def sha256_of(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entries(folder: Path, manifest: str) -> dict[str, FileEntry]:
    """Size and sha256 of every file of a folder but the manifest."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            num_bytes=path.stat().st_size, sha256=sha256_of(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != manifest
    }


def problem_of(folder: Path, name: str, entry: FileEntry) -> str | None:
    """What is wrong with a file; None where it is the one that was written."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"names a file outside of its folder: {name!r}"
    if not path.is_file():
        return "is missing"
    found = path.stat()
    # Configurations of one process share an artifact, which may be as large as the model.
    seen = (path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino)
    if found.st_size == entry.num_bytes and _SHA256.get(seen) == entry.sha256:
        return None
    if found.st_size != entry.num_bytes or sha256_of(path) != entry.sha256:
        return "is not the file that was written: its size or sha256 differs"
    _SHA256[seen] = entry.sha256
    return None


def manifest_in(
    folder: Path, file: str, kind: type[ManifestT], optimization: str
) -> tuple[ManifestT, str]:
    """The manifest of an artifact of an optimisation, and its sha256; no other file is looked at.

    InputError where there is none, where it says what a manifest of this kind does not, and where
    an adapter was laid beside it.
    """
    field = f"optimizations.{optimization}.artifact"
    require_no_adapter(folder, field)
    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        found = f"has no {file}" if folder.is_dir() else "is not there"
        raise InputError(
            f"is no artifact of {optimization}: it {found}",
            source=folder,
            field=field,
            mend=f"Make it: optrial prepare {optimization} --model MODEL --data DATA "
            f"--out {folder}",
        ) from error
    try:
        manifest = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: {first['msg']}",
            source=folder / file,
            field=field,
            mend="Prepare the artifact again",
        ) from error
    return manifest, hashlib.sha256(data).hexdigest()
