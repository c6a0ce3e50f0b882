"""Requests of every shape become rows, and answers find their way back to them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import task_trials
import tiny_models

from cluster.results.results import Results
from jobs.scoring.scores import score_statistics, scores
from jobs.tasks.dataset import chosen
from jobs.tasks.loading import Sample, load_task
from jobs.tasks.requests import COMPLETION, TARGET, task_rows
from jobs.trial.planning import describe_difference, make_plan
from optim.errors import InputError
from optim.model import load

pytest.importorskip("lm_eval", reason="needs the extra `quality`")

MEAN_ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
FILL = [
    {"start": "The ", "options": ["list", "socket"], "end": "is sorted.", "answer": 0},
    {"start": "A ", "options": ["file", "number"], "end": "is closed.", "answer": 0},
    {"start": "Every ", "options": ["key", "thread"], "end": "maps to a value.", "answer": 0},
]
SEVERAL_CONTEXTS = {
    "output_type": "multiple_choice",
    "doc_to_text": "answer",
    "doc_to_choice": "{{[start + options[0], start + options[1]]}}",
    "doc_to_target": "{{end}}",
    "metric_list": MEAN_ACC,
}
QUESTIONS = [
    {"question": f"{a} plus {b} is", "choices": [str(a + b), str(a * b + 7)], "answer": 0}
    for a in range(2, 5)
    for b in range(2, 5)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": MEAN_ACC,
}
BOTH_KINDS = """
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class Own(ConfigurableTask):
    VERSION = 2

    def __init__(self, config):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc, ctx, apply_chat_template=False, chat_template=None, **kwargs):
        asked = {"until": ["\\n"], "max_gen_toks": 5}
        return [
            Instance("generate_until", doc, (ctx, asked), 0, **kwargs),
            Instance("loglikelihood", doc, (ctx, " unknown"), 1, **kwargs),
        ]

    def process_results(self, doc, results):
        text, (log_likelihood, is_greedy) = results
        return {"letters": len(text), "unknown": -log_likelihood}

    def aggregation(self):
        return {"letters": lambda items: sum(items) / len(items), "unknown": max}

    def higher_is_better(self):
        return {"letters": True, "unknown": False}
