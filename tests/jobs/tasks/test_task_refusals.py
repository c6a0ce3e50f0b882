"""What a task cannot be, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import task_trials
import yaml

from jobs.report.report_data import report_data
from jobs.scoring.scores import score_statistics, scores
from jobs.spec.trial_spec import TrialSpec, read_spec
from jobs.tasks.loading import load_task
from jobs.trial.planning import make_plan
from optim.errors import InputError

pytest.importorskip("lm_eval", reason="needs the extra `quality`")

DOCUMENTS = [{"question": "one", "answer": "two", "picture": "x"}] * 2
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "question",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [EXACT],
}


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


def plan_of(folder: Path, dataset: dict[str, Any] | None = None, **config: Any) -> Any:
    tasks = task_trials.write_task(folder / "tasks", DOCUMENTS, **(GENERATE | config))
    wanted = {"task": "own", "include_path": str(tasks), **(dataset or {})}
    return make_plan(task_trials.spec_of("demo", folder / "out", wanted), "spec")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"generation_kwargs": {"until": [], "num_beams": 4}}, "ask for num_beams"),
        ({"unsafe_code": True}, "runs the code that a model writes.*in a sandbox"),
        ({"doc_to_image": "picture"}, "needs images or sound"),
        ({"metric_list": [EXACT | {"metric": "mine"}]}, "has no metric `mine`.*trust_remote"),
        ({"metric_list": [EXACT | {"hf_evaluate": True}]}, "no metric `exact_match`.*of the hub"),
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "data cannot be had"),
        ({"dataset_path": "someone/something", "dataset_kwargs": None}, "data cannot be had.*the "
         "network"),
        ({"doc_to_text": "{{ question.missing.more }}"}, "UndefinedError"),
        ({"test_split": "training"}, "cannot be loaded: KeyError"),
    ],
)  # fmt: skip
def test_tasks_that_are_refused(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"own: task: .*{problem}"):
        plan_of(tmp_path, **config)


def test_examples_where_the_task_allows_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_fewshot: the task allows no examples"):
        plan_of(tmp_path, {"num_fewshot": 2}, num_fewshot=0)


def test_likelihoods_that_the_trial_does_not_want(tmp_path: Path) -> None:
    tasks = task_trials.write_task(tmp_path, [{"text": "so"}], output_type="loglikelihood_rolling",
                                   doc_to_text="", doc_to_target="{{text}}")  # fmt: skip
    dataset = {"task": "own", "include_path": str(tasks)}
    spec = task_trials.spec_of("demo", tmp_path / "out", dataset, likelihoods=False)
    with pytest.raises(InputError, match="likelihoods: the task compares likelihoods"):
        make_plan(spec, "spec")


def test_stock_tasks_without_the_network() -> None:
    with pytest.raises(InputError, match=r"arc_easy: task: its data cannot be had.*the network"):
        load_task("arc_easy", None, None)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("arc_esay", "Did you mean `arc_easy`"),
        ("mmlu", "it is a group of tasks. Give each a dataset: mmlu_stem"),
        ("ai2_arc", "it is a group of tasks. Give each a dataset: arc_challenge, arc_easy"),
    ],
)
def test_names_that_are_no_task(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_task(name, None, None)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="include_path: there is no such folder"):
        load_task("own", str(tmp_path / "nowhere"), None)


def test_lm_eval_is_not_installed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = task_trials.write_task(tmp_path / "tasks", DOCUMENTS, **GENERATE)
    dataset = {"task": "own", "include_path": str(tasks)}
    results = task_trials.run_trial(task_trials.spec_of("demo", tmp_path / "out", dataset))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"task: tasks need lm-eval.*Install `optrial\[quality\]`"):
        plan_of(tmp_path / "other")
    with pytest.raises(InputError, match="tasks need lm-eval"):
        scores(results)
    data = report_data(results)
    assert data["trial"]["num_prompts"] == 2, "the rest of the report is there"


def test_only_the_named_folder_is_read_and_only_tasks_that_are_run(tmp_path: Path) -> None:
    folder = task_trials.write_task(tmp_path / "tasks", DOCUMENTS, **GENERATE)
    trace = tmp_path / "trace"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'a').write('ran ')\n\n"
                                    "def answer(doc):\n    return doc['answer']\n")  # fmt: skip
    (folder / "other.yaml").write_text("task: other\ndoc_to_target: !function code.answer\n")
    spec = {"model": "demo", "output": str(tmp_path / "out"),
            "datasets": [{"task": "own", "include_path": str(folder)}]}  # fmt: skip
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    read = read_spec(path)
    make_plan(read, path)
    assert not trace.exists(), "the task beside it was not loaded"
    text = (folder / "own.yaml").read_text().replace("doc_to_target: answer", "")
    (folder / "own.yaml").write_text(text + "doc_to_target: !function code.answer\n")
    read = read_spec(path)
    assert not trace.exists(), "reading a spec executes nothing"
    make_plan(read, path)
    assert trace.exists(), "what a task names runs when it is loaded"


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ({"name": "d"}, "needs a `path`, or the name of a `task`"),
        ({"task": "arc_easy", "path": "x.jsonl"}, "`path` and `task` exclude each other"),
        ({"task": "arc_easy", "prompt": "question"}, "a `task` brings its own `prompt`"),
        ({"task": "arc_easy", "scorers": ["exact"]}, "a `task` brings its own `scorers`"),
        ({"path": "x.jsonl", "num_fewshot": 2}, "`num_fewshot` belongs to a `task`"),
        ({"path": "x.jsonl", "trust_remote_code": True}, "`trust_remote_code` belongs to a `task`"),
        ({"path": "x.jsonl", "include_path": "y"}, "`include_path` belongs to a `task`"),
    ],
)
def test_keys_of_a_dataset(dataset: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrialSpec.model_validate({"model": "demo", "datasets": [dataset], "output": "out"})


def test_a_spec_that_a_program_wrote_is_read_again(tmp_path: Path) -> None:
    spec = task_trials.spec_of("demo", tmp_path, {"task": "arc_easy", "num_fewshot": 5})
    assert spec.datasets[0].name == "arc_easy"
    assert TrialSpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize("place", ["import", "process", "aggregate"])
def test_metrics_of_the_hub_are_not_run(tmp_path: Path, place: str) -> None:
    get = 'evaluate.load("rouge")'
    lines = ["import evaluate", get if place == "import" else "", "",
             "def process(doc, results):", f"    {get if place == 'process' else ''}",
             "    return {'length': len(results[0])}", "", "def total(items):",
             f"    {get if place == 'aggregate' else ''}", "    return sum(items)"]  # fmt: skip
    folder = task_trials.write_task(tmp_path / "tasks", DOCUMENTS, **GENERATE)
    (folder / "code.py").write_text("\n".join(lines))
    text = (folder / "own.yaml").read_text()
    own = yaml.safe_load(text)
    del own["metric_list"]
    (folder / "own.yaml").write_text(
        yaml.safe_dump(own) + "process_results: !function code.process\nmetric_list:\n- metric: "
        "length\n  aggregation: !function code.total\n  higher_is_better: true\n"
    )
    dataset = {"task": "own", "include_path": str(folder)}
    spec = task_trials.spec_of("demo", tmp_path / "out", dataset)
    refusal = "the metric `rouge` is code of the hub. Set `trust_remote_code: true`"
    if place == "import":
        with pytest.raises(InputError, match=refusal):
            make_plan(spec, "spec")
        return
    results = task_trials.run_trial(spec)
    with pytest.raises(InputError, match=refusal):
        score_statistics(results)


def test_scorers_are_not_for_tasks(tmp_path: Path) -> None:
    tasks = task_trials.write_task(tmp_path / "tasks", DOCUMENTS, **GENERATE)
    dataset = {"task": "own", "include_path": str(tasks)}
    results = task_trials.run_trial(task_trials.spec_of("demo", tmp_path / "out", dataset))
    with pytest.raises(InputError, match="Leave `--scorer` out"):
        scores(results, ["exact"])
    assert {row["scorer"] for row in score_statistics(results)} == {"exact_match"}
