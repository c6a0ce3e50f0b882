"""Scores as metrics: planted drops get the right word, p and claim; what cannot be said, none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from factorial_results import arms
from program import Run
from scipy import stats
from test_verdicts import findings
from trial_results import configurations, make_results

from cluster.plan import Cell, Configuration
from cluster.results.results import MANIFEST, PROMPTS_FILE, Results, write_prompts
from jobs.analysis import scored
from jobs.analysis.claims import Checked, Claim, check_claims, read_claims
from jobs.analysis.findings import Findings
from jobs.analysis.verdicts import Verdict
from jobs.forecasting.forecast import visible
from jobs.queries.sql import connect
from jobs.report.explain import explain
from jobs.report.labels import anchor
from jobs.report.page_data import page_data
from jobs.report.render.html import render
from jobs.report.render.markdown import markdown
from jobs.report.report_data import report_data
from jobs.scoring.scores import Collected, collect
from jobs.spec.analysis_plan import Judgement
from jobs.spec.trial_spec import TrialSpec, read_spec
from jobs.stats.components import Components
from jobs.stats.power import mde, needed
from jobs.trial.allocation import addition
from jobs.trial.planning import make_plan
from optim.errors import InputError

SMALL: dict[str, Any] = {"num_prompts": 24, "num_shards": 2, "num_datasets": 1}
PRIMARY = {"primary": ["completion_tokens", "contains"], "margins": {"contains": 0.03}}
Edit = Callable[[Cell, list[dict[str, Any]], dict[str, Any]], None]


def two_arms() -> tuple[Configuration, ...]:
    baseline, _, fast, _ = configurations()
    return baseline, fast


def wrong(*prompts: int, seeds: Sequence[int] = (1, 2), dataset: str | None = None) -> Edit:
    """`fast` answers these prompts wrongly."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.configuration != "fast" or cell.kind != "generations" or cell.seed not in seeds:
            return
        for row in rows if dataset in (None, cell.dataset) else ():
            if int(row["prompt_id"][1:]) in prompts:
                row["completion_text"] = "no idea"

    return edit


def trial(
    folder: Path,
    edit: Edit | None = None,
    analysis: dict[str, Any] | None = None,
    scorers: Sequence[Sequence[str]] = (("contains",),),
    **options: Any,
) -> Results:
    """Two arms; `scorers` are each data set's own."""
    given = SMALL | {"arms": two_arms(), "num_datasets": len(scorers)} | options
    results = make_results(folder / "out", edit=edit, **given)
    manifest = json.loads(results.store.read(MANIFEST))
    manifest["plan"]["analysis"] = PRIMARY if analysis is None else analysis
    for dataset, names in zip(manifest["plan"]["datasets"], scorers, strict=True):
        dataset["scorers"] = list(names)
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    return Results(results.output)


def verdict(found: Findings, metric: str = "contains") -> Verdict:
    return found.of("fast").verdicts[metric]


def test_a_planted_drop_is_worse(tmp_path: Path) -> None:
    """Of one data set a third is lost, of the other nothing: they count alike."""
    results = trial(tmp_path, wrong(*range(0, 24, 3), dataset="set0"), scorers=[["contains"]] * 2)
    found = findings(results)
    effect = found.of("fast").comparison.effect("contains")
    assert effect is not None
    assert effect.estimate == pytest.approx(-1 / 6)
    assert effect.by_set == pytest.approx({"set0": -1 / 3, "set1": 0.0})
    assert effect.method == "studentised cluster swaps"
    assert (verdict(found).word, verdict(found).family) == ("worse", "primary")
    assert verdict(found).margin == 0.03
    data = report_data(results)
    assert data["answer"].startswith("Did anything change? contains worse: fast -0.1667;")
    [row] = [row for row in data["verdicts"] if row["metric"] == "contains"]
    assert (row["verdict"], row["direction"]) == ("worse", "higher")
    assert (row["reference_mean"], row["mean"]) == (1.0, pytest.approx(5 / 6))
    assert "| contains | 1.000 | 0.8333 |" in markdown(data)
    made = render(page_data(results, data))
    assert made.count(f'id="effect-{anchor("contains")}-title"') == 1
    assert "Contains" not in made, "names are as they are written"
    [why, *_] = explain(found, "fast", "contains")
    assert why.heading == "fast against baseline: why is contains lower?"


