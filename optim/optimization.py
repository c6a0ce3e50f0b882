"""What an optimisation is, and what prepares it: the two interfaces that others may implement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Protocol

from optim.model import LanguageModel
from optim.names import Stage
from optim.resources import Resources


class Optimization(Protocol):
    """Frozen settings (a pydantic model) that can be applied to a `LanguageModel`."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    preparation: ClassVar[type[Preparation] | None]
    """What makes the artifact that `apply` needs; None where it needs none."""
    places: ClassVar[frozenset[str]]
    """Settings that say where something lies, which decides nothing."""
    # And `is_exact: ClassVar[bool]`, where it declares that it changes no output, or
    # `keeps_vocabulary`, where tokens are the model's own after the stage `vocabulary`; and a
    # method `notes() -> Iterable[str]`, where its artifact says what a report has to repeat.

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """A new model that shares unchanged parameters; the argument is left as it is.

        Raises InputError where it cannot run on this model or device; it never falls back.
        """
        ...

    def content(self) -> str:
        """What names the content at its `places`; empty where there are none.

        Raises InputError where nothing is there.
        """
        ...


class Preparation(Protocol):
    """Frozen settings (a pydantic model) of the work that is done once, before a trial."""

    name: ClassVar[str]
    paths: ClassVar[frozenset[str]]
    """Settings that say where something lies, as `--data` does."""

    def run(
        self,
        lm: LanguageModel,
        corpus: Iterable[str],
        out_dir: Path,
        *,
        source: str,
        on_stage: Callable[[str], None],
        resources: Resources | None = None,
    ) -> str:
        """Write an artifact to `out_dir`, whole or not at all; returns its fingerprint.

        `source` says where the corpus came from; without `resources` all is done here. InputError
        for what a person can mend.
        """
        ...
