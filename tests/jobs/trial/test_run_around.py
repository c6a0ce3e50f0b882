"""What a run does before its workers begin and after they have ended, whatever they are."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import made
from test_identity import prompts, wanted  # noqa: F401  a fixture
from test_identity_code import other_code, run_it

import optim.model
from cluster.plan import Cell, Plan
from cluster.results.integrity import set_aside
from cluster.results.receipts import Receipts
from cluster.results.results import SUCCESS, Results, part_name
from cluster.scheduling.ledger import Outcome
from cluster.storage.driver_lock import LOCK_FILE
from cluster.storage.open_store import LocalStore, StorageUnreachable
from cluster.telemetry.progress import Progress
from jobs.provenance.history import entries
from jobs.trial import evaluate as evaluating
from optim.errors import InputError


class Workers:
    """A scheduler whose workers are synthetic, and go through the real commit."""

    problem: InputError | None = None
    """That the model cannot be loaded."""
    at_end: Callable[[], None] = staticmethod(lambda: None)
    """What others do when the last cell has been run."""

    def __init__(self, plan: Plan, results: Results, **_: Any) -> None:
        self.plan, self.results = plan, results
        there = results.sound_keys()
        self.cells = [(block, cell) for block in plan.blocks() for cell in block.cells]
        done = sum(cell.key in there for _, cell in self.cells)
        self.outcome = Outcome(cells_total=len(self.cells), cells_done=done)
        self.cells = [(block, cell) for block, cell in self.cells if cell.key not in there]
        self.joins = False

    @property
    def num_pending(self) -> int:
        return self.outcome.cells_total - self.outcome.cells_done

    def start(self) -> list[dict[str, Any]]:
        if self.problem is not None:
            raise self.problem
        return [{}]

    def run(self) -> Outcome:
        asked = self.results.prompts().to_pylist()
        for order, (block, cell) in enumerate(self.cells):
            rows, facts = made(self.plan, block, cell, order, asked)
            self.results.commit(cell, rows, facts)
            self.outcome.cells_done += 1
        self.at_end()
        return self.outcome

    def progress(self) -> Progress:
        return Progress(
            cells_total=1, cells_done=1, cells_done_before=0, rows=0, errors=0,
            completion_tokens=0, retries=0, quarantined=0, num_workers=0, elapsed_s=1.0,
        )  # fmt: skip

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> type[Workers]:
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    monkeypatch.setattr(evaluating, "Scheduler", Workers)
    monkeypatch.setattr(evaluating, "preflight", lambda plan: "")
    monkeypatch.setattr(evaluating, "ray_session", lambda *_: contextlib.nullcontext())
    return Workers


def cells(results: Results) -> list[Cell]:
    return [cell for block in results.plan().blocks() for cell in block.cells]


def lose(results: Results, count: int) -> None:
    """So that there is something to run."""
    results.store.delete(SUCCESS)
    for cell in cells(results)[:count]:
        results.store.delete(part_name(cell))


def extend(results: Results) -> None:
    """As another driver does."""
    plan = results.plan()
    assert results.extend(plan.model_copy(update={"seeds": (*plan.seeds, 7)}), [])
    results.store.delete(SUCCESS)


def test_a_run_that_is_complete_is_marked(prompts: Path) -> None:  # noqa: F811
    results = run_it(prompts)
    assert results.store.exists(SUCCESS)
    assert results.committed_keys() == {cell.key for cell in cells(results)}


def test_a_larger_trial_is_not_marked_by_the_driver_of_the_smaller_one(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    lose(results, 2)
    monkeypatch.setattr(Workers, "at_end", staticmethod(lambda: extend(results)))
    said: list[str] = []
    run_it(prompts, options={"on_stage": said.append})
    assert not results.store.exists(SUCCESS)
    assert any("not complete" in line for line in said)


def test_a_trial_that_becomes_larger_as_it_is_marked(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    lose(results, 1)
    replace = LocalStore.replace

    def extended_before(store: LocalStore, name: str, data: bytes) -> None:
        if name == SUCCESS:
            extend(results)
        replace(store, name, data)

    monkeypatch.setattr(LocalStore, "replace", extended_before)
    run_it(prompts)
    assert len(results.extensions()) == 1
    assert not results.store.exists(SUCCESS)


def test_parts_that_a_repair_has_set_aside_meanwhile_are_missing(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    lose(results, 2)

    def repair() -> None:
        part = results.parts("generations")[-1]
        assert set_aside(results.store, part, Receipts(results.store))

    monkeypatch.setattr(Workers, "at_end", staticmethod(repair))
    outcome = evaluating.evaluate(wanted(prompts).spec)[1]
    assert not outcome.is_complete
    assert outcome.cells_total - outcome.cells_done == 1
    assert not results.store.exists(SUCCESS)
    monkeypatch.setattr(Workers, "at_end", staticmethod(lambda: None))
    assert evaluating.evaluate(wanted(prompts).spec)[1].is_complete
    assert results.store.exists(SUCCESS)


def test_code_is_accepted_when_the_workers_have_loaded(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    lose(results, 2)
    other_code(monkeypatch)
    before = sorted(results.store.list(""))
    monkeypatch.setattr(Workers, "problem", InputError("the model cannot be loaded"))
    options = {"accept_code_change": True}
    with pytest.raises(InputError, match="cannot be loaded"):
        run_it(prompts, options=options)
    assert entries(results) == []
    assert set(results.store.list("")) - set(before) <= {"progress.json"}
    monkeypatch.setattr(Workers, "problem", None)
    run_it(prompts, options=options)
    [happened] = entries(results)
    assert happened.event == "code accepted"
    assert happened.cells_committed == len(cells(results)) - 2
    run_it(prompts)
    assert len(entries(results)) == 1


def test_code_that_has_nothing_to_run_is_asked_for_once_too(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    other_code(monkeypatch)
    run_it(prompts, options={"accept_code_change": True})
    run_it(prompts)
    assert len(entries(results)) == 1


def test_what_killed_writers_left_is_swept_under_the_lock(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    lose(results, 1)
    left, fresh = (Path(results.output) / "_tmp" / name for name in ("left", "fresh"))
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    sweep, held = Results.sweep, []

    def watched(self: Results, *given: Any) -> int:
        held.append(self.store.exists(LOCK_FILE))
        return sweep(self, *given)

    monkeypatch.setattr(Results, "sweep", watched)
    run_it(prompts)
    assert held == [True]
    assert not left.exists()
    assert fresh.exists(), "somebody may be writing it"


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), StorageUnreachable("s3://x", "gone")])
def test_what_cannot_be_swept_ends_no_run(
    prompts: Path,  # noqa: F811
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(Results, "sweep", fails)
    assert run_it(prompts).store.exists(SUCCESS)


def test_where_nothing_can_be_written_nothing_is_loaded(
    prompts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = run_it(prompts)
    monkeypatch.setattr(evaluating, "driving", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Workers, "problem", InputError("the model cannot be loaded"))
    results.store.delete(SUCCESS)
    run_it(prompts)
    assert not results.store.exists(SUCCESS), "all of it is there, and nothing is written"
    lose(results, 1)
    with pytest.raises(InputError, match="nothing can be written"):
        run_it(prompts)
