"""Settings for every test: one thread, no hub, and the random models that tests share."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "OPTRIAL_CACHE" not in os.environ:  # of the session, whose other processes find it set
    _REMEMBERED = tempfile.TemporaryDirectory(prefix="optrial-cache-")
    os.environ["OPTRIAL_CACHE"] = _REMEMBERED.name

from folders import FOLDERS

# Ray's workers import the workers that tests define.
os.environ["PYTHONPATH"] = ":".join([str(Path(__file__).parents[1]), *FOLDERS])

import pytest
import torch

# Fixtures of every test.
from cuda_arenas import arena, driver  # noqa: F401
from program import run  # noqa: F401
from xdist.scheduler import LoadFileScheduling

torch.set_num_threads(1)

CLUSTERS = {"driver_kill", "lost_nodes", "memory_failures", "partition", "scheduler"}
CLUSTERS |= {"submit_cluster", "two_drivers", "worker_failures"}


class ClustersInTurn(LoadFileScheduling):  # type: ignore[misc]
    """By files; but whole clusters, which are measured against clocks, never two at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(super()._split_scope(nodeid))
        return "clusters" if file.stem.removeprefix("test_") in CLUSTERS else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return ClustersInTurn(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What all the imports left would be looked through by every full collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # Libraries count at the end what of theirs was not given back.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray for the whole session, with private files; logical CPUs may exceed cores."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(
            num_cpus=4,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama and its tokenizer, saved as people's models are."""
    import tiny_models

    folder = tmp_path_factory.mktemp("tiny-llama")
    lm = tiny_models.model("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder
