"""What artifacts say of themselves is written down for those configurations that are begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from trial_results import make_results

from cluster.plan import Configuration, OptimizationSettings, Plan
from cluster.results.results import MANIFEST
from jobs.provenance.artifact_notes import artifact_notes, noted
from jobs.provenance.history import entry, record
from optim.errors import InputError


class Noting:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def notes(self) -> list[str]:
        return list(self.settings["says"])


class Silent:
    """As those of other packages may be."""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    def made(name: str, settings: Mapping[str, Any]) -> object:
        return Noting(settings) if name == "noting" else Silent()

    monkeypatch.setattr("optim.registry.optimization", made)

    def says(name: str, *notes: str) -> Configuration:
        noting = OptimizationSettings(name="noting", settings={"says": list(notes)}, fingerprint="")
        silent = OptimizationSettings(name="silent", settings={}, fingerprint="")
        return Configuration(name=name, optimizations=(noting, silent), fingerprint=name)

    arms = (says("one", "first"), says("two", "first", "second"), says("three"))
    made_plan = make_results(tmp_path / "out").plan()
    return made_plan.model_copy(update={"configurations": arms})


def test_a_sentence_is_said_once_for_all_who_have_it(plan: Plan) -> None:
    found = [(each.configurations, each.note) for each in artifact_notes(plan)]
    assert found == [(("one", "two"), "first"), (("two",), "second")]
    assert [each.configurations for each in artifact_notes(plan, ["one"])] == [("one",)]
    assert artifact_notes(plan, []) == []


def test_those_of_what_was_added_come_behind(plan: Plan, tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    assert list(noted(results)) == [], "a trial from before this was kept"
    manifest = json.loads(results.store.read(MANIFEST))
    first = artifact_notes(plan, ["one"])
    manifest["artifact_notes"] = [each.model_dump(mode="json") for each in first]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    later = tuple(artifact_notes(plan, ["two"]))
    record(results, entry(results, "extended", configurations=("two",), artifact_notes=later))
    assert list(noted(results)) == [
        "noting of one: first", "noting of two: first", "noting of two: second",
    ]  # fmt: skip
    manifest["artifact_notes"] = [{"note": "x"}]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(InputError, match="artifact_notes"):
        list(noted(results))
