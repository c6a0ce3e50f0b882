"""The engine gives what transformers' own `generate` gives, for every architecture and batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch

from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES
from optim.model import LanguageModel

NEW_TOKENS = 24


def reference(lm: LanguageModel, prompt: str, num_tokens: int = NEW_TOKENS) -> list[int]:
    """transformers' greedy completion of one prompt, at batch 1."""
    inputs = lm.tokenizer(prompt, return_tensors="pt").to(lm.device)
    ids = lm.model.generate(
        **inputs, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tiny_models.END
    )
    completion: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return completion


def run(
    lm: LanguageModel,
    prompts: list[str],
    params: SamplingParams | None = None,
    seed: int = 0,
    **engine: object,
) -> list[Completion]:
    """Completions in the order of the prompts."""
    params = params or SamplingParams(max_new_tokens=NEW_TOKENS)
    requests = [Request(str(i), p, params, seed) for i, p in enumerate(prompts)]
    made = list(Engine(lm, **engine).generate(requests))  # type: ignore[arg-type]
    return sorted(made, key=lambda c: int(c.request.prompt_id))


def spied(
    lm: LanguageModel, prompts: list[str], **options: Any
) -> tuple[dict[str, Completion], dict[str, torch.Tensor]]:
    """Greedy completions, and the logits [tokens, V] that each was chosen from."""
    engine = Engine(lm, **options)
    seen: dict[str, list[torch.Tensor]] = {}
    choose = engine.choose

    def spy(logits: torch.Tensor, sequences: list[Any]) -> list[int]:
        for row, sequence in zip(logits, sequences, strict=True):
            seen.setdefault(sequence.request.prompt_id, []).append(row.float())
        return choose(logits, sequences)

    engine.choose = spy  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    requests = [Request(str(i), p, params) for i, p in enumerate(prompts)]
    made = {c.request.prompt_id: c for c in engine.generate(requests)}
    return made, {name: torch.stack(rows) for name, rows in seen.items()}


def teacher_forced(lm: LanguageModel, prompt: str, ids: list[int]) -> torch.Tensor:
    """The logits [len(ids), V] of one forward without a cache over prompt and completion."""
    whole = lm.tokenizer(prompt)["input_ids"] + ids
    with torch.inference_mode():
        logits = lm.model(torch.tensor([whole])).logits[0].float()
    return logits[len(whole) - len(ids) - 1 : -1]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_greedy_equals_generate(architecture: str, batch_size: int, cache: str) -> None:
    lm = tiny_models.model(architecture)
    prompts = tiny_models.prompts(9, seed=1)
    completions = run(lm, prompts, batch_size=batch_size, cache=CACHES[cache])
    assert [c.ids for c in completions] == [reference(lm, p) for p in prompts]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt2"])
def test_chunked_prefill_equals_generate(architecture: str, chunk: int, attention: str) -> None:
    lm = tiny_models.model(architecture, attention=attention)
    prompts = tiny_models.prompts(6, seed=2)
    completions = run(lm, prompts, batch_size=3, prefill_chunk=chunk)
    assert [c.ids for c in completions] == [reference(lm, p) for p in prompts]


@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_bfloat16_equals_generate_at_batch_1(architecture: str) -> None:
    lm = tiny_models.model(architecture, dtype=torch.bfloat16)
    prompts = tiny_models.prompts(6, seed=3)
    completions = run(lm, prompts, batch_size=1)
    assert [c.ids for c in completions] == [reference(lm, p) for p in prompts]


