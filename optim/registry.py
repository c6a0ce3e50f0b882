"""The optimisations there are, and the order in which they are applied.

A new one costs a class that meets `Optimization` and a line in `BUILT_IN`, or, from another
package, an entry point in the group `optrial.optimizations`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import ValidationError

from optim.errors import InputError
from optim.model import LanguageModel
from optim.vattention.optimization import VAttention

Stage = Literal["vocabulary", "weights", "cache"]
STAGES: tuple[Stage, ...] = ("vocabulary", "weights", "cache")
"""The order of application: what tokens there are, what is computed of them, where it is kept."""

GROUP = "optrial.optimizations"


class Optimization(Protocol):
    """Frozen settings (a pydantic model) that can be applied to a `LanguageModel`."""

    name: ClassVar[str]
    stage: ClassVar[Stage]

    def apply(self, lm: LanguageModel) -> LanguageModel:
        """A new model that shares unchanged parameters; the argument is left as it is.

        Raises InputError where it cannot run on this model or device; it never falls back.
        """
        ...

    def prepare(self, lm: LanguageModel, corpus: Iterable[str], out_dir: Path) -> None:
        """Make the artifact that `apply` needs, where it needs one."""
        ...


BUILT_IN: dict[str, type[Optimization]] = {"vattention": VAttention}


def names() -> list[str]:
    """Every optimisation that can be named in a spec."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def optimization(name: str, settings: Mapping[str, Any]) -> Optimization:
    """An optimisation from its name and settings; InputError for an unknown name or setting."""
    kind = _find(name)
    try:
        made: Optimization = kind.model_validate(dict(settings))  # type: ignore[attr-defined]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([name, *map(str, first["loc"])])
        raise InputError(first["msg"], field=f"optimizations.{field}") from error
    return made


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
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    mend = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known) or 'none yet'}"
    raise InputError(f"there is no optimisation called {name!r}", field="optimizations", mend=mend)
