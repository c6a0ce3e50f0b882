"""Architectures that the engine would run wrong are refused before a run; right ones are run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from cluster.conformance import architecture as architecture_check
from cluster.conformance import remembered as architecture_memory
from cluster.conformance import runs as architecture_runs
from cluster.conformance.architecture import cases_of, require_right, verdict_of
from cluster.conformance.remembered import ALL_CASES, Case, Verdict, forget, recall, store
from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from cluster.plan import Configuration
from optim.cache.slot_cache import CACHES
from optim.cache.slot_layers import Rows, SlidingLayer
from optim.errors import InputError
from optim.model import DEMO, LanguageModel, load

END = tiny_models.END
BASE = {"vocab_size": 258, "eos_token_id": END, "bos_token_id": 257}
SMALL = BASE | {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": END,
}
GPT_NEO = BASE | {
    "hidden_size": 64,
    "num_layers": 4,
    "attention_types": [[["global", "local"], 2]],
    "num_heads": 4,
    "window_size": 16,
    "max_position_embeddings": 256,
}
GPT = BASE | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
LLAMA = SMALL | {"num_key_value_heads": 2}
PROMPTS = ["abc", "hello", "x y z", "long prompt " * 5]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """A random model of a kind, saved with a tokenizer."""

    def make(kind: str, **config: Any) -> str:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.12)
        model.save_pretrained(tmp_path)
        tiny_models.tokenizer().save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def whole(lm: LanguageModel, prompt: str, num_tokens: int = 12) -> list[int]:
    """Greedy, by whole passes without a cache."""
    ids, made = lm.tokenizer(prompt)["input_ids"], []
    with torch.inference_mode():
        while len(made) < num_tokens and END not in made:
            inputs = torch.tensor([ids + made])
            made.append(int(lm.model(input_ids=inputs, use_cache=False).logits[0, -1].argmax()))
    return made


def greedy(lm: LanguageModel, batch_size: int, **options: Any) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=12)
    requests = [Request(str(i), prompt, params) for i, prompt in enumerate(PROMPTS)]
    done = Engine(lm, batch_size=batch_size, **options).generate(requests)
    return [c.ids for c in sorted(done, key=lambda c: int(c.request.prompt_id))]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gemma3_text", LLAMA | {"head_dim": 16, "sliding_window": 8}),
        ("bloom", BASE | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_right_is_run(saved: Callable[..., str], kind: str, config: Any) -> None:
    lm = load(saved(kind, **config))
    right = [whole(lm, prompt) for prompt in PROMPTS]
    for batch_size in (1, 4):
        for cache in CACHES.values():
            assert greedy(lm, batch_size, cache=cache) == right


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    return str(caught.value)


def require(lm: LanguageModel, path: str, *, is_batched: bool) -> None:
    require_right(lm.model.config, [Case("dynamic", is_batched, False)], source=path)


def test_local_windows_are_right_alone_and_refused_in_a_batch(saved: Callable[..., str]) -> None:
    path = saved("gpt_neo", **GPT_NEO)
    lm = load(path)
    assert greedy(lm, 1) == [whole(lm, prompt) for prompt in PROMPTS]
    said = refused(lambda: require(lm, path, is_batched=True))
    assert said.startswith(f"{path}: model: GPTNeoForCausalLM would not give its own texts here")
    assert "batch_size above 1): with a prompt of " in said
    assert said.endswith("It works with batch_size: 1")


def test_keys_that_are_not_in_the_cache(saved: Callable[..., str]) -> None:
    path = saved("openai-gpt", **GPT)
    said = refused(lambda: require(load(path), path, is_batched=False))
    assert "OpenAIGPTLMHeadModel would not give its own texts here (dynamic cache" in said
    assert said.endswith("Give another architecture, as Llama, Qwen or Gemma are")


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("bert", SMALL, "bert is an encoder: its configuration says is_decoder: false"),
        ("roberta", SMALL, "roberta is an encoder"),
        ("minimax", LLAMA, "minimax has layers of the kind LinearAttentionLayer"),
        ("llama4_text", LLAMA, "llama4_text has layers of the kind DynamicSlidingWindowLayer"),
        ("lfm2", LLAMA | {"layer_types": ["conv", "conv", "full_attention"]}, "lfm2 "),
    ],
)
def test_what_a_configuration_says_is_refused_without_weights(
    tmp_path: Path, kind: str, config: dict[str, Any], said: str
) -> None:
    CONFIG_MAPPING[kind](**config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert said in refused(lambda: load(str(tmp_path)))


def test_an_encoder_that_is_made_a_decoder_is_run(saved: Callable[..., str]) -> None:
    lm = load(saved("bert", is_decoder=True, **SMALL))
    for batch_size in (1, 4):
        assert greedy(lm, batch_size) == [whole(lm, prompt) for prompt in PROMPTS]


def test_beyond_dynamic_rope_a_prompt_is_refused(saved: Callable[..., str]) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    lm = load(saved("llama", **(LLAMA | {"max_position_embeddings": 40, "rope_parameters": rope})))
    params = SamplingParams(max_new_tokens=64)
    requests = [Request("0", "hello", params), Request("1", "long prompt " * 5, params)]
    made = {c.request.prompt_id: c for c in Engine(lm, batch_size=2).generate(requests)}
    assert made["0"].ids == whole(lm, "hello", 35)
    assert "beyond it dynamic RoPE changes all positions" in (made["1"].error or "")


# --- the check itself ----------------------------------------------------------------------------


def test_the_demo_model_passes_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.from_pretrained(DEMO)
    assert verdict_of(config).faults == {}
    assert verdict_of(config).problem is None
    forget()
    monkeypatch.setattr(architecture_check, "checked", lambda *_, **__: pytest.fail("again"))
    require_right(config, ALL_CASES, source="demo")
    # As it is once its weights are there.
    require_right(load("demo", device="cpu").model.config, ALL_CASES, source="demo")


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_a_mask_that_is_one_off_is_found(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    right = Rows.__init__

    def one_more(self: Rows, lengths: list[int], device: torch.device) -> None:
        right(self, lengths, device)
        if not self.is_uniform:
            self.lengths_B = self.lengths_B + (self.lengths_B < self.longest)

    monkeypatch.setattr(Rows, "__init__", one_more)
    faults = architecture_runs.checked(CONFIG_MAPPING[kind](**LLAMA)).faults
    assert faults.keys() == {case.name for case in ALL_CASES if case.is_batched}


def test_a_window_that_is_one_short_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SlidingLayer.__init__
    monkeypatch.setattr(SlidingLayer, "__init__", lambda self, window: right(self, window - 1))
    config = CONFIG_MAPPING["mistral"](**LLAMA, sliding_window=4096)
    assert len(architecture_runs.checked(config).faults) == len(ALL_CASES)
    assert not architecture_runs.checked(CONFIG_MAPPING["llama"](**LLAMA)).faults


def test_what_works_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {c.name: "off" for c in ALL_CASES if c.cache == "static" or c.is_chunked}
    verdict = Verdict(architecture="ToyForCausalLM", faults=faults)
    monkeypatch.setattr(architecture_check, "verdict_of", lambda *_, **__: verdict)
    config = CONFIG_MAPPING["llama"]()

    def said(case: Case) -> str:
        return refused(lambda: require_right(config, [case], source="toy"))

    assert said(Case("static", True)).endswith("It works with the dynamic cache")
    assert said(Case("dynamic", True, True)).endswith("It works with no prefill_chunk")
    both = said(Case("static", False, True))
    assert both.endswith("It works with the dynamic cache and no prefill_chunk")
    require_right(config, [Case("dynamic", True)], source="toy")


def test_cases_of_configurations() -> None:
    def made(**settings: Any) -> Configuration:
        return Configuration.model_validate({"name": "a", "fingerprint": "f", **settings})

    paged = {"name": "vattention", "settings": {}}
    found = [
        made(batch_size=1),
        made(batch_size=4, cache="static"),
        made(batch_size=8, cache="static"),
        made(batch_size=8, prefill_chunk=16, optimizations=[paged]),
    ]
    assert cases_of(found) == [
        Case("dynamic"), Case("static", True), Case("vattention", True, True)
    ]  # fmt: skip


# --- what is remembered --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTRIAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "architectures"


SOUND = Verdict(architecture="LlamaForCausalLM")


def test_a_verdict_is_kept_under_what_it_depends_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG_MAPPING["llama"](**LLAMA)
    store(config, SOUND)
    forget()
    assert recall(config) == SOUND
    assert recall(CONFIG_MAPPING["llama"](**(LLAMA | {"num_key_value_heads": 4}))) is None
    named = copy.deepcopy(config)
    named.name_or_path, named.dtype = "elsewhere", torch.bfloat16
    named.vocab_size, named.eos_token_id = 9999, 77
    assert recall(named) == SOUND
    monkeypatch.setattr(architecture_memory, "_code", lambda: "other code")
    assert recall(config) is None, "it was found by another engine"
    monkeypatch.undo()


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"[]", b'{"key": "other", "verdict": {"architecture": "x"}}']
)
def test_a_broken_file_is_not_believed(folder: Path, content: bytes) -> None:
    config = CONFIG_MAPPING["llama"](**LLAMA, rms_norm_eps=1e-4)
    store(config, SOUND)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    forget()
    assert recall(config) is None
    store(config, SOUND)
    forget()
    assert recall(config) == SOUND


def test_a_folder_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OPTRIAL_CACHE", str(tmp_path / "file"))
    config = CONFIG_MAPPING["llama"](**LLAMA, rms_norm_eps=1e-3)
    store(config, SOUND)
    assert recall(config) == SOUND
    forget()
    assert recall(config) is None


# --- a trial -------------------------------------------------------------------------------------


def test_a_trial_is_refused_before_anything_is_written(
    saved: Callable[..., str], tmp_path: Path, run: Any
) -> None:
    path, output = saved("gpt_neo", **GPT_NEO), tmp_path / "trial"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "abc"}\n{"prompt": "hello"}\n')
    spec = tmp_path / "trial.yaml"
    settings = {
        "model": path,
        "datasets": [{"name": "toy", "path": str(tmp_path / "prompts.jsonl")}],
        "configurations": [{"name": "baseline", "batch_size": 2}],
        "seeds": 1,
        "generation": {"max_new_tokens": 4},
        "output": str(output),
    }
    spec.write_text(yaml.safe_dump(settings))
    code, out, err = run("evaluate", spec)
    assert (code, "Traceback" in out + err) == (2, False)
    assert "It works with batch_size: 1" in " ".join(err.split())
    assert not output.exists()
