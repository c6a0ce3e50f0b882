"""A repetition penalty and suppressed tokens, as transformers has them, whoever is beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from program import Run

import jobs.trial.planning
import optim.model
import optim.registry
from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import Sampler, SamplingParams
from cluster.plan import Dataset, Generation, Plan
from cluster.results.results import MANIFEST, Results
from jobs.data.prompts import PromptRow
from jobs.spec.trial_spec import TrialSpec
from jobs.tasks.dataset import task_fingerprint
from jobs.tasks.requests import task_generation
from jobs.trial.planning import describe_difference, make_plan
from optim.cache.slot_cache import CACHES
from optim.errors import InputError
from optim.model import LanguageModel
from optim.registry import apply_all, optimization

PROMPTS = ["abc", "aaaa bbbb", "x y z", "long prompt " * 5, "abc"]
PENALTY, NUM_TOKENS = 1.4, 12


def engine(lm: LanguageModel, cache: str, **options: Any) -> Engine:
    if cache == "vattention":
        return Engine(apply_all(lm, [optimization(cache, {})]), **options)
    return Engine(lm, cache=CACHES[cache], **options)


def made(by: Engine, params: list[SamplingParams]) -> list[list[int]]:
    requests = [
        Request(str(i), prompt, each)
        for i, (prompt, each) in enumerate(zip(PROMPTS, params, strict=True))
    ]
    found = sorted(by.generate(requests), key=lambda c: int(c.request.prompt_id))
    assert not any(c.error for c in found)
    return [c.ids for c in found]


def generated(lm: LanguageModel, prompt: str, **settings: Any) -> list[int]:
    """By transformers, alone, greedily."""
    ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        **settings,
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


def often(lm: LanguageModel) -> tuple[int, ...]:
    """Tokens that are chosen otherwise: to suppress them changes every text."""
    return tuple(sorted({token for p in PROMPTS for token in generated(lm, p)[:3]}))


def params(**settings: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=NUM_TOKENS, **settings)


CASES = [
    pytest.param(architecture, cache, marks=[] if architecture == "llama" else pytest.mark.slow)
    for architecture in ("llama", "gemma3", "gpt2")
    for cache in ("dynamic", "static", "vattention")
]
BATCHES: tuple[dict[str, Any], ...] = (
    {"batch_size": 1},
    {"batch_size": 4},
    {"batch_size": 4, "prefill_chunk": 3},
)


@pytest.mark.parametrize(("architecture", "cache"), CASES)
def test_greedy_tokens_are_those_of_transformers(architecture: str, cache: str) -> None:
    lm = tiny_models.model(architecture)
    tokens = often(lm)
    plain = [generated(lm, p) for p in PROMPTS]
    for settings in (
        {"repetition_penalty": PENALTY},
        {"suppress_tokens": list(tokens)},
        {"repetition_penalty": PENALTY, "suppress_tokens": list(tokens)},
    ):
        wanted = [generated(lm, p, **settings) for p in PROMPTS]
        assert wanted != plain, "the settings matter"
        own = params(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
        for options in BATCHES:
            assert made(engine(lm, cache, **options), [own] * 5) == wanted, (settings, options)
        sharing = engine(lm, cache, batch_size=4, prefixes=PrefixStore())
        assert made(sharing, [own] * 5) == wanted, (settings, "shared prompts")


def test_neighbours_of_other_settings_change_nothing() -> None:
    lm = tiny_models.model("llama")
    each = [
        params(),
        params(repetition_penalty=PENALTY),
        params(repetition_penalty=0.7),
        params(suppress_tokens=often(lm)),
        params(repetition_penalty=PENALTY, temperature=0.9),
    ]
    alone = made(engine(lm, "dynamic", batch_size=1), each)
    assert made(engine(lm, "dynamic", batch_size=5), each) == alone
    assert alone[0] == generated(lm, PROMPTS[0])
    assert alone[2] == generated(lm, PROMPTS[2], repetition_penalty=0.7)


def test_one_that_is_begun_again_counts_anew() -> None:
    lm = tiny_models.model("llama")
    own = [params(repetition_penalty=PENALTY)] * 5
    wanted = made(engine(lm, "dynamic", batch_size=1), own)
    tight = apply_all(lm, [optimization("vattention", {"budget_bytes": 2 * 3 * 4 * 4096})])
    by = Engine(tight, batch_size=4)
    requests = [Request(str(i), p, own[0]) for i, p in enumerate(PROMPTS)]
    found = sorted(by.generate(requests), key=lambda c: int(c.request.prompt_id))
    assert [c.ids for c in found] == wanted
    assert any(c.num_preemptions for c in found), "memory was short"


def test_logits_are_left_as_they_are() -> None:
    sampler = Sampler(torch.arange(4), torch.ones(4, dtype=torch.int32), torch.device("cpu"))
    logits = torch.tensor([[4.0, -1.0, 3.0, 2.0]])
    before = logits.clone()
    seen: list[torch.Tensor | None] = [torch.tensor([True, True, False, False])]
    chosen = sampler(logits, [params(repetition_penalty=2.0)], [0], [9], seen)
    assert chosen == [2]
    assert sampler(logits, [params(suppress_tokens=(0, 2, 99))], [0], [9]) == [3]
    assert sampler(logits, [params(suppress_tokens=(0, 1, 2, 3))], [0], [9]) == [-1]
    assert torch.equal(logits, before)


# --- plans ---------------------------------------------------------------------------------------


class FakeOptimization:
    stage = "vocabulary"

    def __init__(self, name: str) -> None:
        self.name, self.keeps_vocabulary = name, name == "tuned"
        self.places: frozenset[str] = frozenset()

    def model_dump(self, **_: object) -> dict[str, Any]:
        return {}

    def content(self) -> str:
        return self.name


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(optim.registry, "optimization", lambda name, _: FakeOptimization(name))
    monkeypatch.setattr(optim.model, "fingerprint", lambda path, *, revision=None: "f" * 64)
    monkeypatch.setattr(jobs.trial.planning, "_code_version", lambda: [1, "1.0"])
    data = tmp_path / "qa.jsonl"
    lines = [json.dumps({"prompt": f"p{n}", "target": f"t{n}"}) + "\n" for n in range(5)]
    data.write_text("".join(lines))

    def plan(generation: dict[str, Any], **changes: Any) -> Plan:
        spec = {"model": "demo", "datasets": [str(data)], "output": "out"} | changes
        return make_plan(TrialSpec.model_validate(spec | {"generation": generation}), "t")[0]

    return plan


def test_stored_trials_keep_their_names(planned: Any) -> None:
    """As the version before these settings gave them."""
    old = {"temperature": 0.5, "top_k": 3, "stop": ["x"]}
    off = {"repetition_penalty": 1, "suppress_tokens": [], "from_model": False}
    for generation in (old, old | off):
        plan = planned(generation)
        assert plan.run_id == "8453e490f21f"
        assert plan.configurations[0].fingerprint.startswith("966b4b3d0e973d90")
        assert next(plan.blocks()).cells[0].key == "4716c3e66f636d00"
    rows = [PromptRow("d", 0, "a", "x")]
    assert task_fingerprint(rows, Generation(top_k=3)).startswith("5f9782e0780a3a12")
    assert task_fingerprint(rows, Generation(top_k=3, repetition_penalty=2)) != task_fingerprint(
        rows, Generation(top_k=3)
    )
    manifest = plan.model_dump(mode="json")
    older = json.loads(json.dumps(manifest))
    for name in off:
        older["generation"].pop(name, None)
    assert describe_difference(older, manifest) == []
    dataset = Dataset(
        name="d", num_prompts=1, first_row=0, num_shards=1, fingerprint="", generation=Generation()
    )
    assert set(dataset.identity()["generation"]) == set(older["generation"])


def test_what_is_set_makes_another_trial(planned: Any) -> None:
    one = planned({})
    for own in ({"repetition_penalty": 1.1}, {"suppress_tokens": [3]}):
        other = planned(own)
        assert other.run_id != one.run_id
        assert other.configurations[0].fingerprint != one.configurations[0].fingerprint
        said = describe_difference(one.model_dump(mode="json"), other.model_dump(mode="json"))
        assert said[0].startswith(f"generation.{next(iter(own))}")
    order = [planned({"suppress_tokens": ids}).run_id for ids in ([3, 5], [5, 3, 3])]
    assert order[0] == order[1]


@pytest.mark.parametrize(
    ("generation", "field"),
    [
        ({"repetition_penalty": 1.1}, "generation.repetition_penalty"),
        ({"suppress_tokens": [3]}, "generation.suppress_tokens"),
    ],
)
def test_across_vocabularies_it_is_refused(
    planned: Any, generation: dict[str, Any], field: str
) -> None:
    arms = [{"name": "base"}, {"name": "new", "optimizations": ["adapted"]}]
    planned({"repetition_penalty": 1}, configurations=arms)
    with pytest.raises(InputError) as caught:
        planned(generation, configurations=arms)
    assert caught.value.field == field
    assert "`new`" in str(caught.value)
    tuned = {"name": "tuned", "optimizations": ["tuned"]}
    planned(generation, configurations=[{"name": "base"}, tuned])
    only: dict[str, Any] = {"configurations": arms[1:], "baseline": "new"}
    if "suppress_tokens" in generation:
        with pytest.raises(InputError, match="the model's ids are other tokens"):
            planned(generation, **only)
    else:
        planned(generation, **only)


def test_a_task_may_ask_for_them() -> None:
    asked = {"until": ["x"], "repetition_penalty": 1.2, "suppress_tokens": [5, 3]}
    request: Any = SimpleNamespace(request_type="generate_until", args=("a", asked))
    made = task_generation("own", [SimpleNamespace(requests=[request])], Generation())  # type: ignore[list-item]
    assert made is not None
    assert (made.repetition_penalty, made.suppress_tokens) == (1.2, (3, 5))


def test_tokens_that_there_are_not(planned: Any) -> None:
    with pytest.raises(InputError, match="the model has no token 99999999: its ids end at"):
        planned({"suppress_tokens": [1, 99999999]})


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def spec(tiny_model_folder: Path, tmp_path: Path) -> Any:
    """Write a model whose author sets something, and a spec of it."""

    def write(author: dict[str, Any] | str, generation: dict[str, Any]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder, dirs_exist_ok=True)
        text = author if isinstance(author, str) else json.dumps({"eos_token_id": 256} | author)
        (folder / "generation_config.json").write_text(text)
        data = tmp_path / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": p + str(i)}) + "\n" for i, p in
                                enumerate(PROMPTS)))  # fmt: skip
        path = tmp_path / "trial.yaml"
        wanted = {
            "model": str(folder),
            "datasets": [{"path": str(data), "shards": 1}],
            "generation": generation,
            "baseline_check": False,
            "output": str(tmp_path / "out"),
        }
        path.write_text(yaml.safe_dump(wanted))
        return path

    return write


def test_a_trial_as_the_author_generates(
    ray_cluster: None, run: Run, spec: Any, tmp_path: Path
) -> None:
    lm = tiny_models.model("llama")
    tokens = list(often(lm))
    author = {"repetition_penalty": 1.5, "suppress_tokens": tokens, "max_new_tokens": 99}
    own = {"from_model": True, "max_new_tokens": NUM_TOKENS, "completion_ids": True}
    code, printed, err = run("evaluate", spec(author, own))
    assert code == 0, err
    said = " ".join((printed + err).split())
    assert (
        said.count("eneration is as the model's author sets it: repetition_penalty 1.5, sup") == 2
    )
    assert said.count("model's author generates by max_new_tokens 99: not used here") == 2
    results = Results(str(tmp_path / "out"))
    manifest = json.loads(results.store.read(MANIFEST))
    assert manifest["plan"]["generation"]["repetition_penalty"] == 1.5
    assert manifest["plan"]["generation"]["suppress_tokens"] == tokens
    assert manifest["author_settings"] == author
    texts = {p["prompt_id"]: p["prompt"] for p in results.prompts().to_pylist()}
    rows = results.read("generations").to_pylist()
    assert len(rows) == 5
    for row in rows:
        wanted = generated(lm, texts[row["prompt_id"]], repetition_penalty=1.5,
                           suppress_tokens=tokens)  # fmt: skip
        assert row["completion_ids"] == wanted


@pytest.mark.parametrize(
    ("author", "own", "field"),
    [
        ({"repetition_penalty": 1.1}, {"from_model": True}, "generation.repetition_penalty"),
        ({}, {"suppress_tokens": [7]}, "generation.suppress_tokens"),
    ],
)
def test_an_adapted_vocabulary_is_refused(
    run: Run,
    spec: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    author: dict[str, Any],
    own: dict[str, Any],
    field: str,
) -> None:
    monkeypatch.setattr("optim.adaptivocab.optimization.read_manifest", lambda _: (None, "made"))
    path = spec(author, own)
    wanted = yaml.safe_load(path.read_text())
    arms = [
        {"name": "base"},
        {"name": "new", "optimizations": [{"adaptivocab": {"artifact": "a"}}]},
    ]
    path.write_text(yaml.safe_dump(wanted | {"configurations": arms}))
    code, _, err = run("evaluate", path)
    assert code == 2, err
    assert err.count("error:") == 1
    assert field in err
    assert "`new`" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("author", "generation", "parts"),
    [
        ({"num_beams": 4, "repetition_penalty": 1.1}, {"from_model": True},
         ["generation.from_model", "num_beams", "repetition_penalty 1.1"]),
        ({"repetition_penalty": "high"}, {"from_model": True}, ["repetition_penalty", "high"]),
        ("{bad", {"from_model": True}, ["generation_config.json", "cannot be read"]),
        ({}, {"repetition_penalty": 0}, ["generation.repetition_penalty"]),
        ({}, {"suppress_tokens": [-1]}, ["generation.suppress_tokens"]),
        ({}, {"suppress_tokens": [258]}, ["no token 258", "end at 257"]),
        ({}, {"from_model": "yes"}, ["generation.from_model"]),
    ],
)  # fmt: skip
def test_what_is_refused(
    run: Run,
    spec: Any,
    tmp_path: Path,
    author: Any,
    generation: dict[str, Any],
    parts: list[str],
) -> None:
    code, _, err = run("evaluate", spec(author, generation))
    assert code == 2, err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    for part in parts:
        assert part in " ".join(err.split())
    assert not (tmp_path / "out").exists()
