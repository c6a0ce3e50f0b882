"""The files that a job is given: what of a folder is uploaded, how much it is, and the upload.

Ray would pack a folder by itself, and leave out whatever .gitignore names, although a trial may
need it: a prepared artifact under `runs/`, a model. Here what is needed goes along in any case.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from optim.errors import InputError

LIMIT_BYTES = 512 << 20
"""Ray refuses packages from this size on."""
IGNORE_FILES = (".gitignore", ".rayignore")
NEVER = (".git/", "__pycache__/", ".venv/", "venv/", ".env", ".env.*")
"""Not even within what is needed: history, what is of this machine only, and secrets."""
UNASKED = (
    *NEVER,
    "runs/",
    "checkpoints/",
    "node_modules/",
    "*.egg-info/",
    ".*_cache/",
    ".cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
)


@dataclass(frozen=True)
class WorkingDirectory:
    """Files of a folder that make up a job's working directory."""

    folder: Path
    sizes: dict[PurePosixPath, int]
    """Bytes of each file, by its place within the folder."""

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def require_it_fits(self) -> None:
        """InputError, with the folders that are large, for more than Ray takes."""
        if self.num_bytes < LIMIT_BYTES:
            return
        largest = self._by_folder().most_common(5)
        shown = ", ".join(f"{name} {mib(size)}" for name, size in largest)
        raise InputError(
            f"the working directory comes to {mib(self.num_bytes)}, and Ray takes less than "
            f"{mib(LIMIT_BYTES)}; the largest: {shown}",
            source=self.folder,
            field="--working-dir",
            mend="Name what is not needed in .rayignore, or put models and data on storage that "
            "all nodes share, and write their absolute places in the spec",
        )

    def _by_folder(self) -> Counter[str]:
        """Bytes by the first two names of each place."""
        found: Counter[str] = Counter()
        for file, size in self.sizes.items():
            found["/".join(file.parts[:2])] += size
        return found

    def pack(self, target: Path) -> None:
        """Write the zip that Ray unpacks on every node; equal files make an equal zip."""
        # Not compressed, as Ray's own: weights do not become smaller, and text is small.
        try:
            with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
                for file in sorted(self.sizes):
                    archive.write(self.folder / file, file)
        except OSError as error:
            raise _cannot_be_uploaded(error, self.folder) from error


def working_directory(folder: Path, needed: Iterable[PurePosixPath] = ()) -> WorkingDirectory:
    """What a job gets of a folder: everything but what is ignored, and all that is `needed`.

    Ignored is what .gitignore and .rayignore say in the folder and below it, and results, caches,
    environments and secrets. RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 ignores no .gitignore, as with Ray.
    `needed` are files and folders within it. Links are followed. InputError for what cannot be
    read.
    """
    sizes: dict[PurePosixPath, int] = {}
    try:
        files = [*_files(folder, PurePosixPath(), [_Rules(PurePosixPath(), UNASKED)], True)]
        for place in needed:
            if (folder / place).is_dir():
                files += _files(folder, place, [_Rules(place, NEVER)], False)
            else:
                files.append(place)
        for file in files:
            _require_text(folder, file)
            with (folder / file).open("rb") as opened:
                sizes[file] = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise _cannot_be_uploaded(error, folder) from error
    return WorkingDirectory(folder, sizes)


def _cannot_be_uploaded(error: OSError, folder: Path) -> InputError:
    return InputError(
        f"cannot be uploaded: {error.strerror or error}",
        source=_shown(error.filename or folder),
        mend="Mend it, or name it in .rayignore",
    )


def _require_text(folder: Path, file: PurePosixPath) -> None:
    """InputError for a name that no zip can hold."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise InputError(
            "cannot be uploaded: its name is not UTF-8",
            source=_shown(folder / file),
            mend="Rename it, or leave it out by a pattern in .rayignore",
        ) from None


def _shown(path: object) -> str:
    """A path as text that can be printed, whatever its bytes."""
    return os.fsencode(str(path)).decode("utf-8", errors="backslashreplace")


class _Rules:
    """Patterns as git has them, relative to a folder."""

    def __init__(self, root: PurePosixPath, patterns: Iterable[str]) -> None:
        self.root, self.spec = root, GitIgnoreSpec.from_lines(patterns)

    def match(self, place: PurePosixPath, is_folder: bool) -> bool:
        text = place.relative_to(self.root).as_posix()
        return self.spec.match_file(f"{text}/" if is_folder else text)


def _files(
    root: Path,
    place: PurePosixPath,
    rules: list[_Rules],
    reads_ignore_files: bool,
    above: tuple[Path, ...] = (),
) -> Iterator[PurePosixPath]:
    """Files below `place`, relative to `root`, that no rule matches."""
    folder = root / place
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that it lies in
    if reads_ignore_files:
        rules = [*rules, *_ignore_rules(folder, place)]
    for entry in sorted(folder.iterdir()):
        inner = place / entry.name
        is_folder = entry.is_dir()
        if any(each.match(inner, is_folder) for each in rules):
            continue
        if is_folder:
            yield from _files(root, inner, rules, reads_ignore_files, (*above, real))
        elif entry.is_file():
            yield inner


def _ignore_rules(folder: Path, place: PurePosixPath) -> Iterator[_Rules]:
    for name in IGNORE_FILES:
        if name == ".gitignore" and os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
            continue
        file = folder / name
        if file.is_file():
            yield _Rules(place, file.read_text(encoding="utf-8", errors="replace").splitlines())


def mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
