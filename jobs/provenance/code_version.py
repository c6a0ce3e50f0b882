"""Which code makes outputs: a digest of every source file that decides them, and its libraries.

It is kept with a trial and no part of cell keys: rows that two versions made lie in one trial only
where somebody accepted that, and then the report says so.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import cluster
import optim
from cluster.plan import SCHEMA_VERSION, Plan, digest

DECISIVE_PACKAGES = ("torch", "transformers", "tokenizers")
"""Libraries that compute outputs; the others move them."""
_SOURCES = ("*.py", "*.c", "*.h")
_ROOT = "cluster.worker.worker"
_UNDECISIVE = (
    "cluster.results.results",
    "cluster.storage",
    "cluster.telemetry",
    "cluster.worker.node_cache",
)
"""Packages and modules that a worker imports and that decide no output, nor does what they import:
how rows are kept, and told of."""
LAYOUT = 2
"""Of the source files: names of another layout say nothing of what the files of this one hold."""


class Code(BaseModel):
    """The code of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    """Of the package."""
    schema_version: int
    files: dict[str, str]
    """Source file -> the start of its sha256; a third party's optimisation by its module's name."""
    packages: dict[str, str]
    layout: int = 1
    """How the files are laid out."""

    @property
    def digest(self) -> str:
        layout = [] if self.layout == 1 else [self.layout]
        return digest([self.version, self.schema_version, self.files, self.packages, *layout])

    @property
    def name(self) -> str:
        """Version and digest, as a report says it."""
        return f"{self.version} ({self.digest[:8]})"


def present_code(plan: Plan) -> Code:
    """The code that would run the plan here and now."""
    return Code(
        version=package_version("optrial") or "unknown",
        schema_version=SCHEMA_VERSION,
        files=dict(_own_files()) | dict(_third_party(plan)),
        packages={name: package_version(name) or "absent" for name in DECISIVE_PACKAGES},
        layout=LAYOUT,
    )


def code_differences(old: Code | None, new: Code) -> list[str]:
    """What differs, one line each; empty where the code is the same. None is unknown."""
    if old is None:
        return ["the code: that which made the rows was not recorded"]
    lines = []
    for what, before, after in (
        ("the version of Optrial", old.version, new.version),
        ("the version of its files", old.schema_version, new.schema_version),
        *(
            (f"the version of {name}", old.packages.get(name, "absent"), new.packages[name])
            for name in new.packages
        ),
    ):
        if before != after:
            lines.append(f"{what}: {before} -> {after}")
    if old.layout != new.layout:
        lines.append("the code: its files lie elsewhere now, so they cannot be compared one by one")
        return lines
    files = [
        name
        for name in sorted({*old.files, *new.files})
        if old.files.get(name) != new.files.get(name)
    ]
    if files:
        more = f" and {len(files) - 6} more" if len(files) > 6 else ""
        lines.append(f"the code: {', '.join(files[:6])}{more}")
    return lines


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _own_files() -> tuple[tuple[str, str], ...]:
    """Of this package, as they were when it was first asked for."""
    return tuple((name, _hash(path)) for name, path in sorted(decisive_sources()))


def decisive_sources() -> Iterator[tuple[str, Path]]:
    """All of `optim`, and the modules of `cluster` that a worker is made of."""
    folder = Path(inspect.getfile(optim)).parent
    for pattern in _SOURCES:
        for path in folder.rglob(pattern):
            yield f"optim/{path.relative_to(folder).as_posix()}", path
    around = Path(inspect.getfile(cluster)).parents[1]
    for path in _imported(around, _ROOT):
        yield path.relative_to(around).as_posix(), path


def _imported(around: Path, root: str) -> set[Path]:
    """The file of a module of `cluster`, and those of all that it imports of it, near and far, but
    for what is `_UNDECISIVE`."""
    found: set[Path] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        path = _file(around, name)
        if path is None or path in found or _decides_nothing(name):
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [each.name for each in node.names]
    assert found, "the worker's own module was not found"
    return found


def _file(around: Path, module: str) -> Path | None:
    """Of a module of `cluster`; None for other packages, and for what is no module."""
    if module.partition(".")[0] != "cluster":
        return None
    place = around.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _decides_nothing(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in _UNDECISIVE)


def _third_party(plan: Plan) -> Iterator[tuple[str, str]]:
    """The modules of optimisations that come from elsewhere."""
    from optim.registry import optimization

    for configuration in plan.configurations:
        for chosen in configuration.optimizations:
            kind = type(optimization(chosen.name, chosen.settings))
            if kind.__module__.partition(".")[0] != "optim":
                try:
                    path = Path(inspect.getfile(kind))
                except (OSError, TypeError):
                    continue
                yield kind.__module__, _hash(path)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
