"""Tasks through the engine against lm-eval's own model: the same likelihoods, texts and metrics."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import task_trials

from cluster.results.results import Results
from jobs.report.report_data import report_data
from jobs.scoring.scores import score_statistics, score_table, scores
from jobs.trial.planning import make_plan
from optim.errors import InputError
from optim.model import load

pytest.importorskip("lm_eval", reason="needs the extra `quality`")

NAMES = ("python_choices", "python_words", "python_prose")


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's tasks, in a folder of the tests' own."""
    made = tmp_path_factory.mktemp("tasks") / "tasks"
    shutil.copytree(task_trials.TASKS, made)
    return made


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Results:
    output = tmp_path_factory.mktemp("trial") / "out"
    datasets = [{"task": name, "include_path": str(folder)} for name in NAMES]
    analysis = {"primary": ["acc", "exact_match,first-word", "word_perplexity"]}
    spec = task_trials.spec_of("demo", output, *datasets, seeds=[7], analysis=analysis)
    return task_trials.run_trial(spec)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str, Any]:
    return task_trials.lm_eval_results(load("demo"), NAMES, folder)


@pytest.mark.parametrize("configuration", ["one", "four"])
def test_likelihoods_are_lm_evals(
    results: Results, theirs: dict[str, Any], configuration: str
) -> None:
    ours: dict[tuple[str, str], dict[int, Any]] = {}
    for row in results.read("likelihoods").to_pylist():
        if row["configuration"] == configuration:
            place = ours.setdefault((row["dataset"], row["prompt_id"]), {})
            place[row["candidate"]] = (row["nats"], row["is_greedy"])
    compared = 0
    for sample in theirs["samples"]["python_choices"]:
        for choice, (response,) in enumerate(sample["resps"]):
            nats, is_greedy = ours["python_choices", str(sample["doc_id"])][choice]
            assert (-nats, is_greedy) == (pytest.approx(response[0], abs=2e-3), response[1])
            compared += 1
    for sample in theirs["samples"]["python_prose"]:
        nats, _ = ours["python_prose", str(sample["doc_id"])][-1]
        assert -nats == pytest.approx(sample["resps"][0][0], abs=5e-3)
        compared += 1
    assert compared == 16 * 4 + 6


def test_texts_are_lm_evals(results: Results, theirs: dict[str, Any]) -> None:
    ours = {
        (row["configuration"], row["prompt_id"]): row["completion_text"]
        for row in results.read("generations").to_pylist()
    }
    wanted = {str(s["doc_id"]): s["resps"][0][0] for s in theirs["samples"]["python_words"]}
    assert len(wanted) == 12
    assert any(wanted.values())
    assert ours == {(c, doc): text for c in ("one", "four") for doc, text in wanted.items()}


def test_metrics_are_lm_evals(results: Results, theirs: dict[str, Any]) -> None:
    found = {
        (row["configuration"], row["dataset"], row["scorer"]): row["mean"].estimate
        for row in score_statistics(results)
    }
    wanted = {
        (task, metric.removesuffix(",none")): value
        for task in NAMES
        for metric, value in theirs["results"][task].items()
        if "," in metric and "stderr" not in metric
    }
    assert {name for _, name in wanted} == {
        "acc", "acc_norm", "exact_match,first-word",
        "word_perplexity", "byte_perplexity", "bits_per_byte",
    }  # fmt: skip
    for configuration in ("one", "four"):
        for (task, metric), value in wanted.items():
            assert found[configuration, task, metric] == pytest.approx(value, rel=1e-4)
    assert len(found) == 2 * len(wanted)


def test_scores_of_documents(results: Results, theirs: dict[str, Any]) -> None:
    rows = scores(results).to_pylist()
    assert {row["error"] for row in rows} == {None}
    of_words = [row for row in rows if row["scorer"] == "exact_match,first-word"]
    assert {row["seed"] for row in of_words} == {7}
    for sample in theirs["samples"]["python_words"]:
        own = [r["value"] for r in of_words if r["prompt_id"] == str(sample["doc_id"])]
        assert own == [sample["exact_match"]] * 2
    prose = [row for row in rows if row["scorer"] == "bits_per_byte"]
    assert {row["seed"] for row in prose} == {None}
    assert len(prose) == 12
    assert all(0.5 < row["value"] < 5 for row in prose), "each document's own value"


def test_differences_are_paired(results: Results) -> None:
    compared = [row for row in score_statistics(results) if row["configuration"] == "four"]
    assert len(compared) == 6
    for row in compared:
        effect = row["difference"]
        assert effect.estimate == pytest.approx(0, abs=1e-3), "batch size changes no score"
        assert effect.num_units == {"python_choices": 16, "python_words": 12}.get(row["dataset"], 6)


def test_report_and_table_show_tasks(results: Results) -> None:
    shown = {(row["dataset"], row["scorer"]) for row in report_data(results)["scores"]}
    assert ("python_choices", "acc") in shown
    assert ("python_prose", "word_perplexity") in shown
    assert len(score_table(results).rows) == 12


def test_metrics_of_tasks_are_judged(results: Results) -> None:
    data = report_data(results)
    [comparison] = data["comparisons"]
    effects = {row["metric"]: row for row in comparison["effects"]}
    judged = {row["metric"]: (row["verdict"], row["family"]) for row in data["verdicts"]}
    assert judged["acc"] == ("exactly equal", "primary"), "batch size changes no choice"
    assert judged["exact_match,first-word"] == ("exactly equal", "primary")
    assert effects["acc_norm"]["family"] == "exploratory"
    assert effects["acc"]["num_units"] == 16
    of_all = [row for row in data["scores"] if row["scorer"] == "word_perplexity"]
    assert effects["word_perplexity"]["mean"] == of_all[1]["mean"]["estimate"]
    assert effects["word_perplexity"]["estimate"] == of_all[1]["difference"]["estimate"]
    assert (effects["acc"]["direction"], effects["word_perplexity"]["direction"]) == (
        "higher", "lower",
    )  # fmt: skip
    word, _ = judged["word_perplexity"]
    assert word in ("withheld", "exactly equal")
    if word == "withheld":
        assert "no mean of its documents" in effects["word_perplexity"]["verdict_reason"]


def test_metrics_that_no_task_has_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = {"task": "python_choices", "include_path": str(folder)}
    analysis = {"primary": ["accuracy"]}
    spec = task_trials.spec_of("demo", tmp_path / "out", dataset, analysis=analysis)
    with pytest.raises(InputError, match=r"analysis.primary: .*`accuracy`.* acc, acc_norm"):
        make_plan(spec, "spec")


def test_a_task_that_changed_is_not_scored(results: Results, folder: Path) -> None:
    data = folder / "choices.jsonl"
    before = data.read_text()
    try:
        data.write_text(before.replace("a mapping of keys.", "a mapping of keys!"))
        with pytest.raises(InputError, match="prompts are not those that were run"):
            scores(results)
        found = report_data(results)
        words = {row["metric"]: row["verdict"] for row in found["comparisons"][0]["effects"]}
        assert words["acc"] == "withheld"
        assert words["exact_match,first-word"] == "exactly equal", "the other tasks are judged"
        assert any("acc, acc_norm" in note and "not those" in note for note in found["notes"])
        data.write_text(before.replace('"answer": 0', '"answer": 1'))
        with pytest.raises(InputError, match="documents are not those that were run"):
            scores(results)
    finally:
        data.write_text(before)
    assert scores(results).num_rows
