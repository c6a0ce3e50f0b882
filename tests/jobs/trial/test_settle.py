"""`settle`: only what is needed is added, verdicts stay, and the error rate is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from program import Run
from scipy import stats
from synthetic_runs import made
from test_verdicts import findings
from trial_results import make_results

from cluster.plan import Cell, Plan
from cluster.results.results import MANIFEST, SUCCESS, Results
from cluster.results.verification import faults_of
from cluster.scheduling.scheduler import Outcome
from cluster.storage.driver_lock import LOCK_FILE, LockedError, driving, read_holder
from jobs.analysis.guards.stability import steadiness
from jobs.provenance.code_version import present_code
from jobs.provenance.history import code_note, entries
from jobs.queries.sql import connect
from jobs.report.report_data import report_data
from jobs.spec.analysis_plan import Judgement
from jobs.trial import settle as settling
from jobs.trial.settle import Budget, settle
from optim.errors import InputError

PLENTY = Budget(max_rows=10**9)


def noisy(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """`fast` has tokens of the same mean as the baseline, and much noise; `short` is as planted."""
    for i, row in enumerate(rows if cell.configuration == "fast" else ()):
        if "completion_tokens" in row:
            draw = np.random.default_rng([cell.start + i, cell.seed or 0, 11])
            row["completion_tokens"] = round(row["completion_tokens"] * draw.lognormal(0, 0.12))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What is run is synthetic, and goes through the real commit; the plans that were run."""
    plans: list[Plan] = []

    def run_missing(plan: Plan, results: Results, *, freeze: Any = None, **_: Any) -> Outcome:
        plans.append(plan)
        if freeze is not None:
            freeze([])
        there = results.committed_keys()
        cells = [cell for block in plan.blocks() for cell in block.cells]
        prompts = results.prompts().to_pylist()
        for block in plan.blocks():
            for order, cell in enumerate(block.cells):
                if cell.key not in there:
                    rows, facts = made(plan, block, cell, order, prompts)
                    noisy(cell, rows, facts)
                    results.commit(cell, rows, facts)
        return Outcome(cells_total=len(cells), cells_done=len(cells))

    monkeypatch.setattr(settling, "run_missing", run_missing)
    # Synthetic prompts have a name for their content, not its digest.
    monkeypatch.setattr(settling, "require_prompts_as_run", lambda results: None)
    return plans


def trial(folder: Path, **options: Any) -> Results:
    return of_this_code(make_results(folder / "out", edit=noisy, **options))


def of_this_code(results: Results, **changes: str) -> Results:
    """As if this code had made them; `changes` are files that were other ones."""
    code = present_code(results.plan())
    code = code.model_copy(update={"files": code.files | changes})
    manifest = results.manifest() | {"code": code.model_dump(mode="json")}
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    return results


def test_seeds_are_added_for_what_is_open_and_for_nothing_else(
    tmp_path: Path, ran: list[Plan]
) -> None:
    results = trial(tmp_path)
    before = findings(results)
    assert set(before.needs) == {("fast", "completion_tokens")}
    need = before.needs["fast", "completion_tokens"]
    done = settle(results, PLENTY)
    assert done.added is not None
    assert len(done.added.seeds) == need.num_seeds
    assert done.added.configurations == ("baseline", "fast")
    assert done.added.num_rows == need.num_seeds * 48 * 2
    plan = results.plan()
    assert plan == ran[0]
    assert plan.seeds[:2] == (1, 2)
    assert len(plan.seeds) == 2 + need.num_seeds
    assert not list(faults_of(results))
    connection = connect(results)
    counts = dict(
        connection.execute(
            "SELECT configuration, count(*) FROM generations GROUP BY configuration"
        ).fetchall()
    )
    assert counts["fast"] == counts["baseline"] == 96 + need.num_seeds * 48
    assert counts["short"] == counts["again"] == 96
    assert steadiness(connection, plan).false_alarms[0].rate is not None


def test_verdicts_of_the_first_look_stay_and_the_open_one_is_judged_again(
    tmp_path: Path, ran: list[Plan]
) -> None:
    results = trial(tmp_path)
    before = findings(results).of("short").verdicts["completion_tokens"]
    settle(results, PLENTY)
    after = findings(results)
    [look] = after.looks
    assert look.level == pytest.approx(0.04)
    assert ("short", "completion_tokens") in {(s.configuration, s.metric) for s in look.settled}
    kept = after.of("short").verdicts["completion_tokens"]
    assert (kept.word, kept.p, kept.look) == (before.word, before.p, 1)
    judged_again = after.of("fast").verdicts["completion_tokens"]
    assert judged_again.look is None
    assert judged_again.word == "equivalent", "it is, and now there is enough to see it"
    data = report_data(results)
    assert data["level"] == pytest.approx(0.008)
    assert data["looks"][0]["num_rows"] == look.num_rows
    assert settle(results, PLENTY).added is None, "nothing is open any more"


