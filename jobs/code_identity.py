"""Which code makes outputs: a digest of every source file that decides them, and its libraries.

It is kept with a trial and no part of cell keys: rows that two versions made lie in one trial only
where somebody accepted that, and then the report says so.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
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
_ROOT = "worker"
_UNDECISIVE = {"logs", "node_cache", "redaction", "results", "run_metrics", "storage"}
"""Modules that a worker imports and that decide no output, nor does what they import: how rows are
kept, and told of."""


class Code(BaseModel):
    """The code of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    """Of the package."""
    schema_version: int
    files: dict[str, str]
    """Source file -> the start of its sha256; a third party's optimisation by its module's name."""
    packages: dict[str, str]

    @property
    def digest(self) -> str:
        return digest([self.version, self.schema_version, self.files, self.packages])

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
    around = Path(inspect.getfile(cluster)).parent
    for name in _imported(around, [_ROOT]):
        yield f"cluster/{name}.py", around / f"{name}.py"


def _imported(folder: Path, modules: Iterable[str]) -> set[str]:
    """These modules of a package, and all of its own that they import, near and far, but for
    `_UNDECISIVE` ones."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = folder / f"{name}.py"
        if name in found or name in _UNDECISIVE or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cluster."):
                waiting.append(str(node.module).split(".")[1])
            elif isinstance(node, ast.ImportFrom) and node.module == "cluster":
                waiting.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                parts = [alias.name.split(".") for alias in node.names]
                waiting.extend(p[1] for p in parts if p[0] == "cluster" and len(p) > 1)
    return found


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
