"""The optimisations there are, and the order in which they are applied.

A new one costs a class that meets `Optimization`, a line in `BUILT_IN` and one in `optim.names`,
or, from another package, an entry point in the group `optrial.optimizations`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import ValidationError

from optim.adaptivocab.optimization import Adaptivocab, Tuned
from optim.errors import InputError
from optim.larosa.optimization import Larosa
from optim.model import LanguageModel
from optim.names import GROUP, STAGES, Stage
from optim.resources import Resources
from optim.vattention.optimization import VAttention


class Optimization(Protocol):
    """Frozen settings (a pydantic model) that can be applied to a `LanguageModel`."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    preparation: ClassVar[type[Preparation] | None]
    """What makes the artifact that `apply` needs; None where it needs none."""
    places: ClassVar[frozenset[str]]
    """Settings that say where something lies, which decides nothing."""
    # And `is_exact: ClassVar[bool]`, where it declares that it changes no output; and a method
    # `notes() -> Iterable[str]`, where its artifact says sentences that a report has to repeat.

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


BUILT_IN: dict[str, type[Optimization]] = {
    "adaptivocab": Adaptivocab,
    "larosa": Larosa,
    "tuned": Tuned,
    "vattention": VAttention,
}


def _installed() -> list[str]:
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def optimization(name: str, settings: Mapping[str, Any]) -> Optimization:
    """An optimisation from its name and settings; InputError for an unknown name or setting."""
    kind = _find(name)
    try:
        made: Optimization = kind.model_validate(dict(settings))  # type: ignore[attr-defined]
    except ValidationError as error:
        raise _input_error(name, kind, error) from error
    return made


def _input_error(name: str, kind: type[Optimization], error: ValidationError) -> InputError:
    """The first thing that is wrong with settings, with the field and how to mend it."""
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    field = f"optimizations.{name}.{path}"
    if first["type"] != "extra_forbidden":
        return InputError(
            f"{first['msg']}, got {first['input']!r}",
            field=field,
            mend="What it may be is in docs/optimizations.md",
        )
    known = list(kind.model_fields)  # type: ignore[attr-defined]
    return InputError(f"{name} has no setting {path!r}", field=field, mend=_known(path, known))


def _known(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known) or 'none yet'}"


def preparations() -> dict[str, type[Preparation]]:
    """What can be prepared, by the optimisation's name."""
    found = {name: _find(name).preparation for name in _installed()}
    return {name: kind for name, kind in found.items() if kind is not None}


def apply_all(lm: LanguageModel, optimizations: Iterable[Optimization]) -> LanguageModel:
    """Apply in the order of `STAGES`, whatever the order given."""
    for chosen in sorted(optimizations, key=lambda o: STAGES.index(o.stage)):
        lm = chosen.apply(lm)
    return lm


def _find(name: str) -> type[Optimization]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded: type[Optimization] = point.load()
            return loaded
    raise InputError(
        f"there is no optimisation called {name!r}",
        field="optimizations",
        mend=_known(name, _installed()),
    )