@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_bfloat16_batches_differ_only_within_rounding(architecture: str) -> None:
    lm = tiny_models.model(architecture, dtype=torch.bfloat16)
    prompts = tiny_models.prompts(8, seed=4)
    made, seen = spied(lm, prompts, batch_size=4)
    for name, completion in made.items():
        expected = reference(lm, completion.request.prompt)
        forced = teacher_forced(lm, completion.request.prompt, completion.ids)
        # bfloat16 keeps 8 bits; a few roundings of the largest logit add up through the layers.
        rounding = 8 * 2**-8 * float(forced.abs().max())
        assert float((seen[name] - forced).abs().max()) <= rounding
        pairs = zip(expected, completion.ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is None:
            assert expected == completion.ids
        else:
            first, second = forced[place].topk(2).values.tolist()
            assert first - second <= rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_caches_give_identical_tokens(architecture: str, dtype: torch.dtype) -> None:
    lm = tiny_models.model(architecture, dtype=dtype)
    prompts = tiny_models.prompts(10, seed=5)
    params = SamplingParams(temperature=0.9, max_new_tokens=NEW_TOKENS)
    made = {
        name: [c.ids for c in run(lm, prompts, params, batch_size=4, cache=factory)]
        for name, factory in CACHES.items()
    }
    assert made["dynamic"] == made["static"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batched_logits_are_teacher_forced_logits(batch_size: int) -> None:
    """What the engine samples from is the model's own distribution, in ragged batches too."""
    lm = tiny_models.model("llama")
    made, seen = spied(lm, tiny_models.prompts(7, seed=6), batch_size=batch_size)
    for name, completion in made.items():
        forced = teacher_forced(lm, completion.request.prompt, completion.ids)
        torch.testing.assert_close(seen[name], forced, atol=2e-4, rtol=1e-4)


def test_stops_at_the_end_token_and_counts_it() -> None:
    lm = tiny_models.model("llama")
    prompts = tiny_models.prompts(40, seed=7)
    params = SamplingParams(temperature=1.5, max_new_tokens=120)
    ended = [c for c in run(lm, prompts, params, batch_size=8) if c.finish_reason == "stop"]
    assert ended, "no sequence ended by itself: the test shows nothing"
    for completion in ended:
        assert completion.ended_by_token
        assert completion.ids[-1] == tiny_models.END
        assert tiny_models.END not in completion.ids[:-1]
        assert "<end>" not in completion.text


def test_stop_string_may_span_and_split_tokens() -> None:
    lm = tiny_models.model("llama")
    [whole] = run(lm, ["hello"])
    stop = whole.text[5:8]
    place = whole.text.find(stop)
    [cut] = run(lm, ["hello"], SamplingParams(max_new_tokens=NEW_TOKENS, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert not cut.ended_by_token
    assert cut.text == whole.text[:place]
    assert len(cut.ids) < len(whole.ids)


def test_budget_and_context_end_by_length() -> None:
    lm = tiny_models.model("llama")
    [short] = run(lm, ["abc"], SamplingParams(max_new_tokens=5))
    assert (len(short.ids), short.finish_reason) == (5, "length")
    [full] = run(lm, ["x" * 250], SamplingParams(max_new_tokens=50))
    assert (len(full.ids), full.finish_reason) == (6, "length")


def test_a_bad_request_fails_alone() -> None:
    lm = tiny_models.model("llama")
    good, long, empty = run(lm, ["fine", "y" * 300, ""], batch_size=2)[:3]
    assert good.error is None
    assert long.finish_reason == "error"
    assert long.error is not None
    assert "context window is 256" in long.error
    assert long.e2e_s is None
    assert empty.error is None, "an empty prompt is the start token"


def test_not_finite_logits_fail_the_sequence_only() -> None:
    lm = tiny_models.model("llama")
    engine = Engine(lm, batch_size=2)
    forward = engine.forward

    def poison(phase, **inputs):  # type: ignore[no-untyped-def]
        logits = forward(phase, **inputs).clone()
        if inputs["input_ids"].shape[0] == 2:
            logits[1] = float("nan")
        return logits

    engine.forward = poison  # type: ignore[method-assign]
    params = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=6)
    requests = [Request(str(i), p, params) for i, p in enumerate(["one", "two"])]
    made = {c.request.prompt_id: c for c in engine.generate(requests)}
    assert made["0"].error is None
    assert made["1"].error is not None
    assert "not finite" in made["1"].error
    assert made["1"].ids == []


def test_times_and_memory_are_facts_of_the_sequence() -> None:
    lm = tiny_models.model("llama")
    made = run(lm, tiny_models.prompts(6, seed=8), batch_size=2)
    for completion in made:
        times = completion.token_times_s
        assert len(times) == len(completion.ids)
        assert times == sorted(times)
        assert completion.ttft_s == times[0]
        assert completion.e2e_s == times[-1]
        assert completion.tpot_s == pytest.approx((times[-1] - times[0]) / (len(times) - 1))
        assert completion.kv is not None
        assert completion.prompt_tokens is not None
        held = completion.prompt_tokens + len(completion.ids) - 1
        per_token = 2 * 3 * 2 * 16 * 4  # K and V, layers, heads, head size, bytes of fp32
        assert completion.kv.used_bytes == held * per_token
        assert completion.kv.committed_bytes >= completion.kv.used_bytes
    assert made[-1].queue_s is not None
    assert made[-1].queue_s > 0


def test_static_cache_commits_slots_times_the_longest() -> None:
    lm = tiny_models.model("llama")
    engine = Engine(lm, batch_size=3, cache=CACHES["static"])
    list(engine.generate([Request("0", "abcd"), Request("1", "ab")]))
    per_token = 2 * 3 * 2 * 16 * 4
    assert engine.stats.kv_peak.committed_bytes == 3 * (4 + 64) * per_token


def test_score_is_the_model_s_likelihood() -> None:
    lm = tiny_models.model("llama")
    score = Engine(lm).score("some context", " and so on é")
    before, after = (
        lm.tokenizer(t, return_tensors="pt")["input_ids"] for t in ("some context", " and so on é")
    )
    with torch.inference_mode():
        logits = lm.model(torch.cat([before, after], dim=1)).logits[0].double()
    log_p = logits.log_softmax(-1)[before.shape[1] - 1 : -1]
    expected = -log_p.gather(1, after[0][:, None]).sum()
    assert score.nats == pytest.approx(float(expected), rel=1e-5)
    assert score.num_bytes == len(" and so on é".encode())
    assert score.num_tokens == after.shape[1]


def test_scores_of_all_next_bytes_sum_to_one() -> None:
    lm = tiny_models.model("gpt2")
    engine = Engine(lm)
    ids = range(256)
    total = 0.0
    for token in ids:
        nats, _ = engine._likelihood([*b"abc"], [token])
        total += 2.718281828459045**-nats
    assert total == pytest.approx(1.0, abs=0.02), "two of 258 tokens are special"


def told(engine: Engine, ids: list[int]) -> Engine:
    """An engine that writes these ids, whatever the model says."""
    script, forward = iter(ids), engine.forward

    def forced(phase: Any, **inputs: Any) -> torch.Tensor:
        logits = torch.full_like(forward(phase, **inputs), -5.0)
        logits[:, next(script)] = 5.0
        return logits

    engine.forward = forced  # type: ignore[method-assign]
    return engine


def test_a_stop_string_that_is_a_special_token() -> None:
    lm = tiny_models.model("llama")
    special, token = lm.tokenizer.bos_token_id, lm.tokenizer.bos_token
    encode = lm.tokenizer.encode
    ids = [*encode("Pa", add_special_tokens=False), special]
    ids += encode("ris", add_special_tokens=False)
    for stop, text in ((token, "Pa"), ("is", "Par"), (f"{token}r", "Pa")):
        params = SamplingParams(max_new_tokens=12, stop=(stop,))
        engine = told(Engine(lm, batch_size=1), ids)
        [found] = engine.generate([Request("0", "x", params, 0)])
        assert (found.text, found.finish_reason) == (text, "stop"), stop


def test_a_token_without_an_embedding_fails_its_row_alone() -> None:
    lm = tiny_models.model("llama")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["<extra>"])
    made = run(replace(lm, tokenizer=tokenizer), ["hello", "use <extra>", "bye"], batch_size=2)
    said = "the token '<extra>' (258) has no embedding: the model has 258 of them"
    assert [each.error for each in made] == [None, said, None]
