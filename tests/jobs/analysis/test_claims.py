"""Claims: supported, refuted, undecided, not applicable; and the gate that they make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factorial_results import factorial_results
from program import Run
from rich.console import Console
from scipy import stats
from trial_results import make_results

from cluster.results.results import MANIFEST, Results
from jobs.analysis.claims import AUTHORS, Checked, Claim, check_claims, read_claims
from jobs.analysis.findings import read_findings
from jobs.queries.sql import connect
from jobs.report.render.terminal_tables import print_claims
from jobs.report.report_data import claims_data, report_data
from jobs.spec.analysis_plan import Judgement
from jobs.stats.permutation.effects import ratio_effect
from optim.errors import InputError


def write(folder: Path, *claims: dict[str, Any]) -> str:
    path = folder / "claims.yaml"
    path.write_text(json.dumps({"claims": list(claims)}), encoding="utf-8")
    return str(path)


def checked_claims(results: Results, path: str) -> list[Checked]:
    claims = read_claims(path)
    connection = connect(results)
    try:
        return check_claims(claims, read_findings(connection, results.plan()), connection)
    finally:
        connection.close()


def claim(name: str = "c", **fields: Any) -> dict[str, Any]:
    return {"name": name, "text": f"claim {name}", "configuration": "fast"} | fields


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("claims") / "out")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"metric": "e2e_s", "at_most": -0.05}, "supported"),
        ({"metric": "e2e_s", "at_most": -0.2}, "refuted"),
        ({"metric": "e2e_s", "at_most": -0.10}, "undecided"),
        ({"metric": "e2e_s", "at_least": -0.2, "at_most": -0.05}, "supported"),
        ({"metric": "e2e_s", "within": 0.2}, "supported"),
        ({"metric": "e2e_s", "within": 0.05}, "refuted"),
        ({"metric": "completion_tokens", "identical": True}, "supported"),
        ({"metric": "e2e_s", "identical": True}, "refuted"),
        ({"metric": "texts", "identical": True}, "supported"),
        ({"metric": "kv_committed_peak_bytes", "at_most": -0.09}, "supported"),
        ({"metric": "kv_committed_peak_bytes", "at_most": -0.15}, "refuted"),
        ({"metric": "texts", "identical": True, "configuration": "short"}, "refuted"),
        ({"metric": "e2e_s_per_byte", "at_least": 0, "configuration": "short"}, "undecided"),
    ],
)
def test_answers(results: Results, tmp_path: Path, fields: dict[str, Any], answer: str) -> None:
    [checked] = checked_claims(results, write(tmp_path, claim(**fields)))
    assert checked.answer == answer, checked.evidence
    assert checked.evidence


@pytest.mark.parametrize(
    ("conditions", "evidence"),
    [
        ({"device": "cuda"}, "cuda"),
        ({"batch_size": 1}, "batch size"),
        ({"min_weight_bytes": 1e9}, "weights"),
        ({"rival": "static"}, "static"),
        ({"datasets": ["set0"]}, "set1"),
        ({"device": "cpu", "batch_size": 8, "min_weight_bytes": 100, "rival": "dynamic",
          "datasets": ["set0", "set1"]}, None),
    ],
)  # fmt: skip
def test_outside_its_conditions_a_claim_does_not_apply(
    results: Results, tmp_path: Path, conditions: dict[str, Any], evidence: str | None
) -> None:
    refuted = claim(metric="e2e_s", at_most=-0.5, conditions=conditions)
    [checked] = checked_claims(results, write(tmp_path, refuted))
    if evidence is None:
        assert checked.answer == "refuted"
    else:
        assert checked.answer == "not applicable"
        assert evidence in checked.evidence


def test_texts_that_differ_of_themselves_refute_nothing(tmp_path: Path) -> None:
    def unsteady(cell: Any, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.configuration in ("again", "fast") else ():
            if "completion_text" in row:
                row["completion_text"] += cell.configuration

    results = make_results(tmp_path / "out", edit=unsteady)
    [checked] = checked_claims(results, write(tmp_path, claim(metric="texts", identical=True)))
    assert checked.answer == "undecided"
    assert "run twice" in checked.evidence


def test_the_authors_claims_are_read_and_answered(tmp_path: Path) -> None:
    claims = read_claims(AUTHORS)
    assert {c.metric for c in claims} >= {
        "tokens_per_base_token", "tpot_s", "kv_committed_peak_bytes", "texts",
        "device_s_per_byte", "kv_byte_s_per_byte",
    }  # fmt: skip
    checked = checked_claims(factorial_results(tmp_path / "out"), AUTHORS)
    assert {each.answer for each in checked} == {"not applicable"}, "none of the three was on"
    assert all(each.evidence for each in checked)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"metric": "speed", "at_most": 1}, "speed"),
        ({"metric": "e2e_s"}, "promise something"),
        ({"metric": "texts", "at_most": 1}, "identical"),
        ({"metric": "e2e_s", "at_most": 1, "adds": ["larosa"]}, "either"),
        ({"metric": "e2e_s", "at_most": 1, "confidence": 2}, "confidence"),
        ({"metric": "e2e_s", "at_most": 1, "conditions": {"rival": "sttic"}}, "sttic"),
        ({"metric": "e2e_s", "at_most": 1, "configuration": None, "adds": ["x"]}, "`x`"),
        ({"metric": "e2e_s", "at_most": 1, "settings": {"larosa": {}}}, "settings"),
        ({"metric": "e2e_s", "identical": True, "at_most": 1}, "identical"),
        ({"metric": "e2e_s", "within": 0.1, "at_most": 1}, "within"),
        ({"metric": "e2e_s", "at_least": 2, "at_most": 1}, "at_least"),
        ({"metric": "e2e_s", "at_most": 1, "surely": True}, "surely"),
    ],
)
def test_bad_claims_name_the_file_and_the_field(
    tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError) as raised:
        read_claims(write(tmp_path, claim(**fields)))
    assert "claims.yaml" in str(raised.value)
    assert named in str(raised.value)


def test_two_claims_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two claims are named"):
        read_claims(write(tmp_path, *[claim(metric="e2e_s", at_most=0)] * 2))


def test_a_claim_about_no_configuration_of_the_trial(results: Results, tmp_path: Path) -> None:
    unknown = claim(configuration="nobody", metric="e2e_s", at_most=0)
    with pytest.raises(InputError, match="nobody"):
        checked_claims(results, write(tmp_path, unknown))


def test_the_table_and_the_json(results: Results, tmp_path: Path) -> None:
    path = write(tmp_path, claim("first", metric="e2e_s", at_most=-0.05))
    checked = checked_claims(results, path)
    out = io.StringIO()
    print_claims(claims_data(checked), Console(file=out, width=100))
    assert "claim first" in out.getvalue()
    assert "supported" in out.getvalue()
    [row] = report_data(results, read_claims(path))["claims"]
    assert [row] == claims_data(checked)
    assert "claims" not in report_data(results)
    assert (row["answer"], row["configuration"], row["vs"]) == ("supported", "fast", "baseline")


def test_the_gate(run: Run, results: Results, tmp_path: Path) -> None:
    fails = write(tmp_path, claim(metric="e2e_s", at_most=-0.5))
    code, out, _ = run("report", results.store.url, "--claims", fails)
    assert code == 1
    assert "refuted" in out
    assert run("report", results.store.url, "--claims", fails, "--no-gate")[0] == 0
    held = write(tmp_path, claim(metric="e2e_s", at_most=-0.05))
    code, out, _ = run("report", results.store.url, "--claims", held, "--json")
    assert code == 0
    assert json.loads(out)["claims"][0]["answer"] == "supported"
    code, out, err = run("report", results.store.url, "--claims", tmp_path / "none.yaml")
    assert (code, out) == (2, "")
    assert "none.yaml" in err


def test_a_bad_claims_file_stops_a_trial_before_it_runs(run: Run, tmp_path: Path) -> None:
    bad = write(tmp_path, claim(metric="speed", at_most=0))
    spec = tmp_path / "trial.yaml"
    spec.write_text(json.dumps({
        "model": "demo", "datasets": [{"path": "demo/data", "limit": 1}],
        "configurations": [{"name": "baseline"}], "output": str(tmp_path / "never"),
    }))  # fmt: skip
    code, _, err = run("evaluate", spec, "--claims", bad)
    assert code == 2
    assert "there is no metric `speed`" in err
    assert not (tmp_path / "never").exists()


def test_a_file_of_many_true_claims_fails_no_more_often_than_one(tmp_path: Path) -> None:
    """Twenty claims share one error rate: each has a twentieth, and the look's part of it."""
    results = make_results(tmp_path / "out")
    one = claim(metric="e2e_s", at_most=-0.05)
    [alone] = checked_claims(results, write(tmp_path, one))
    many = [claim(f"c{i}", metric="e2e_s", at_most=-0.05) for i in range(20)]
    among = checked_claims(results, write(tmp_path, *many))[0]

    def width(evidence: str) -> float:
        low, high = evidence.partition("[")[2].partition("]")[0].split(", ")
        return float(high.removesuffix(" %")) - float(low.removesuffix(" %"))

    assert alone.answer == among.answer == "supported"
    assert width(among.evidence) > 1.2 * width(alone.evidence)
    assert "over the file and its looks" in among.evidence