def test_the_report_states_the_looks(tmp_path: Path, ran: list[Plan], run: Run) -> None:
    results = trial(tmp_path)
    code, out, _ = run("report", results.store.url)
    assert code == 0
    assert "judged at 4 %, 0.8 % of it for data sets that differ (Holm)" in " ".join(out.split())
    assert "kept for later looks" in out
    settle(results, PLENTY)
    _, out, _ = run("report", results.store.url)
    said = " ".join(out.split())
    assert "judged at 0.8 %, 0.16 % of it for data sets that differ (Holm): a difference" in said
    assert "Look 1, at 4 %, decided" in said


def test_prompts_are_added_where_seeds_would_be_dearer(tmp_path: Path, ran: list[Plan]) -> None:
    """The effect differs by prompt, and not at all by seed: seeds would settle nothing."""

    def by_prompt(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for i, row in enumerate(rows if cell.configuration == "fast" else ()):
            if "completion_tokens" in row:
                draw = np.random.default_rng([cell.start + i, 11])
                row["completion_tokens"] = round(row["completion_tokens"] * draw.lognormal(0, 0.12))

    results = of_this_code(make_results(tmp_path / "out", edit=by_prompt))
    with pytest.raises(InputError, match="nothing that could be added"):
        settle(results, PLENTY)
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i:03}", "prompt": f"question {i}", "target": str(i)} for i in range(900))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = results.manifest()
    manifest["datasets"] = [{"name": "set0", "path": str(prompts), "limit": 24}]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    done = settle(results, Budget(max_rows=400))
    assert done.added is not None
    assert done.added.prompts == {"set0": 100}
    assert done.added.is_cut
    plan = results.plan()
    added = plan.dataset("set0+1")
    assert (added.num_prompts, added.first_row, added.num_shards) == (100, 48, 34)
    assert added.arms == ("baseline", "fast")
    ids = results.prompts().to_pylist()
    assert len(ids) == 148
    assert len({(row["dataset"].split("+")[0], row["prompt_id"]) for row in ids}) == 148
    assert findings(results).of("fast").comparison.effect("completion_tokens").num_units == 148  # type: ignore[union-attr]
    assert not list(faults_of(results))


def test_the_budget_cuts_and_is_required(tmp_path: Path, ran: list[Plan]) -> None:
    results = trial(tmp_path)
    with pytest.raises(InputError, match="no budget"):
        settle(results, Budget())
    with pytest.raises(InputError, match="takes 96"):
        settle(results, Budget(max_rows=95))
    with pytest.raises(InputError, match="takes 96"):
        settle(results, Budget(max_device_s=0.001))
    assert results.extensions() == []
    rehearsed = settle(results, Budget(max_rows=200), is_rehearsal=True)
    assert rehearsed.added is not None
    assert len(rehearsed.added.seeds) == 2
    assert rehearsed.added.is_cut
    assert results.extensions() == [], "a rehearsal writes nothing"
    assert ran == []


