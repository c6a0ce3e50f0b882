"""Compiles the CPU kernels when the package is installed; without a compiler it goes on without."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("optim", "larosa", "kernels")
LIBRARY = "sparse_kernels.so"
# No -march: the library has to run on other machines, and chooses its instructions when it runs.
# No contraction: which products are fused is written in the source, the same for every compiler.
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-shared",
]


class BuildError(RuntimeError):
    """The compiler is missing or failed."""


class KernelBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts the library beside its sources, for every kind of install."""
        if self.target_name != "wheel":
            return
        try:
            compile_library(Path(self.root) / KERNELS)
        except BuildError as error:
            self.app.display_warning(f"{error}. Optrial is installed without its CPU kernels.")
            return
        # It needs no Python to run, so that it fits every version of it on this platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


def compile_library(folder: Path) -> Path:
    """The shared library of the C files in a folder, made there by $CC or cc; BuildError without.

    A library of before is removed first, so that none is left that its sources did not make.
    """
    library = folder / LIBRARY
    library.unlink(missing_ok=True)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    partial = library.with_suffix(".partial")
    command = [*compiler, *FLAGS, f'-DSOURCE_HASH="{source_hash(folder)}"', "-o", str(partial)]
    sources = [str(path) for path in sorted(folder.glob("*.c"))]
    try:
        subprocess.run([*command, *sources, "-lm"], check=True, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the C compiler {compiler[0]!r} cannot be started: {error}") from error
    except subprocess.CalledProcessError as error:
        partial.unlink(missing_ok=True)
        raise BuildError(f"the C compiler {compiler[0]!r} failed: {error.stderr}") from error
    partial.replace(library)
    return library


def source_hash(folder: Path) -> str:
    """What the binding compares with the sources that it finds beside the library."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