ONE_PAIR: tuple[dict[str, Any], ...] = (
    {"metric": "completion_tokens", "identical": True},
    {"metric": "bits_per_byte", "identical": True},
    {"metric": "texts", "identical": True},
    {"metric": "contains", "identical": True},
    {"metric": "contains", "within": 0.02},
    {"metric": "failed_share", "within": 0.005},
    {"metric": "completion_tokens", "within": 0.005},
    {"metric": "completion_tokens", "at_most": 0.005},
)


def scored_results(folder: Path, **options: Any) -> Results:
    given = {"num_datasets": 1, "num_shards": 1, "seeds": (1,)} | options
    made = make_results(folder / "out", **given)
    manifest = json.loads(made.store.read(MANIFEST))
    for dataset in manifest["plan"]["datasets"]:
        dataset["scorers"] = ["contains"]
    made.store.replace(MANIFEST, json.dumps(manifest).encode())
    return Results(made.output)


def scored_claims(results: Results, folder: Path, *fields: dict[str, Any]) -> list[Checked]:
    path = write(folder, *(claim(f"c{i}", **each) for i, each in enumerate(fields)))
    connection = connect(results)
    try:
        found = read_findings(connection, results.plan())
        return check_claims(read_claims(path, ["contains"]), found, connection)
    finally:
        connection.close()