def test_an_interrupted_addition_is_finished_first(
    tmp_path: Path, ran: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = trial(tmp_path)
    works = settling.run_missing

    def dies(*_: Any, **__: Any) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(settling, "run_missing", dies)
    with pytest.raises(KeyboardInterrupt):
        settle(results, PLENTY)
    assert len(results.extensions()) == 1
    with pytest.raises(InputError, match="--dry-run"):
        settle(results, PLENTY, is_rehearsal=True)
    monkeypatch.setattr(settling, "run_missing", works)
    done = settle(results, PLENTY)
    assert done.added is None
    assert done.outcome is not None
    assert len(results.extensions()) == 1


def test_nothing_is_added_while_another_driver_runs_the_trial(
    tmp_path: Path, ran: list[Plan]
) -> None:
    results = trial(tmp_path)
    results.store.create(SUCCESS, b"{}")
    with driving(results.store, "out"), pytest.raises(LockedError):
        settle(results, PLENTY)
    assert results.extensions() == []
    assert results.store.exists(SUCCESS)
    assert ran == []


def test_it_is_added_under_the_lock_and_the_mark_of_the_smaller_trial_goes(
    tmp_path: Path, ran: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = trial(tmp_path)
    results.store.create(SUCCESS, b"{}")
    extend, held = results.extend, []

    def watched(*given: Any) -> bool:
        held.append(read_holder(results.store))
        return extend(*given)

    monkeypatch.setattr(results, "extend", watched)
    settle(results, PLENTY)
    assert held[0] is not None
    assert len(results.extensions()) == 1
    assert not results.store.exists(SUCCESS), "whoever runs the larger trial to its end writes it"
    assert not results.store.exists(LOCK_FILE)


def test_what_others_have_added_meanwhile_is_not_added_to(
    tmp_path: Path, ran: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = trial(tmp_path)
    extended = settling._extended

    def slow(*given: Any) -> Any:
        found = extended(*given)
        assert results.extend(found[0], [])
        return found

    monkeypatch.setattr(settling, "_extended", slow)
    with pytest.raises(InputError, match="just extended"):
        settle(results, PLENTY)
    assert len(results.extensions()) == 1
    assert ran == []


def test_other_code_is_refused_and_what_is_accepted_is_told(
    tmp_path: Path, ran: list[Plan], run: Run
) -> None:
    results = of_this_code(trial(tmp_path), **{"cluster/engine/engine.py": "another"})
    before = {p: p.stat().st_mtime_ns for p in Path(results.output).rglob("*")}
    code, _, err = run("settle", results.output, "--max-rows", "200")
    assert code == 2
    assert "cluster/engine/engine.py" in err
    assert "--accept-code-change" in err
    assert {p: p.stat().st_mtime_ns for p in Path(results.output).rglob("*")} == before
    assert settle(results, PLENTY, is_rehearsal=True).added is not None, "which runs nothing"
    assert run("settle", results.output, "--max-rows", "200", "--accept-code-change")[0] == 0
    [happened] = entries(results)
    assert happened.event == "code accepted"
    assert "2 versions of the code" in str(code_note(results))
    assert settle(results, PLENTY).added is not None, "it is asked for once"
    assert len(entries(results)) == 1


def test_an_incomplete_trial_is_refused(tmp_path: Path, ran: list[Plan]) -> None:
    def some(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        return cell.shard != 3

    with pytest.raises(InputError, match="not complete"):
        settle(make_results(tmp_path / "out", edit=some), PLENTY)


def test_a_trial_that_kept_no_error_is_refused(tmp_path: Path, ran: list[Plan]) -> None:
    results = trial(tmp_path)
    manifest = results.manifest()
    manifest["plan"]["analysis"] = {"reserve": 0.0}
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(InputError, match=r"analysis\.reserve"):
        settle(results, PLENTY)


def test_levels_sum_to_alpha() -> None:
    levels = [Judgement().level(look) for look in range(1, 30)]
    assert levels[0] == pytest.approx(0.04)
    assert levels[1] == pytest.approx(0.008)
    assert sum(levels) == pytest.approx(0.05)
    assert Judgement(reserve=0).level(1) == 0.05


def wrong_rates(theta: float, sd: float, trials: int = 20_000) -> tuple[float, float]:
    """How often a difference, and equality, is claimed over three looks at means of theta.

    Each look adds what the one before seemed to need: the power calculation of
    `jobs.analysis.sample_size`.
    """
    judgement, margin, rng = Judgement(), 0.02, np.random.default_rng(3)
    size = np.full(trials, 72.0)
    total = rng.normal(theta * size, sd * np.sqrt(size))
    differs, equal = np.zeros(trials, bool), np.zeros(trials, bool)
    for look in range(1, 4):
        level, then = judgement.level(look), judgement.level(look + 1)
        estimate, se = total / size, sd / np.sqrt(size)
        tost = stats.norm.sf((margin - np.abs(estimate)) / se)
        is_open = ~(differs | equal)
        equal |= is_open & (tost <= level)
        differs |= is_open & ~equal & (2 * stats.norm.sf(np.abs(estimate) / se) <= level)
        room = np.maximum(margin - np.abs(estimate), 1e-9)
        ways = [
            ((stats.norm.isf(then / 2) + stats.norm.isf(0.2)) / np.maximum(abs(estimate), 1e-9)),
            ((stats.norm.isf(then) + stats.norm.isf(0.1)) / room),
        ]
        wanted = np.minimum(np.square(np.minimum(*ways) * sd), 30 * size)
        more = np.where(differs | equal, 0, np.maximum(wanted - size, 1))
        total += rng.normal(theta * more, sd * np.sqrt(more))
        size += more
    return float(differs.mean()), float(equal.mean())


@pytest.mark.parametrize("sd", [0.05, 0.1, 0.2, 0.5])
def test_looking_again_is_wrong_in_5_percent_at_most(sd: float) -> None:
    tolerance = 3 * (0.05 * 0.95 / 20_000) ** 0.5
    assert wrong_rates(0.0, sd)[0] <= 0.05 + tolerance
    assert wrong_rates(0.02, sd)[1] <= 0.05 + tolerance


@pytest.mark.usefixtures("ray_cluster")
def test_settle_end_to_end(
    run: Run, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"prompt {i}", "target": " x"} for i in range(20_000))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 8, "limit": 16}],
        "configurations": [
            {"name": "baseline"},
            {"name": "cached", "optimizations": ["vattention"]},
        ],
        "seeds": 2,
        "generation": {"max_new_tokens": 4, "temperature": 0.8},
        # So strict that times are never decided.
        "analysis": {"primary": ["e2e_s_per_byte"], "alpha": 1e-6},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(spec))
    assert run("evaluate", path)[0] == 0
    code, out, err = run("settle", tmp_path / "out", "--max-rows", "70")
    assert code == 0, err
    assert "Adds" in out
    results = Results(str(tmp_path / "out"))
    assert len(results.extensions()) == 1
    assert not list(faults_of(results))
    generations = results.read("generations").to_pylist()
    assert {row["error"] for row in generations} == {None}
    assert len(generations) > 3 * 16 * 2
    code, out, _ = run("evaluate", path)
    assert code == 0, "the spec is still that of this trial"
    assert "Look 1" in out
    assert run("settle", tmp_path / "none", "--max-rows", "10")[0] == 2
