"""`compare` and `plan`: a comparison without a spec, and what a trial costs before it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import Run
from trial_results import make_results

from cluster.results.results import Results
from jobs.cli.forecast_table import clock_text
from jobs.forecasting.compare_cost import artifact_cost, artifact_text
from jobs.forecasting.forecast import forecast
from jobs.forecasting.forecast import visible as visible_effects
from jobs.preparation.prepare import checked, recipe
from jobs.preparation.recipes import write_recipe
from jobs.queries.sql import connect
from jobs.trial.compare import (
    BASELINE,
    OPTIMIZED,
    Choice,
    check,
    spec_of,
    task_of,
    wanted_artifacts,
)
from optim.errors import InputError
from optim.larosa.artifact import Artifact

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"prompt {i}", "target": " x"} for i in range(16))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_compare_end_to_end(
    run: Run, tmp_path: Path, tiny_model_folder: Path, prompts: Path
) -> None:
    words = [
        "compare", "--model", tiny_model_folder, "--vattention", "--prompts", prompts,
        "--seeds", "2", "--max-new-tokens", "6", "--output", tmp_path / "out",
    ]  # fmt: skip
    code, out, err = run(*words)
    assert code == 0, err
    table = out[: out.index("why") if "why" in out else out.index("does it change")]
    for label in ("prompt tokens", "completion tokens", "prompt and completion", "KV memory held"):
        assert label in table
    assert "exactly equal" in table
    assert "vattention: it only keeps keys and values" in " ".join(out.split())
    plan = Results(str(tmp_path / "out")).plan()
    assert {c.name for c in plan.configurations} >= {BASELINE, OPTIMIZED}
    code, out, _ = run(*words)
    assert code == 0, "a second time, nothing is run again"
    assert "0 of 32 texts" in " ".join(out.split())


def test_compare_prepares_what_larosa_needs(
    run: Run, tmp_path: Path, tiny_model_folder: Path, prompts: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"text number {i} of many " * 40 for i in range(40)))
    code, out, err = run(
        "compare", "--model", tiny_model_folder, "--larosa-sparsity", "0.5",
        "--prompts", prompts, "--corpus", corpus, "--seeds", "1", "--max-new-tokens", "4",
        "--limit", "8", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "preparing larosa (quick)" in out
    assert "(26 of 26), " in out, "four sites at six shares, and two ways to share out"
    made = Artifact.open(tmp_path / "out-artifacts" / "larosa-quick").manifest
    assert made.calibration.sequence_length <= 512
    plan = Results(str(tmp_path / "out")).plan()
    [chosen] = plan.configuration(OPTIMIZED).optimizations
    assert (chosen.name, chosen.settings["sparsity"]) == ("larosa", 0.5)


def test_a_dry_run_says_what_each_part_takes_and_leaves_nothing(
    run: Run, tmp_path: Path, tiny_model_folder: Path, prompts: Path
) -> None:
    words = [
        "compare", "--model", tiny_model_folder, "--larosa-sparsity", "0.5", "--vattention",
        "--prompts", prompts, "--seeds", "2", "--max-new-tokens", "4",
        "--output", tmp_path / "runs" / "out", "--dry-run",
    ]  # fmt: skip
    code, out, err = run(*words)
    assert code == 0, err
    said = " ".join(out.split())
    assert re.search(r"larosa: quick preparation, about \d+ s \(--preparation full: about", said)
    assert "96 completions: 3 configurations (repeats included) x 16 prompts x 2 seeds" in said
    assert "of device time" in said
    assert said.endswith("Nothing was kept.")
    assert not (tmp_path / "runs").exists()


def test_a_full_preparation_costs_more_and_serves_a_quick_comparison(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    choice = Choice(
        str(tiny_model_folder), larosa_sparsity=0.5, prompts=("p",), output=str(tmp_path / "out")
    )
    [wanted] = wanted_artifacts(choice)
    quick, full = task_of(wanted, choice, "quick"), task_of(wanted, choice, "full")
    made = [checked("larosa", each.settings) for each in (quick, full)]
    cost = [each.forward_tokens(30, 8192, 0) for each in made]  # type: ignore[attr-defined]
    assert cost[1] > 10 * cost[0]
    Path(full.out).mkdir(parents=True)
    (Path(full.out) / "larosa.json").write_text("{}")
    write_recipe(full.out, recipe(full))
    found = artifact_cost(wanted, choice, lambda stage: None)
    assert (found.is_there, found.out) == (True, full.out)
    assert artifact_text(found, "quick") == f"larosa: {full.out} is there already."


def test_too_short_a_text_names_this_commands_option(
    run: Run, tmp_path: Path, tiny_model_folder: Path, prompts: Path
) -> None:
    code, _, err = run(
        "compare", "--model", tiny_model_folder, "--larosa-sparsity", "0.5",
        "--prompts", prompts, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "--corpus: the calibration text is too short" in " ".join(err.split())
    assert "--corpus demo/training" in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        (Choice("demo"), "--vattention"),
        (Choice("demo", larosa="x"), "--larosa"),
        (Choice("demo", larosa_sparsity=1.5), "--larosa-sparsity"),
        (Choice("demo", patch_tokenizer="/nowhere"), "--patch-tokenizer"),
        (Choice("some/model", vattention=True), "--prompts"),
    ],
)
def test_bad_choices_name_the_option(choice: Choice, field: str) -> None:
    with pytest.raises(InputError) as raised:
        check(choice)
    assert field in str(raised.value)


def test_a_choice_is_the_spec_that_it_stands_for() -> None:
    spec = spec_of(Choice("demo", vattention=True, seeds=5, batch_size=2), ["vattention"])
    assert len(spec.datasets) == 3
    assert len(spec.seeds) == 5
    [_, optimized] = spec.configurations
    assert optimized.name == OPTIMIZED


@pytest.fixture
def spec(tmp_path: Path, tiny_model_folder: Path, prompts: Path) -> Path:
    data = {
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 8}],
        "configurations": [
            {"name": "baseline"},
            {"name": "cached", "optimizations": ["vattention"]},
        ],
        "seeds": 4,
        "generation": {"max_new_tokens": 6, "temperature": 0.8},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_a_forecast_from_a_pilot(spec: Path, tmp_path: Path) -> None:
    found = forecast(spec, pilot_prompts=6, pilot_seeds=2)
    assert found.num_rows == 3 * 16 * 4
    assert found.pilot_rows == 3 * 6 * 2
    assert found.device_s is not None
    assert found.device_s > 0
    tokens = next(v for v in found.visible if v.metric == "completion_tokens")
    assert (tokens.configuration, tokens.smallest, tokens.is_enough) == ("cached", 0.0, True)
    time = next(v for v in found.visible if v.metric == "e2e_s_per_byte")
    assert time.smallest is None or time.smallest > 0
    assert not (tmp_path / "out").exists(), "a pilot leaves nothing"


@pytest.mark.slow
def test_storage_is_foretold_within_a_quarter(spec: Path, run: Run, tmp_path: Path) -> None:
    found = forecast(spec, pilot_prompts=6, pilot_seeds=2)
    assert run("evaluate", spec)[0] == 0
    parts = [*(tmp_path / "out").glob("generations/**/*.parquet")]
    parts += (tmp_path / "out").glob("likelihoods/**/*.parquet")
    stored = sum(path.stat().st_size for path in parts)
    assert found.storage_bytes == pytest.approx(stored, rel=0.25)


def test_counting_needs_no_pilot(spec: Path, run: Run) -> None:
    code, out, _ = run("plan", spec, "--pilot-prompts", "0")
    assert code == 0
    assert "192 completions" in out
    assert "Without a pilot" in out
    code, out, _ = run("plan", spec, "--pilot-prompts", "0", "--json")
    assert json.loads(out)["num_seeds"] == 4
    assert run("plan", spec, "--pilot-prompts", "-1")[0] == 2


def test_clock_text() -> None:
    assert clock_text(90) == "90.00 s"
    assert clock_text(600) == "10 min"
    assert clock_text(36_000) == "10.0 h"


def test_a_pilot_has_shards_of_the_trials_size() -> None:
    from cluster.plan import Dataset
    from jobs.forecasting.forecast import _few_of
    from jobs.spec.trial_spec import DatasetSpec

    def pilot(num_prompts: int, shards: int, prompts: int = 8) -> tuple[int | None, int | None]:
        planned = Dataset(
            name="x", num_prompts=num_prompts, first_row=0, num_shards=shards, fingerprint=""
        )
        few = _few_of(DatasetSpec(path="x.jsonl"), planned, prompts)
        return few.limit, few.shards

    assert pilot(24, 8) == (8, 3), "shards of 3, as far as 8 prompts go"
    assert pilot(200, 8) == (8, 3)
    assert pilot(16, 8) == (8, 4)
    assert pilot(2, 2) == (2, 2)
    assert pilot(200, 8, prompts=1) == (1, 1)


@pytest.mark.parametrize(
    ("workers", "num_shards", "reason"),
    [
        ({"schedule": "leases"}, 8, "it needs 9 rounds in all, 24 loads of models more"),
        ({}, 8, "it needs 9 shards in all"),
        ({}, 9, None),
    ],
)
def test_a_plan_says_of_what_nothing_can_be_found(
    tmp_path: Path, workers: dict[str, Any], num_shards: int, reason: str | None
) -> None:
    """8 tests at 4 % need 9 units, as no p of 8 is below 1 in 128."""
    results = make_results(tmp_path / "out", num_datasets=1, num_shards=num_shards)
    plan = results.plan()
    plan = plan.model_copy(update={"workers": plan.workers.model_copy(update=workers)})
    connection = connect(results)
    try:
        found = {(v.configuration, v.metric): v for v in visible_effects(connection, plan)}
    finally:
        connection.close()
    time = found["fast", "e2e_s_per_byte"]
    assert (reason or "") in (time.reason or "")
    assert (time.smallest is None) == (reason is not None)
    assert found["short", "completion_tokens"].smallest is not None, "there are 24 prompts"
