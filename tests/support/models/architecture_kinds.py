"""Every causal LM class of transformers as a small random model, saved as people's models are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cluster.conformance.architecture import require_right, verdict_of
from cluster.conformance.remembered import Case
from cluster.conformance.runs import numbers
from cluster.engine.completion import Completion, Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES, CacheFactory
from optim.errors import InputError
from optim.model import LanguageModel, load
from optim.models.checkpoint import require_decoder
from optim.models.small_config import small_model
from optim.vattention.slot_cache import VAttentionSlotCache

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CLASSES = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
OPTIONS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE,
                                                "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 4, "first_k_dense_replace": 1},
    "dots1": {"num_experts_per_tok": 4, "n_routed_experts": 8, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
"""What transformers' own defaults leave out."""
_NOT_BUILT = {"gemma4_assistant"}
"""A draft model, which runs on the keys and values of another one, and has no defaults."""

CACHE_FACTORIES: dict[str, CacheFactory] = {**CACHES, "vattention": VAttentionSlotCache}
_PROMPTS = ("5 6 7", "11 12 13 14 15 16", "9", "20 21 22 23 24 25 26 27 28 29 30 31 32 33")
_NUM_TOKENS = 8
_MARGIN = 1e-3
"""Of the largest logit: of two tokens that are nearer, either is right."""


def outcome(kind: str, folder: Path, **config: Any) -> str:
    """`equal`, `refused: why`, or `batch 1: equal, batch 4: refused: why`.

    AssertionError for texts that are not the model's own, which is the third kind that must not be.
    """
    try:
        made = CONFIG_MAPPING[kind](**OPTIONS.get(kind, {}), **config)
        require_decoder(made, kind)
    except InputError as error:
        return f"refused: {error.problem}"
    except StrictDataclassClassValidationError:
        assert kind in _NOT_BUILT, kind
        return "refused: transformers has no defaults for it"
    problem = verdict_of(copy.deepcopy(made)).problem
    if problem is not None:
        return f"refused: {problem}"
    small_model(made, seed=7).save_pretrained(folder)
    numbers().save_pretrained(folder)
    try:
        lm = load(str(folder), device="cpu")
    except InputError as error:
        return f"refused: {error.problem}"
    right = [_whole(lm, prompt) for prompt in _PROMPTS]
    one, four = (_compared(lm, size, right) for size in (1, 4))
    if one == four or (one.startswith("refused") and four.startswith("refused")):
        return one
    return f"batch 1: {one}, batch 4: {four}"


def _whole(lm: LanguageModel, prompt: str) -> list[tuple[int, set[int]]]:
    """Greedy by whole passes without a cache: each token, and those that are as good."""
    ids, made = lm.tokenizer(prompt)["input_ids"], []
    with torch.inference_mode():
        while len(made) < _NUM_TOKENS and not (made and made[-1][0] in lm.end_ids):
            inputs = torch.tensor([ids + [token for token, _ in made]])
            logits = lm.model(input_ids=inputs, use_cache=False).logits[0, -1]
            near = logits >= logits.max() - _MARGIN * logits.abs().max()
            made.append((int(logits.argmax()), set(near.nonzero().flatten().tolist())))
    return made


def _compared(lm: LanguageModel, batch_size: int, right: list[list[tuple[int, set[int]]]]) -> str:
    found = {}
    for name, factory in CACHE_FACTORIES.items():
        params = SamplingParams(max_new_tokens=_NUM_TOKENS)
        requests = [Request(str(i), prompt, params) for i, prompt in enumerate(_PROMPTS)]
        try:
            case = Case(name, batch_size > 1, False)
            require_right(lm.model.config, [case], source=None)
            engine = Engine(lm, batch_size=batch_size, cache=factory)
        except InputError as error:
            found[name] = f"refused: {error.problem.partition(': ')[2]}"
            continue
        for done in engine.generate(requests):
            _require_equal(done, right[int(done.request.prompt_id)], f"{name}, {batch_size}")
        found[name] = "equal"
    assert len({text.partition(":")[0] for text in found.values()}) == 1, found
    return found["dynamic"]


def _require_equal(done: Completion, right: list[tuple[int, set[int]]], where: str) -> None:
    assert done.error is None, (where, done.error)
    for found, (token, near) in zip(done.ids, right, strict=False):
        assert found in near, (where, done.ids, right)
        if found != token:
            return  # from here on it is another text
    assert len(done.ids) == len(right), (where, done.ids, right)
