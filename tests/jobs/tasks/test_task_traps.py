"""Six ways in which lm-eval's numbers go wrong with optimised models, and that ours do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spanning_models
import task_trials
import tiny_models
import torch
from tokenizers import AddedToken
from torch.nn.functional import log_softmax

from cluster.engine.completion import Request
from cluster.engine.encoding import encode_pair, windows
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from cluster.results.results import Results
from jobs.scoring.scores import score_statistics, scores
from optim.model import LanguageModel, wrap

pytest.importorskip("lm_eval", reason="needs the extra `quality`")

QUESTIONS = [
    {"question": "the colour of the sky is", "choices": ["blue.", "grey."], "answer": 0},
    {"question": "the colour of grass is", "choices": ["green.", "blue.", "grey."], "answer": 0},
    {"question": "the sky is blue and the", "choices": ["grass is green.", "sky"], "answer": 1},
    {"question": "the answer is", "choices": ["yes.", "no."], "answer": 1},
]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True}
                    for m in ("acc", "acc_norm", "acc_bytes")],
}  # fmt: skip

ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
}


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="module")
def spanning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spanning_models.save(tmp_path_factory.mktemp("spanning"))


def by_hand(lm: LanguageModel, before: list[int], after: list[int]) -> float:
    """ln p(after | before), token by token."""
    total = 0.0
    with torch.inference_mode():
        for i, token in enumerate(after):
            logits = lm.model(torch.tensor([[*before, *after[:i]]])).logits[0, -1]
            total += float(log_softmax(logits.double(), -1)[token])
    return total


def run(model: Path, folder: Path, documents: list[dict[str, Any]], config: dict[str, Any],
        **changes: Any) -> Results:  # fmt: skip
    tasks = task_trials.write_task(folder / "tasks", documents, **config)
    dataset = {"task": "own", "include_path": str(tasks)}
    return task_trials.run_trial(task_trials.spec_of(model, folder / "out", dataset, **changes))


# 1. A token that spans the join of context and continuation.


def test_a_token_that_spans_the_join_is_no_part_of_the_score() -> None:
    tokenizer, engine = spanning_models.tokenizer(), Engine(spanning_models.model())
    num_spanning = 0
    for document in QUESTIONS:
        context: str = document["question"]  # type: ignore[assignment]
        for choice in document["choices"]:  # type: ignore[attr-defined]
            continuation = f" {choice}"
            own = tokenizer(context)["input_ids"]
            joint = tokenizer(context + continuation)["input_ids"]
            num_spanning += joint[: len(own)] != own
            before, after = encode_pair(tokenizer, context, continuation, add_special_tokens=True)
            assert tokenizer.decode(before) == context
            assert tokenizer.decode(after) == continuation
            score = engine.score(context, continuation)
            assert (score.num_tokens, score.num_bytes) == (len(after), len(continuation))
            assert -score.nats == pytest.approx(by_hand(engine.lm, before, after), abs=1e-4)
    assert num_spanning >= 6, "the tokenizer is one that spans joins"


def test_lm_eval_scores_other_text_there() -> None:
    from lm_eval.models.huggingface import HFLM

    lm = spanning_models.model()
    with task_trials.silenced():
        theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, device="cpu")
    context, continuation = "the colour of the sky is", " blue."
    _, scored = theirs._encode_pair(context, continuation)
    assert lm.tokenizer.decode(scored) != continuation, "why its own model is not used"


def test_a_task_whose_tokens_span(spanning: Path, tmp_path: Path) -> None:
    results = run(spanning, tmp_path, QUESTIONS, CHOICE)
    rows = results.read("likelihoods").to_pylist()
    assert len(rows) == 2 * 9
    assert {row["error"] for row in rows} == {None}
    lm = spanning_models.model()
    right = 0
    for document in QUESTIONS:
        values = [
            by_hand(lm, *encode_pair(lm.tokenizer, document["question"], f" {choice}",
                                     add_special_tokens=True))
            for choice in document["choices"]  # type: ignore[attr-defined]
        ]  # fmt: skip
        right += values.index(max(values)) == document["answer"]
    found = {r["scorer"]: r["mean"].estimate for r in score_statistics(results)}
    assert found["acc"] == right / len(QUESTIONS)


# 2. A cache of answers that does not know whose they are.


def test_answers_belong_to_their_configuration_and_seed(spanning: Path, tmp_path: Path) -> None:
    config = {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 1.0,
                              "max_gen_toks": 8},
    }  # fmt: skip
    results = run(spanning, tmp_path, QUESTIONS, config, seeds=[1, 2])
    plan = results.plan()
    keys = [cell.key for block in plan.blocks() for cell in block.cells]
    assert len(keys) == len(set(keys)) == 2 * 2 * 4
    texts = {(r["configuration"], r["seed"], r["prompt_id"]): r["completion_text"]
             for r in results.read("generations").to_pylist()}  # fmt: skip
    assert any(texts["one", 1, p] != texts["one", 2, p] for p in "0123"), "seeds are drawn anew"
    task_trials.run_blocks(plan)
    assert len(results.read("generations")) == 16, "resumed, not answered from elsewhere"
    rows = [r for r in scores(results).to_pylist() if r["scorer"] == "exact_match"]
    assert {(r["configuration"], r["seed"]) for r in rows} == {
        (c, s) for c in ("one", "four") for s in (1, 2)
    }


# 3. Vocabularies that are larger than the tokenizer says.


def test_added_tokens_are_scored_as_what_they_are() -> None:
    base = spanning_models.model()
    tokenizer = type(base.tokenizer)(
        tokenizer_object=type(base.tokenizer.backend_tokenizer).from_str(
            base.tokenizer.backend_tokenizer.to_str()
        ),
        eos_token="<|end|>",
    )
    tokenizer.add_tokens([AddedToken(" sky is", normalized=False)])
    assert len(tokenizer) > tokenizer.vocab_size, "lm-eval's `vocab_size` leaves it out"
    model = base.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    lm = wrap(model, tokenizer)
    score = Engine(lm).score("the colour of the", " sky is")
    assert score.num_tokens == 1
    before = tokenizer("the colour of the")["input_ids"]
    assert -score.nats == pytest.approx(by_hand(lm, before, [len(tokenizer) - 1]), abs=1e-4)


# 4. What metrics divide by.


def test_norms_are_by_characters_and_bytes(spanning: Path, tmp_path: Path) -> None:
    documents = [
        {"question": "the sky is", "choices": ["ééééééé", "blue."], "answer": 0},
        {"question": "grass is", "choices": ["green and the sky is blue.", "no."], "answer": 0},
    ]
    results = run(spanning, tmp_path, documents, CHOICE)
    nats = {
        (int(r["prompt_id"]), r["candidate"]): -r["nats"]
        for r in results.read("likelihoods").to_pylist()
        if r["configuration"] == "one"
    }
    found = {r["scorer"]: r["mean"].estimate for r in score_statistics(results)
             if r["configuration"] == "one"}  # fmt: skip
    sizes = {"acc": lambda text: 1, "acc_norm": len, "acc_bytes": lambda text: len(text.encode())}
    for name, size in sizes.items():
        right = 0
        for i, document in enumerate(documents):
            values = [nats[i, k] / size(text) for k, text in enumerate(document["choices"])]  # type: ignore[arg-type]
            right += values.index(max(values)) == document["answer"]
        assert found[name] == right / 2, name


def test_perplexity_is_by_target_and_byte_perplexity_by_byte(
    spanning: Path, tmp_path: Path
) -> None:
    documents = [{"context": "the sky is", "last": " blue"}, {"context": "grass", "last": " is"}]
    config = {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "{{last}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    results = run(spanning, tmp_path / "targets", documents, config)
    rows = results.read("likelihoods").to_pylist()
    nats = [row["nats"] for row in rows if row["configuration"] == "one"]
    found = {r["scorer"]: r["mean"] for r in score_statistics(results)}
    assert found["perplexity"].estimate == pytest.approx(math.exp(sum(nats) / 2)), "not by token"
    assert found["perplexity"].num_units == 2

    texts = [{"text": text} for text in spanning_models.TEXTS[:4]]
    config = ROLLING | {"metric_list": [{"metric": "byte_perplexity", "higher_is_better": False,
                                         "aggregation": "weighted_perplexity"}]}  # fmt: skip
    results = run(spanning, tmp_path / "texts", texts, config)
    rows = [r for r in results.read("likelihoods").to_pylist() if r["configuration"] == "one"]
    total, size = sum(r["nats"] for r in rows), sum(len(each["text"]) for each in texts)
    assert sum(row["num_bytes"] for row in rows) == size > sum(row["num_tokens"] for row in rows)
    (by_byte,) = [r["mean"] for r in score_statistics(results) if r["configuration"] == "one"]
    assert by_byte.estimate == pytest.approx(math.exp(total / size))
    assert by_byte.low < by_byte.estimate < by_byte.high


# 5. Greedy under one segmentation.


def test_greedy_means_the_segmentation_that_was_scored() -> None:
    engine = Engine(spanning_models.model(), batch_size=1)
    tokenizer = engine.lm.tokenizer
    num_greedy, num_cut = 0, 0
    for prompt in ("the", "sky", "grass is", "blue", "the colour", "answer"):
        (made,) = engine.generate([Request("0", prompt, SamplingParams(max_new_tokens=12))])
        before = tokenizer(prompt)["input_ids"]
        assert engine._likelihood(before, made.ids)[1]
        for i, token in enumerate(made.ids):
            letters = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
            if len(letters) > 1:
                nats, is_greedy = engine._likelihood([*before, *made.ids[:i]], letters)
                assert tokenizer.decode(letters) == tokenizer.decode([token])
                assert not is_greedy, "the same text, letter by letter"
                assert nats > engine._likelihood([*before, *made.ids[:i]], [token])[0]
                num_cut += 1
        for length in range(1, 5):
            text = tokenizer.decode(made.ids[:length])
            if "\ufffd" not in text:
                pair = encode_pair(tokenizer, prompt, text, add_special_tokens=True)
                is_same = pair == (before, made.ids[:length])
                assert engine.score(prompt, text).is_greedy == is_same
                num_greedy += is_same
    assert num_greedy >= 5
    assert num_cut >= 3


# 6. A stop string inside one token.


def test_a_stop_string_inside_a_token_ends_the_text(spanning: Path, tmp_path: Path) -> None:
    engine = Engine(spanning_models.model(), batch_size=1)
    params = SamplingParams(max_new_tokens=40)
    (free,) = engine.generate([Request("0", "the colour", params)])
    tokens = [engine.lm.tokenizer.decode([i]) for i in free.ids]
    assert "the colour " in tokens
    assert "colou" not in tokens
    documents = [{"question": "the colour", "choices": [free.text.partition("colou")[0]]}]
    config = {
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["colou"], "do_sample": False, "max_gen_toks": 40},
    }
    results = run(spanning, tmp_path, documents, config)
    rows = results.read("generations").to_pylist()
    assert {row["completion_text"] for row in rows} == {free.text.partition("colou")[0]}
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert {r["mean"].estimate for r in score_statistics(results)} == {1.0}


# Texts longer than the context window.


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 31])
def test_windows_are_lm_evals(length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(100, 100 + length))
    theirs = map(
        make_disjoint_window,
        get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=8, context_len=1),
    )
    assert list(windows([0], tokens, 8)) == [(list(a), list(b)) for a, b in theirs]


def test_a_text_longer_than_the_window_is_lm_evals(tmp_path: Path) -> None:
    lm = tiny_models.model("llama")
    model = tmp_path / "model"
    lm.model.save_pretrained(model)
    lm.tokenizer.save_pretrained(model)
    texts = [{"text": "all of it counts. " * 40}, {"text": "short"}]
    config = ROLLING | {"metric_list": [{"metric": "bits_per_byte", "higher_is_better": False,
                                         "aggregation": "bits_per_byte"}]}  # fmt: skip
    results = run(model, tmp_path, texts, config)
    theirs = task_trials.lm_eval_results(lm, ["own"], tmp_path / "tasks")
    found = {(r["configuration"], r["prompt_id"]): -r["nats"]
             for r in results.read("likelihoods").to_pylist()}  # fmt: skip
    for sample in theirs["samples"]["own"]:
        for name in ("one", "four"):
            own = found[name, str(sample["doc_id"])]
            assert own == pytest.approx(sample["resps"][0][0], rel=1e-5)