def test_one_pair_shows_no_equality(tmp_path: Path) -> None:
    results = scored_results(tmp_path, num_prompts=1)
    for checked in scored_claims(results, tmp_path, *ONE_PAIR):
        assert checked.answer == "undecided", checked.claim
        assert "equal in the one pair that there is" in checked.evidence


def test_equal_pairs_support_what_their_number_shows(tmp_path: Path) -> None:
    """No p of 4 prompts is low enough; 8 show that tokens are equal, and nothing of failures."""
    tokens = {"metric": "completion_tokens", "within": 0.005}
    few = scored_results(tmp_path / "few", num_prompts=4)
    [checked] = scored_claims(few, tmp_path, tokens)
    assert checked.answer == "undecided"
    assert "4 units are too few to show it" in checked.evidence
    some = scored_results(tmp_path / "some", num_prompts=8)
    assert [each.answer for each in scored_claims(some, tmp_path, tokens)] == ["supported"]
    shares = [{"metric": name, "within": 0.02} for name in ("failed_share", "contains")]
    found = scored_claims(some, tmp_path, *shares)
    assert [each.answer for each in found] == ["undecided"] * 2
    assert found[0].evidence.startswith("0 in every pair [-0.")
    twins = [{"metric": name, "identical": True} for name in ("failed_share", "texts")]
    assert [each.answer for each in scored_claims(some, tmp_path, *twins)] == ["supported"] * 2


@pytest.mark.parametrize(("size", "answer"), [(159, "undecided"), (160, "supported")])
def test_failures_that_none_of_so_many_prompts_had(tmp_path: Path, size: int, answer: str) -> None:
    """0.98^n is at most 4 %, the first look's share of 5 %, from 160 prompts on."""
    results = scored_results(tmp_path, num_prompts=size)
    bounds = {"within": 0.02}, {"at_most": 0.02}, {"at_least": -0.02}
    connection = connect(results)
    found = read_findings(connection, results.plan())
    for name in ("failed_share", "contains"):
        for bound in (*bounds, {"at_most": -0.05}):
            asked = Claim.model_validate(claim(metric=name, **bound))
            [checked] = check_claims([asked], found, connection)
            wanted = "refuted" if bound == {"at_most": -0.05} else answer
            assert checked.answer == wanted, checked.evidence
    connection.close()


def test_claims_widen_with_looks() -> None:
    """What is kept for later looks is not spent at the first one."""
    rng = np.random.default_rng(1)
    refuted = {0: 0, 2: 0}
    for _ in range(300):
        a, b = rng.lognormal(0, 0.1, (2, 24))
        effect = ratio_effect(a, b)
        for looks in refuted:
            share = Judgement().level(looks + 1) / Judgement().alpha
            bounds = effect.at(1 - 0.05 * share)
            assert bounds is not None
            refuted[looks] += bounds[0] > 0
    assert refuted[0] <= stats.binom.ppf(0.999, 300, 0.02)
    assert refuted[2] <= 3
