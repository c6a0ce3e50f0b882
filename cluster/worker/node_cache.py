"""`NodeCache`: folders of shared storage on a node's own disk, copied once for all its workers.

Weights are then mapped from there, so that workers of a node share them in the page cache too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.plan import ModelSource, OptimizationSettings
from optim.errors import InputError


class NodeCache:
    """Copies by what they contain: one that is there is taken, whoever made it.

    The folder must be on a disk of the node that locks files (`flock`), and only hold copies.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()

    def model(self, source: ModelSource) -> ModelSource:
        """The model from here, where it is a folder; hub models have their own cache."""
        place = self._place(source.path, source.fingerprint)
        return source.model_copy(update={"path": place})

    def optimization(self, chosen: OptimizationSettings) -> OptimizationSettings:
        """An optimisation whose artifact, if it has one, is here."""
        artifact = chosen.settings.get("artifact")
        if not isinstance(artifact, str):
            return chosen
        place = self._place(artifact, chosen.fingerprint)
        return chosen.model_copy(update={"settings": {**chosen.settings, "artifact": place}})

    def _place(self, path: str, fingerprint: str) -> str:
        source = Path(path)
        if not fingerprint or not source.is_absolute() or not source.is_dir():
            return path
        return str(self.copy(source, fingerprint))

    def copy(self, source: Path, fingerprint: str) -> Path:
        """The copy of a folder, made where it is not there yet.

        Raises InputError where the cache cannot be written.
        """
        target = self.folder / fingerprint[:32]
        if target.is_dir():
            return target
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{target.name}.lock"):
                if not target.is_dir():
                    self._fill(source, target)
        except (OSError, shutil.Error) as error:
            raise InputError(
                f"cannot hold a copy of {source}: {error}",
                source=str(self.folder),
                field="workers.node_cache",
                mend="Name a folder with room for the model and the artifacts, or leave it out",
            ) from error
        return target

    def _fill(self, source: Path, target: Path) -> None:
        temporary = self.folder / f"{target.name}.{uuid.uuid4().hex}"
        try:
            shutil.copytree(source, temporary)
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process of the node at a time; a lock of one that died is free."""
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