def test_directions_and_families(tmp_path: Path) -> None:
    edit = wrong(*range(0, 24, 2))
    found = findings(trial(tmp_path, edit, {"primary": ["completion_tokens"]}))
    assert (verdict(found).word, verdict(found).family) == ("worse", "exploratory")
    assert verdict(found).margin == 0.02
    fewer = {**PRIMARY, "directions": {"contains": "lower"}}
    assert verdict(findings(trial(tmp_path / "fewer", edit, fewer))).word == "better"


def test_equal_scores_are_exactly_equal(tmp_path: Path) -> None:
    assert verdict(findings(trial(tmp_path))).word == "exactly equal"
    swapped = trial(tmp_path / "swapped", wrong(3, seeds=[1]), num_prompts=12)
    other = findings(swapped)
    assert verdict(other).word == "inconclusive", "one seed of one prompt differs"


@pytest.mark.parametrize("num_wrong", [2, 5, 12])
def test_one_seed_is_mcnemars(tmp_path: Path, num_wrong: int) -> None:
    found = findings(trial(tmp_path, wrong(*range(num_wrong)), seeds=(1,)))
    effect = found.of("fast").comparison.effect("contains")
    assert effect is not None
    assert effect.method == "McNemar's exact test"
    assert effect.p == pytest.approx(stats.binomtest(0, num_wrong).pvalue)
    assert effect.includes_zero == (effect.p > 0.05)
    assert effect.estimate == pytest.approx(-num_wrong / 24)
    words = {2: "inconclusive", 5: "inconclusive", 12: "worse"}
    assert verdict(found).word == words[num_wrong]


def test_dependent_prompts_are_swapped_together(tmp_path: Path) -> None:
    """Three prompts a cluster: no p of 8 clusters is below 2^-7, whatever McNemar's would be."""
    results = trial(tmp_path, wrong(*range(12)), seeds=(1,))
    rows = results.prompts().to_pylist()
    results.store.delete(PROMPTS_FILE)
    write_prompts(results.store, [r | {"cluster": f"c{r['row'] // 3}"} for r in rows])
    effect = findings(results).of("fast").comparison.effect("contains")
    assert effect is not None
    assert effect.num_clusters == 8
    assert effect.method == "cluster swaps"
    # Of the 8 clusters 4 lost all: 2 of the 2^4 ways to name their sides are as far from 0.
    assert effect.p == pytest.approx(2 / 16)


def test_a_data_set_without_the_scorer_has_no_part(tmp_path: Path) -> None:
    results = trial(tmp_path, wrong(*range(0, 24, 3)), scorers=[["contains"], []], seeds=(1,))
    effect = findings(results).of("fast").comparison.effect("contains")
    assert effect is not None
    assert effect.estimate == pytest.approx(-1 / 3)
    assert (effect.num_units, effect.by_set) == (24, None)
    assert effect.p == pytest.approx(stats.binomtest(0, 8).pvalue)
    assert {row["dataset"] for row in report_data(results)["scores"]} == {"set0"}


def test_a_trial_without_scorers_scores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*given: Any, **named: Any) -> Collected:
        calls.append(given)
        return collect(*given, **named)

    monkeypatch.setattr(scored, "collect", counted)
    data = report_data(trial(tmp_path, scorers=[[]], analysis={}))
    assert (data["scores"], calls) == ([], [])
    assert {row["metric"] for row in data["comparisons"][0]["effects"]}.isdisjoint({"contains"})
    data = report_data(trial(tmp_path / "one"))
    assert len(calls) == 1, "scores are made once, for the section and for the verdicts"
    assert {row["scorer"] for row in data["scores"]} == {"contains"}


def strict(output: str, target: str) -> float:
    """A scorer that fails on an answer that is none."""
    if output == "no idea":
        raise ValueError("no answer")
    return 1.0


