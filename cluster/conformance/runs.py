"""A small model's logits out of the engine, beside those of whole passes without a cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache as remembered
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cluster.conformance.remembered import ALL_CASES, Case, Verdict
from cluster.conformance.told import Gap, Text, Told, texts
from optim.cache.slot_cache import CACHES, CacheFactory, config_windows
from optim.errors import InputError
from optim.model import LanguageModel, wrap
from optim.models.small_config import VOCABULARY, small_model
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings
from optim.vattention.slot_cache import VAttentionSlotCache

_BATCH, _CHUNK = 4, 5
_SIZES = ((3, 5), (5, 3), (9, 6), (14, 4), (20, 3))
"""Tokens of prompts and completions: within short windows and across them, and more than slots."""
_ALLOWED = 1e-3
"""Of the spread of logits. Of all causal LM classes of transformers, those that are right were
within 1e-4 of whole passes in float32, and those that are not were 0.03 and more away."""
_DRAWS = (0, 1)
"""What is wrong is so with any weights; a near tie of experts that rounding breaks is not."""
_FACTORIES: dict[str, CacheFactory] = {**CACHES, "vattention": VAttentionSlotCache}


def checked(config: Any, *, trust_remote_code: bool = False) -> Verdict:
    """Build the small model and try every case."""
    name = (getattr(config, "architectures", None) or [config.model_type])[0]
    try:
        config_windows(config, name)
        faults = {case.name: "" for case in ALL_CASES}
        for seed in _DRAWS:
            model = small_model(config, seed=seed, trust_remote_code=trust_remote_code)
            cases = [case for case in ALL_CASES if case.name in faults]
            faults = dict(_faults(wrap(model, numbers()), cases, seed))
            if not faults:
                break
    except InputError as error:
        return Verdict(architecture=name, problem=error.problem)
    except Exception as error:  # whatever a foreign model raises
        return Verdict(architecture=name, problem=_said(error))
    return Verdict(architecture=name, faults=faults)


def _faults(lm: LanguageModel, cases: list[Case], seed: int) -> Iterator[tuple[str, str]]:
    """(name of the case, what is wrong) of those that are."""
    limit = lm.context_length
    sizes = [size for size in _SIZES if limit is None or sum(size) <= limit]
    if len(sizes) < 2:
        raise InputError(f"its context window of {limit} tokens is too short", field="model")
    given = texts(sizes, range(3, VOCABULARY), seed)
    right = whole_logits(lm.model, given)
    for case in cases:
        if case.cache == "vattention" and not _has_arena(lm):
            continue  # nor can a trial have it here
        options: dict[str, Any] = {"cache": _FACTORIES[case.cache]}
        options["batch_size"] = _BATCH if case.is_batched else 1
        options["prefill_chunk"] = _CHUNK if case.is_chunked else None
        try:
            gap = Gap.between(Told(lm, **options).logits(given), right)
        except Exception as error:  # whatever a foreign model raises
            yield case.name, _said(error)
            continue
        if (place := gap.first_beyond(_ALLOWED)) is not None:
            number, step = place
            yield (
                case.name,
                f"with a prompt of {sizes[number][0]} tokens, what token {step + 1} is chosen from "
                f"is {min(gap.largest, 9.99):.0%} off",
            )


@remembered
def _has_arena_of(kind: str) -> bool:
    try:
        new_arena(Settings(), torch.device(kind)).close()
    except InputError:
        return False
    return True


def _has_arena(lm: LanguageModel) -> bool:
    return _has_arena_of(lm.device.type)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@torch.inference_mode()
def whole_logits(model: PreTrainedModel, given: list[Text]) -> list[Tensor]:
    """What predicts each completion token, by a whole pass without a cache each, [T, V]."""
    found = []
    for prompt, completion in given:
        rows = []
        for size in range(len(completion)):
            inputs = torch.tensor([[*prompt, *completion[:size]]], device=model.device)
            rows.append(model(input_ids=inputs, use_cache=False).logits[0, -1].float().cpu())
        found.append(torch.stack(rows))
    return found


@remembered
def numbers() -> PreTrainedTokenizerFast:
    """A tokenizer of numbers, for models whose tokens mean nothing."""
    words = {str(i): i for i in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)
