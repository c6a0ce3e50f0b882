"""What artifacts say of how they were made, repeated in the report of the trial that uses them.

Written down when configurations are begun: the artifacts may be gone when a report is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.plan import Plan
from cluster.results.results import Results
from jobs.provenance.history import ArtifactNote, entries
from optim.errors import InputError


def artifact_notes(plan: Plan, names: Iterable[str] | None = None) -> list[ArtifactNote]:
    """Of a plan's configurations, or of some of them, each sentence once."""
    from optim.registry import optimization  # imports torch, which takes its time

    chosen = None if names is None else set(names)
    found: dict[tuple[str, str], list[str]] = {}
    for configuration in plan.configurations:
        if chosen is not None and configuration.name not in chosen:
            continue
        for planned in configuration.optimizations:
            made = optimization(planned.name, planned.settings)
            said = getattr(made, "notes", None)
            for note in () if said is None else said():
                found.setdefault((planned.name, note), []).append(configuration.name)
    return [
        ArtifactNote(optimization=name, configurations=tuple(dict.fromkeys(whose)), note=note)
        for (name, note), whose in found.items()
    ]


def noted(results: Results) -> Iterator[str]:
    """What a report says of them; nothing of trials that were begun before this was kept."""
    given = list(results.manifest().get("artifact_notes") or [])
    try:
        found = [ArtifactNote.model_validate(each) for each in given]
    except ValueError as error:
        raise InputError(
            f"artifact_notes: {str(error).splitlines()[0]}", source=results.output
        ) from error
    for happened in entries(results):
        found += happened.artifact_notes or ()
    for each in found:
        yield f"{each.optimization} of {', '.join(each.configurations)}: {each.note}"