def test_scores_that_failed_are_missing_pairs(tmp_path: Path) -> None:
    name = "test_scored:strict"
    analysis = {"primary": [name]}
    few = findings(trial(tmp_path, wrong(5), analysis, [[name]]))
    effect = few.of("fast").comparison.effect(name)
    assert effect is not None
    assert (effect.num_units, effect.num_left_out) == (23, 1)
    assert verdict(few, name).word == "withheld"
    assert verdict(few, name).reason == (
        f"`{name}` failed on 2 of 48 outputs, and on 0 of baseline's: what was scored does not "
        "compare"
    )


def test_a_scorer_that_cannot_be_had_here(tmp_path: Path) -> None:
    analysis = {"primary": ["contains", "nowhere:function"]}
    names = [["contains", "nowhere:function"]]
    results = trial(tmp_path, wrong(*range(12)), analysis, names)
    data = report_data(results)
    assert verdict(findings(results)).word == "worse", "the other one is judged"
    [gone] = [
        e for e in data["comparisons"][0]["effects"] if e["metric"] == "nowhere:function"
    ]  # fmt: skip
    assert (gone["verdict"], gone["estimate"]) == ("withheld", None)
    assert "No module named 'nowhere'" in gone["verdict_reason"]
    [note] = [note for note in data["notes"] if "nowhere" in note]
    assert note.startswith("there are no scores by nowhere:function: ")
    assert "1 verdict withheld" in data["answer"]


def test_what_an_open_verdict_needs(tmp_path: Path) -> None:
    """2 of 24 are lost: the spread is that of two times 1 and 22 times 0."""
    found = findings(trial(tmp_path, wrong(3, 4), {"primary": ["contains"]}, seeds=(1,)))
    need = found.needs["fast", "contains"]
    mean = 2 / 24
    spread = Components((2 * (1 - mean) ** 2 + 22 * mean**2) / 23, None, 24, 1)
    wanted = needed(spread, mean, 24, 1, Judgement().level(2), 0.8)
    assert need.num_prompts == wanted.num_prompts
    assert need.num_seeds is None
    assert need.reason == "with one seed, the noise between seeds is not known"
    added = addition(found, {"set0": 10**6}, 10**9)
    assert added is not None
    assert added.prompts == {"set0": need.num_prompts}
    seeds = findings(
        trial(tmp_path / "two", wrong(3, 4, 5, 6, seeds=[1]), {"primary": ["contains"]})
    )
    assert seeds.needs["fast", "contains"].num_seeds, "with two seeds it is"


def test_what_a_pilot_says_that_a_trial_will_see(tmp_path: Path) -> None:
    analysis = {"primary": ["contains", "nowhere:function"]}
    names = [["contains", "nowhere:function"]]
    results = trial(tmp_path, wrong(3, 4), analysis, names, seeds=(1,))
    connection, plan = connect(results), results.plan()
    try:
        seen, unknown = visible(connection, plan, scored.read_scores(connection, plan))
    finally:
        connection.close()
    mean = 2 / 24
    error = ((2 * (1 - mean) ** 2 + 22 * mean**2) / 23 / 24) ** 0.5
    assert seen.smallest == pytest.approx(mde(error, 23, Judgement().level(1), 0.8))
    assert unknown.smallest is None
    assert "nowhere" in str(unknown.reason)


