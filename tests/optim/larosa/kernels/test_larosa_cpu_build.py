"""How the library of the CPU kernels is compiled, and what is said where it is missing or stale."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optim.errors import InputError
from optim.larosa.kernels import cpu

ROOT = Path(__file__).parents[4]
KERNELS = Path("optim", "larosa", "kernels")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


class FakeHook:
    """Of hatchling's interface what the hook uses: hatchling is there only while it builds."""

    def __init__(self, root: Path, target_name: str) -> None:
        self.root, self.target_name = str(root), target_name
        self.app = self
        self.warnings: list[str] = []

    def __class_getitem__(cls, _: object) -> type[FakeHook]:
        return cls

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def hook_module() -> Any:
    parts = ["hatchling", "builders", "hooks", "plugin", "interface"]
    with pytest.MonkeyPatch.context() as patch:
        for end in range(1, len(parts) + 1):
            part = types.ModuleType(".".join(parts[:end]))
            part.BuildHookInterface = FakeHook  # type: ignore[attr-defined]
            patch.setitem(sys.modules, part.__name__, part)
        spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def copy_sources(root: Path) -> Path:
    folder = root / KERNELS
    folder.mkdir(parents=True)
    for path in (ROOT / KERNELS).iterdir():
        if path.suffix in (".c", ".h"):
            shutil.copy(path, folder)
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources alone."""
    return copy_sources(tmp_path / "checkout")


@pytest.fixture(scope="module")
def built(hook_module: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A hook that was run on a copy of the sources, and what it said of the wheel."""
    hook = hook_module.KernelBuildHook(copy_sources(tmp_path_factory.mktemp("built")), "wheel")
    data: dict[str, Any] = {}
    hook.initialize("standard", data)
    return hook, data


@pytest.fixture
def library_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets the binding look for its library elsewhere, for one test."""

    def look(path: Path) -> None:
        monkeypatch.setattr(cpu, "LIBRARY", path)
        cpu._library.cache_clear()

    yield look
    cpu._library.cache_clear()


@needs_compiler
def test_the_hook_compiles_a_library_for_this_platform(
    built: tuple[Any, dict[str, Any]], library_at: Any
) -> None:
    hook, data = built
    assert not hook.warnings
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")
    assert sysconfig.get_platform().split("-")[0] in data["tag"]
    library = Path(hook.root) / KERNELS / cpu.LIBRARY.name
    assert hasattr(ctypes.CDLL(str(library)), "optrial_sparse_linear")
    library_at(library)
    cpu.require()
    assert cpu.available()


def test_without_a_compiler_the_install_goes_on(
    hook_module: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    library = checkout / KERNELS / hook_module.LIBRARY
    library.write_bytes(b"of an earlier build")
    data: dict[str, Any] = {}
    hook = hook_module.KernelBuildHook(checkout, "wheel")
    hook.initialize("standard", data)
    assert "/nonexistent" in hook.warnings[0]
    assert data == {}  # a pure wheel
    assert not library.exists()


@needs_compiler
def test_a_compiler_that_fails_is_quoted(
    hook_module: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc --nonsense")
    hook = hook_module.KernelBuildHook(checkout, "wheel")
    hook.initialize("editable", {})
    assert "nonsense" in hook.warnings[0]
    assert sorted(p.suffix for p in (checkout / KERNELS).iterdir()) == [".c"] * 4 + [".h"]


def test_a_source_distribution_compiles_nothing(hook_module: Any, checkout: Path) -> None:
    hook_module.KernelBuildHook(checkout, "sdist").initialize("standard", {})
    assert not (checkout / KERNELS / hook_module.LIBRARY).exists()


def test_a_library_that_is_missing_says_how_to_get_it(tmp_path: Path, library_at: Any) -> None:
    library_at(tmp_path / cpu.LIBRARY.name)
    assert not cpu.available()
    with pytest.raises(InputError, match="Install a C compiler") as caught:
        cpu.require()
    assert caught.value.field == "optimizations.larosa"


def test_a_library_of_another_platform_says_so(tmp_path: Path, library_at: Any) -> None:
    library = tmp_path / cpu.LIBRARY.name
    library.write_bytes(b"not for this machine")
    library_at(library)
    with pytest.raises(InputError, match="cannot be loaded"):
        cpu.require()


@needs_compiler
def test_a_library_older_than_its_sources_is_not_used(
    built: tuple[Any, dict[str, Any]], tmp_path: Path, library_at: Any
) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(Path(built[0].root) / KERNELS, folder)
    with (folder / "selection.c").open("a") as source:
        source.write("/* changed */\n")
    library_at(folder / cpu.LIBRARY.name)
    assert not cpu.available()
    with pytest.raises(InputError, match="older than their sources"):
        cpu.require()
    for path in folder.glob("*.[ch]"):
        path.unlink()
    cpu._library.cache_clear()
    cpu.require()  # nothing to compare with
