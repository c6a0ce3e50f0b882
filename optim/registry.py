"""The optimisations there are, and the order in which they are applied.

A new one costs a class that meets `Optimization`, a line in `BUILT_IN` and one in `optim.names`,
or, from another package, an entry point in the group `optrial.optimizations`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from optim.errors import InputError
from optim.model import LanguageModel
from optim.names import GROUP, STAGES
from optim.optimization import Optimization, Preparation

BUILT_IN: dict[str, str] = {
    "adaptivocab": "optim.adaptivocab.optimization:Adaptivocab",
    "larosa": "optim.larosa.optimization:Larosa",
    "tuned": "optim.adaptivocab.optimization:Tuned",
    "vattention": "optim.vattention.optimization:VAttention",
}
"""Name -> module and class, which is loaded when it is asked for."""


def _installed() -> list[str]:
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def optimization(name: str, settings: Mapping[str, Any]) -> Optimization:
    """An optimisation from its name and settings; InputError for an unknown name or setting."""
    kind = kind_of(name)
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
    found = {name: kind_of(name).preparation for name in _installed()}
    return {name: kind for name, kind in found.items() if kind is not None}


def apply_all(lm: LanguageModel, optimizations: Iterable[Optimization]) -> LanguageModel:
    """Apply in the order of `STAGES`, whatever the order given."""
    for chosen in sorted(optimizations, key=lambda o: STAGES.index(o.stage)):
        lm = chosen.apply(lm)
    return lm


def kind_of(name: str) -> type[Optimization]:
    """The class of an optimisation; InputError for an unknown name."""
    if name in BUILT_IN:
        module, _, kind = BUILT_IN[name].partition(":")
        found: type[Optimization] = getattr(import_module(module), kind)
        return found
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded: type[Optimization] = point.load()
            return loaded
    raise InputError(
        f"there is no optimisation called {name!r}",
        field="optimizations",
        mend=_known(name, _installed()),
    )