"""


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


def run(folder: Path, documents: list[dict[str, Any]], config: dict[str, Any],
        **changes: Any) -> Results:  # fmt: skip
    tasks = task_trials.write_task(folder / "tasks", documents, **config)
    dataset = {"task": "own", "include_path": str(tasks), **changes.pop("dataset", {})}
    return task_trials.run_trial(task_trials.spec_of("demo", folder / "out", dataset, **changes))


def request(kind: str, *args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, args, 0)


def test_requests_become_rows() -> None:
    requests = (
        request("loglikelihood", "a question ", "yes"),
        request("loglikelihood", "a question", " no"),
        request("loglikelihood", "", " no"),
        request("generate_until", "a question", {}),
        request("loglikelihood_rolling", "all of it"),
        request("loglikelihood_rolling", ""),
        request("loglikelihood", "a question", ""),
    )
    rows, (places,) = task_rows("d", [Sample(7, {}, requests)])
    assert [(r.row, r.prompt_id, r.prompt, r.choices, r.target, r.cluster) for r in rows] == [
        (0, "7", "a question", [" yes", " no", ""], None, "7"),
        (1, "7.1", "", [" no"], "all of it", "7"),
        (2, "7.2", "", None, "", "7"),
    ]
    assert [(p.prompt_id, p.candidate) for p in places] == [
        ("7", 0), ("7", 1), ("7.1", 0), ("7", COMPLETION), ("7.1", TARGET), ("7.2", TARGET),
        ("7", 2),
    ]  # fmt: skip
    assert [p.is_empty for p in places] == [False] * 5 + [True] * 2


def test_text_that_is_no_utf8_is_an_error_row() -> None:
    samples = [Sample(0, {}, (request("loglikelihood", "a\ud800", " b"),))]
    ((row,), _) = task_rows("d", samples)
    assert row.prompt is None
    assert "document 0" in (row.error or "")


def test_draws_are_parts_of_larger_ones() -> None:
    samples = [Sample(i, {}, ()) for i in range(50)]
    ten, twenty = ({s.doc_id for s in chosen(samples, n, 3)} for n in (10, 20))
    assert len(ten) == 10
    assert ten < twenty
    assert {s.doc_id for s in chosen(samples, 10, 4)} != ten
    assert chosen(samples, 99, 0) == samples


def test_several_contexts_of_one_document(tmp_path: Path) -> None:
    results = run(tmp_path, FILL, SEVERAL_CONTEXTS)
    prompts = results.prompts().to_pylist()
    assert [p["prompt_id"] for p in prompts] == ["0", "0.1", "1", "1.1", "2", "2.1"]
    assert prompts[1]["prompt"] == "The socket"
    assert prompts[1]["choices"] == [" is sorted."]
    theirs = task_trials.lm_eval_results(load("demo"), ["own"], tmp_path / "tasks")
    found = {r["configuration"]: r for r in score_statistics(results)}
    assert found["four"]["mean"].estimate == theirs["results"]["own"]["acc,none"]
    assert found["four"]["mean"].num_units == 3, "documents, not rows"
    by_doc = {r["prompt_id"]: r["value"] for r in scores(results).to_pylist()}
    assert by_doc == {str(s["doc_id"]): s["acc"] for s in theirs["samples"]["own"]}


def test_mutual_information(tmp_path: Path) -> None:
    metrics = [*MEAN_ACC, MEAN_ACC[0] | {"metric": "acc_mutual_info"}]
    results = run(tmp_path, QUESTIONS, CHOICE | {"metric_list": metrics})
    theirs = task_trials.lm_eval_results(load("demo"), ["own"], tmp_path / "tasks")
    found = {r["scorer"]: r["mean"].estimate for r in score_statistics(results)}
    assert found == {
        name: pytest.approx(theirs["results"]["own"][f"{name},none"])
        for name in ("acc", "acc_mutual_info")
    }


def test_both_kinds_of_requests_at_once(tmp_path: Path) -> None:
    folder = task_trials.write_task(tmp_path / "tasks", QUESTIONS, doc_to_text="question",
                                    doc_to_target="{{choices[0]}}")  # fmt: skip
    (folder / "kinds.py").write_text(BOTH_KINDS)
    with (folder / "own.yaml").open("a") as file:
        file.write("class: !function kinds.Own\n")
    spec = task_trials.spec_of(
        "demo", tmp_path / "out", {"task": "own", "include_path": str(folder)}, seeds=[1, 2]
    )
    results = task_trials.run_trial(spec)
    generations = results.read("generations").to_pylist()
    texts = {(r["prompt_id"], r["seed"]): r["completion_text"] for r in generations
             if r["configuration"] == "one"}  # fmt: skip
    nats = {r["prompt_id"]: r["nats"] for r in results.read("likelihoods").to_pylist()
            if r["configuration"] == "one"}  # fmt: skip
    found = {r["scorer"]: r["mean"].estimate for r in score_statistics(results)
             if r["configuration"] == "one"}  # fmt: skip
    assert found["letters"] == pytest.approx(sum(map(len, texts.values())) / 18)
    assert found["unknown"] == pytest.approx(max(nats.values())), "the task's own aggregation"
    rows = [r for r in scores(results).to_pylist() if r["configuration"] == "one"]
    assert {(r["prompt_id"], r["seed"]): r["value"] for r in rows if r["scorer"] == "letters"} == {
        key: len(text) for key, text in texts.items()
    }


def test_examples_before_a_question_are_lm_evals(tmp_path: Path) -> None:
    config = CHOICE | {"fewshot_split": "test"}
    results = run(tmp_path, QUESTIONS, config, dataset={"num_fewshot": 2, "limit": 4})
    theirs = task_trials.lm_eval_results(load("demo"), ["own"], tmp_path / "tasks", num_fewshot=2)
    wanted = {str(s["doc_id"]): s["arguments"] for s in theirs["samples"]["own"]}
    prompts = results.prompts().to_pylist()
    assert len(prompts) == 4
    for row in prompts:
        assert row["prompt"].count(" plus ") == 3
        assert [(row["prompt"], choice) for choice in row["choices"]] == [
            tuple(pair) for pair in wanted[row["prompt_id"]]
        ], "whatever the limit"
    own = {s["doc_id"]: s["acc"] for s in theirs["samples"]["own"]}
    for row in scores(results).to_pylist():
        assert row["value"] == own[int(row["prompt_id"])]


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if not (loop.last and continue_final_message) %}</>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_chats_are_lm_evals(tmp_path: Path) -> None:
    lm = tiny_models.model("llama")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = TEMPLATE
    lm = dataclasses.replace(lm, tokenizer=tokenizer)
    model = tmp_path / "model"
    lm.model.save_pretrained(model)
    tokenizer.save_pretrained(model)
    tasks = task_trials.write_task(tmp_path / "tasks", QUESTIONS, fewshot_split="test", **CHOICE)
    dataset = {"task": "own", "include_path": str(tasks), "chat": True, "num_fewshot": 1}
    results = task_trials.run_trial(task_trials.spec_of(model, tmp_path / "out", dataset))
    prompts = results.prompts().to_pylist()
    assert all(row["is_chat"] for row in prompts)
    assert prompts[0]["prompt"].endswith("<user>2 plus 2 is</>\n<assistant>")
    assert prompts[0]["prompt"].count("<user>") == 2
    theirs = task_trials.lm_eval_results(
        lm, ["own"], tasks, num_fewshot=1, apply_chat_template=True, fewshot_as_multiturn=True
    )
    likelihoods = results.read("likelihoods").to_pylist()
    nats = {(r["prompt_id"], r["candidate"]): -r["nats"] for r in likelihoods
            if r["configuration"] == "four"}  # fmt: skip
    for sample in theirs["samples"]["own"]:
        for choice, ((value, _),) in enumerate(sample["resps"]):
            assert nats[str(sample["doc_id"]), choice] == pytest.approx(value, rel=1e-5)
    means = {r["mean"].estimate for r in score_statistics(results)}
    assert means == {theirs["results"]["own"]["acc,none"]}


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chat: the model's tokenizer has no chat template"):
        run(tmp_path, QUESTIONS, CHOICE, dataset={"chat": True})


def test_several_completions_judged_together(tmp_path: Path) -> None:
    config = {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 1.0,
                              "max_gen_toks": 3},
        "repeats": 3,
        "filter_list": [{"name": "vote", "filter": [{"function": "majority_vote"},
                                                    {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean",
                         "higher_is_better": True}],
    }  # fmt: skip
    with pytest.raises(InputError, match="Set `seeds: 3`"):
        run(tmp_path, QUESTIONS, config, seeds=[1, 2])
    results = run(tmp_path, QUESTIONS, config, seeds=[1, 2, 3])
    rows = scores(results).to_pylist()
    assert {r["scorer"] for r in rows} == {"exact_match,vote"}
    assert len(rows) == 2 * len(QUESTIONS)
    assert {r["seed"] for r in rows} == {None}


def test_a_document_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    long = {"question": "very " * 3000, "choices": ["much", "little"], "answer": 0}
    results = run(tmp_path, [*QUESTIONS, long], CHOICE)
    rows = scores(results).to_pylist()
    failed = [r for r in rows if r["error"]]
    assert [r["prompt_id"] for r in failed] == ["9", "9"]
    assert "context window" in failed[0]["error"]
    found = score_statistics(results)[0]
    assert (found["num_errors"], found["mean"].num_units) == (1, 9)


def test_a_plan_is_the_same_until_the_task_changes(tmp_path: Path) -> None:
    def plan_of(documents: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
        folder = task_trials.write_task(tmp_path / "tasks", documents, **config)
        dataset = {"task": "own", "include_path": str(folder)}
        plan, _ = make_plan(task_trials.spec_of("demo", tmp_path / "out", dataset), "spec")
        return plan.model_dump(mode="json")

    generated = {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    }
    first = plan_of(QUESTIONS, **generated)
    assert describe_difference(first, plan_of(QUESTIONS, **generated)) == []
    longer = generated | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 9}}
    changed = describe_difference(first, plan_of(QUESTIONS, **longer))
    assert "datasets[own].generation.max_new_tokens: 8 -> 9" in changed
    assert plan_of(QUESTIONS, **longer)["run_id"] != first["run_id"]
    other = [QUESTIONS[0] | {"question": "what is"}, *QUESTIONS[1:]]
    assert describe_difference(first, plan_of(other, **generated)) == [
        "datasets[own]: its prompts differ"
    ]


def test_data_beside_the_task_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = task_trials.write_task(tmp_path / "tasks", QUESTIONS, **CHOICE)
    monkeypatch.chdir("/")
    loaded = load_task("own", str(folder), None)
    assert len(loaded.samples) == 9
    assert loaded.metrics() == ("acc",)
