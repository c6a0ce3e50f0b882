"""Models and artifacts of shared storage are read once per node, however many workers it has."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_worker import prepare

from cluster.plan import ModelSource, OptimizationSettings, WorkerResources
from cluster.results.results import Results
from cluster.results.verification import faults_of
from cluster.worker.node_cache import NodeCache
from cluster.worker.worker import Worker
from optim.errors import InputError
from optim.model import fingerprint


def _copy(words: tuple[str, str]) -> int:
    """The inode of a file in the copy: two copies have two."""
    return os.stat(NodeCache(words[0]).copy(Path(words[1]), "f" * 64) / "weights").st_ino


def test_many_processes_make_one_copy(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights").write_bytes(os.urandom(1 << 20))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        inodes = pool.map(_copy, [(str(tmp_path / "cache"), str(source))] * 8)
    assert len(set(inodes)) == 1
    cache = tmp_path / "cache"
    assert {path.name for path in cache.iterdir()} == {"f" * 32, f"{'f' * 32}.lock"}
    assert (cache / ("f" * 32) / "weights").read_bytes() == (source / "weights").read_bytes()


def test_a_worker_loads_from_the_copy(tmp_path: Path, tiny_model_folder: Path) -> None:
    cache = tmp_path / "cache"
    plan, results = prepare(
        tmp_path, tiny_model_folder, workers=WorkerResources(cpus=1, node_cache=str(cache))
    )
    model = ModelSource(
        path=str(tiny_model_folder), fingerprint=fingerprint(str(tiny_model_folder))
    )
    plan = plan.model_copy(update={"model": model})
    worker = Worker(plan.model_dump_json(), 0)
    worker.load()
    assert worker.base is not None
    assert worker.base.model.config._name_or_path == str(cache / model.fingerprint[:32])
    for block in plan.blocks():
        worker.run(block.model_dump_json(), [cell.key for cell in block.cells])
    assert list(faults_of(Results(results.output))) == []


def test_another_model_than_the_planned_one_is_refused(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    plan, _ = prepare(tmp_path, tiny_model_folder)
    model = ModelSource(path=str(tiny_model_folder), fingerprint="a" * 64)
    plan = plan.model_copy(update={"model": model})
    with pytest.raises(InputError, match="not the one that the trial was planned with"):
        Worker(plan.model_dump_json(), 0).open()


def test_only_folders_with_a_known_content_are_copied(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache")
    for source in (ModelSource(path="demo", fingerprint="a"), ModelSource(path="org/name")):
        assert cache.model(source) == source
    folder = tmp_path / "artifact"
    folder.mkdir()
    chosen = OptimizationSettings(
        name="larosa", settings={"artifact": str(folder), "level": 0.4}, fingerprint="b" * 64
    )
    moved = cache.optimization(chosen)
    assert moved.settings == {"artifact": str(tmp_path / "cache" / ("b" * 32)), "level": 0.4}
    plain = OptimizationSettings(name="vattention", settings={"backend": "cpu"})
    assert cache.optimization(plain) == plain


@pytest.mark.parametrize("spoil", [lambda p: p.write_text("a file"), lambda p: None])
def test_a_cache_without_room_is_an_input_error(
    tmp_path: Path, spoil: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    spoil(place)

    def full(*words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(InputError, match="node_cache"):
        NodeCache(place).copy(source, "c" * 64)
    assert place.is_file() or list(place.glob("c*.*")) == [place / f"{'c' * 32}.lock"]