def test_scores_by_likelihood_have_no_seeds(tmp_path: Path) -> None:
    """The right choice of four prompts costs `fast` more; a prompt is one pair at any seeds."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "likelihoods" and cell.configuration == "fast":
            for row in rows:
                if row["candidate"] == 1 and int(row["prompt_id"][1:]) < 4:
                    row["nats"] *= 100

    analysis = {"primary": ["multiple_choice"]}
    found = findings(trial(tmp_path, edit, analysis, [["multiple_choice"]]))
    effect = found.of("fast").comparison.effect("multiple_choice")
    assert effect is not None
    assert effect.p == pytest.approx(stats.binomtest(0, 4).pvalue)
    assert effect.method == "McNemar's exact test"
    need = found.needs["fast", "multiple_choice"]
    assert need.num_prompts
    assert need.num_seeds is None
    [row] = [r for r in found.scored.statistics if r["configuration"] == "fast"]
    assert row["difference"].p == effect.p
    assert (row["difference"].low, row["difference"].high) == (effect.low, effect.high)


def test_factors_of_a_score(tmp_path: Path) -> None:
    """`vocabulary: new` loses a quarter, whatever `sparse` is."""

    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.kind == "generations" and "new" in cell.configuration else ():
            if int(row["prompt_id"][1:]) % 4 == 0:
                row["completion_text"] = "no idea"

    analysis = {"primary": ["contains"]}
    four = tuple(c for c in arms() if c.duplicate_of is None)
    found = findings(trial(tmp_path, edit, analysis, arms=four))
    [each] = [a for a in found.attributions if a.metric.name == "contains"]
    estimates = {tuple(c.factors): c.estimate for c in each.contrasts}
    assert estimates["vocabulary",] == pytest.approx(-0.25)
    assert estimates["sparse",] == estimates["vocabulary", "sparse"] == 0


CLAIM = {"name": "c", "text": "no worse", "configuration": "fast", "metric": "contains"}


def checked(results: Results, **promise: Any) -> Checked:
    connection = connect(results)
    try:
        found = findings(results)
        [answer] = check_claims([Claim.model_validate(CLAIM | promise)], found, connection)
    finally:
        connection.close()
    return answer


def test_claims_of_a_score(tmp_path: Path) -> None:
    results = trial(tmp_path, wrong(*range(0, 24, 3)), seeds=(1,))  # -0.33 [-0.55, -0.13]
    assert checked(results, at_least=-0.02).answer == "refuted"
    assert checked(results, at_least=-0.3).answer == "undecided"
    assert checked(results, at_most=-0.05).answer == "supported"
    evidence = checked(results, at_most=-0.05).evidence
    assert evidence.startswith("-0.3333 [-0.5")
    same = trial(tmp_path / "same")
    assert checked(same, identical=True).answer == "supported"


def test_claims_of_unknown_scores_are_refused(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"claims": [CLAIM | {"metric": "contians", "at_least": -0.02}]}))
    results = trial(tmp_path)
    code, out, err = run("report", results.output, "--claims", path)
    assert (code, out) == (2, "")
    assert "claims[0].metric: there is no metric `contians`" in err
    path.write_text(json.dumps({"claims": [CLAIM | {"at_least": -0.02}]}))
    assert run("report", results.output, "--claims", path)[0] == 0
    with pytest.raises(InputError, match="no metric `contains`"):
        read_claims(path)


def spec(folder: Path, analysis: dict[str, Any], **dataset: Any) -> Path:
    rows = [{"prompt": f"question {i}", "target": str(i)} for i in range(4)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    made = folder / "trial.yaml"
    made.write_text(json.dumps({
        "model": "demo", "datasets": [{"path": str(prompts), "scorers": ["contains"]} | dataset],
        "configurations": [{"name": "one"}], "output": str(folder / "out"), "analysis": analysis,
    }))  # fmt: skip
    return made


@pytest.mark.parametrize("field", ["primary", "margins", "directions"])
def test_a_name_that_nothing_is_scored_by_is_refused(tmp_path: Path, run: Run, field: str) -> None:
    given = {"primary": ["contians"], "margins": {"contians": 0.1},
             "directions": {"contians": "lower"}}[field]  # fmt: skip
    path = spec(tmp_path, {field: given})
    code, out, err = run("evaluate", path)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert f"{path}: analysis.{field}: there is no metric `contians`" in err
    assert "failed_share, contains" in err, "what there is"
    assert not (tmp_path / "out").exists()


def test_a_spec_may_name_its_scorers(tmp_path: Path) -> None:
    read = read_spec(spec(tmp_path, {"primary": ["contains"], "margins": {"contains": 0.1}}))
    plan, _ = make_plan(read, "spec")
    assert plan.analysis["primary"] == ["contains"]
    assert TrialSpec.model_validate(read.model_dump()) == read
    # The file has no answers in this column, so nothing is scored.
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"prompt": "question"}))
    with pytest.raises(InputError, match=r"analysis.primary: .* no data set with targets"):
        make_plan(read, "spec")


def test_a_stored_trial_with_a_name_that_is_gone_is_read(tmp_path: Path) -> None:
    data = report_data(trial(tmp_path, analysis={"primary": ["gone", "contains"]}))
    assert {row["metric"] for row in data["verdicts"]} == {"contains"}
