"""Special tokens around prompts: none that ends them, and none twice without a word."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_adaptivocab_patched as patched_tokenizers
import tiny_models
import yaml
from program import Run
from tokenizers.processors import TemplateProcessing
from trial_results import make_results
from wrapping_tokenizers import START, wrapping

from cluster.engine.completion import Request
from cluster.engine.encoding import encode_pair
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from cluster.results.results import MANIFEST, Results
from cluster.worker.rows import count_tokens
from jobs.data.prompt_notes import prompt_notes
from jobs.provenance.history import entry, history_notes, record
from optim.adaptivocab.patched import PatchedTokenizer
from optim.adaptivocab.training.segments import fitting, rows
from optim.larosa.rotation.calibration import _stream
from optim.models.prompt_ids import closing_ids, prompt_ids, starts_twice

END = tiny_models.END
BOTH, OPEN, CLOSED = "<start> $A <end>", "<start> $A", "$A <end>"
TEXTS = ["hello", "x", "", "ends itself<end>", "<end>"]


def engine(template: str, **options: Any) -> Engine:
    lm = replace(tiny_models.model("llama"), tokenizer=wrapping(template))
    return Engine(lm, **options)


@pytest.mark.parametrize(
    ("closed", "open_"), [(BOTH, OPEN), (CLOSED, "$A"), ("$A <end> <end>", "$A"), (OPEN, OPEN)]
)
def test_prompts_are_open(closed: str, open_: str) -> None:
    tokenizer, like = wrapping(closed), wrapping(open_)
    for text in TEXTS:
        for special in (True, False):
            wanted = list(like(text, add_special_tokens=special)["input_ids"])
            assert prompt_ids(tokenizer, text, special=special) == wanted, text
            assert count_tokens(tokenizer, text, special) == len(wanted)
    assert closing_ids(tokenizer) == [END] * closed.count("<end>")


def test_an_adapted_vocabulary_is_open_as_well() -> None:
    base = patched_tokenizers.demo()
    removed, new = patched_tokenizers.patches(base, 60, 40)
    end = str(base.eos_token)
    made = PatchedTokenizer.of(base, removed=removed, new=new)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, base.eos_token_id)]
    )
    text = patched_tokenizers.TEXT[:200]
    bare = list(made(text, add_special_tokens=False)["input_ids"])
    assert made(text)["input_ids"] == [*bare, base.eos_token_id]
    assert prompt_ids(made, text, special=True) == bare
    before, after = encode_pair(made, text, " and more", add_special_tokens=True)
    assert base.eos_token_id not in before + after


@pytest.mark.parametrize(("closed", "open_"), [(BOTH, OPEN), (CLOSED, "$A")])
def test_completions_and_scores_are_those_of_an_open_tokenizer(closed: str, open_: str) -> None:
    requests = [
        Request(str(i), text, SamplingParams(max_new_tokens=8))
        for i, text in enumerate(tiny_models.prompts(4))
    ]
    made, wanted = (
        {c.request.prompt_id: (c.ids, c.prompt_tokens) for c in each.generate(requests)}
        for each in (engine(closed, batch_size=2), engine(open_, batch_size=2))
    )
    assert made == wanted
    here, there = engine(closed), engine(open_)
    for context, text in (("a question", " its answer"), ("", "a text"), ("x", "<end>")):
        for is_chat in (False, True):
            assert here.score(context, text, is_chat=is_chat) == there.score(
                context, text, is_chat=is_chat
            )
    assert encode_pair(here.lm.tokenizer, "ab", "cd", add_special_tokens=True) == encode_pair(
        there.lm.tokenizer, "ab", "cd", add_special_tokens=True
    )


def test_calibration_and_tuning_add_their_own_ends_only() -> None:
    base = tiny_models.model("llama")
    closing = replace(base, tokenizer=wrapping(BOTH))
    texts = tiny_models.prompts(6)
    assert _stream(closing, texts, 100) == _stream(base, texts, 100)
    both = [
        [r.tolist() for r in rows(base.model, t, texts, [True] * 6)]
        for t in (base.tokenizer, closing.tokenizer)
    ]
    assert both[0] == both[1]
    assert list(fitting(texts, [closing.tokenizer], 16)) == list(
        fitting(texts, [base.tokenizer], 16)
    )


def test_chats_have_one_start() -> None:
    tokenizer = wrapping(BOTH)
    text = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
    )
    made = engine(BOTH)
    request = Request("0", text, SamplingParams(max_new_tokens=1), is_chat=True)
    ids = made.encode(request)
    assert ids.count(START) == 1
    assert END not in ids
    assert made.encode(replace(request, is_chat=False))[:2] == [START, START], "and is told of"


def row(prompt: str | None, dataset: str = "d", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "dataset": dataset, "is_chat": False, "error": None} | fields


def test_what_is_said() -> None:
    given = [
        row("<start>[user] a"),
        row("<start>b"),
        row("plain"),
        row("late <start>"),
        row("<start>chat", is_chat=True),
        row(None, error="bad"),
        row("<start>c", "other"),
        row("d", "third"),
    ]
    closing, first, second = prompt_notes(given, lambda: wrapping(BOTH))
    assert closing.startswith("the tokenizer closes every text with <end>, which is left out")
    assert first.startswith("2 of 4 prompts of d begin with <start>, which the tokenizer adds")
    assert "`chat: true`" in first
    assert second.startswith("1 of 1 prompt of other begin")
    assert prompt_notes(given, lambda: wrapping("$A")) == ()
    assert len(prompt_notes(given, lambda: wrapping(CLOSED))) == 1
    assert len(prompt_notes(given, lambda: wrapping(OPEN))) == 2

    def none() -> Any:
        raise AssertionError("chats need no tokenizer here")

    assert prompt_notes([row("<start>a", is_chat=True), row(None, error="x")], none) == ()


def test_the_start_is_read_as_the_tokenizer_reads_it() -> None:
    assert starts_twice(wrapping(OPEN), "<start>a")
    assert not starts_twice(wrapping(OPEN), "a<start><start>")
    assert not starts_twice(wrapping(CLOSED), "<start>a")


def test_a_trial_says_so(
    ray_cluster: None, run: Run, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    wrapping(BOTH).save_pretrained(folder)
    data = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "<start>" * (i < 3) + f"text {i}", "target": " x"} for i in range(8)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec, out = tmp_path / "trial.yaml", tmp_path / "out"
    wanted: dict[str, Any] = {
        "model": str(folder),
        "datasets": [{"path": str(data), "shards": 2}],
        "generation": {"max_new_tokens": 4},
        "baseline_check": False,
        "output": str(out),
    }
    spec.write_text(yaml.safe_dump(wanted))
    code, printed, err = run("evaluate", spec)
    assert code == 0, err
    said = " ".join((printed + err).split())
    # At the start, and in the report that follows.
    assert said.count("he tokenizer closes every text with <end>") == 2
    assert said.count("3 of 8 prompts of prompts begin with <start>") == 2
    results = Results(str(out))
    assert len(json.loads(results.store.read(MANIFEST))["notes"]) == 2
    for made in results.read("generations").to_pylist():
        assert made["prompt_tokens"] == made["base_prompt_tokens"]
    by_hand = Engine(replace(tiny_models.model("llama"), tokenizer=wrapping(OPEN)))
    scores = results.read("likelihoods").to_pylist()
    texts = {p["prompt_id"]: p["prompt"] for p in results.prompts().to_pylist()}
    assert len(scores) == 8
    for each in scores:
        score = by_hand.score(texts[each["prompt_id"]], " x")
        assert each["nats"] == pytest.approx(score.nats, rel=1e-5)
        assert each["num_tokens"] == score.num_tokens == 2


def test_the_last_notes_are_of_all_prompts(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out")
    manifest = json.loads(results.store.read(MANIFEST))
    manifest["notes"] = ["3 of 8 are so"]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    assert [*history_notes(results)] == ["3 of 8 are so."]
    record(results, entry(results, "extended", notes=("4 of 9 are so",)))
    record(results, entry(results, "extended"))
    assert [*history_notes(results)] == ["4 of 9 are so."]
