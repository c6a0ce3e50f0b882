"""A ragged workload, and three ways to serve it: our engine, static batches, transformers' own
continuous batching. Each generates exactly the tokens that the trace asks for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES
from optim.model import LanguageModel, Vocabulary


@dataclass(frozen=True)
class Item:
    """One request of a trace."""

    prompt: tuple[int, ...]
    num_new: int


def trace(count: int, vocabulary: int, seed: int = 0) -> list[Item]:
    """Prompts of 16 to 512 tokens and outputs of 8 to 256, uniform, in random order."""
    draw = random.Random(seed)
    return [
        Item(
            tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(16, 512))),
            draw.randint(8, 256),
        )
        for _ in range(count)
    ]


def ideal_ratio(items: list[Item], batch_size: int) -> float:
    """Decode steps of static batches over those of a batch that is always full.

    A static batch runs until its longest output is done; with refill, only the sum counts. Prefill
    is the same work for both, so the ratio of times lies below this where prefill matters.
    """
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    static_steps = sum(max(item.num_new for item in batch) for batch in batches)
    return static_steps / math.ceil(sum(item.num_new for item in items) / batch_size)


class IdTokenizer:
    """Hands ready token ids through, so that no tokenizer is timed."""

    bos_token_id = None
    eos_token_id = None

    def __init__(self, prompts: dict[str, list[int]]) -> None:
        self.prompts = prompts

    def __call__(self, prompt: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.prompts[prompt]}

    def decode(self, ids: list[int], **options: Any) -> str:
        return ""


def engine_runner(
    model: PreTrainedModel, items: list[Item], batch_size: int, cache: str
) -> Callable[[], float]:
    prompts = {str(i): list(item.prompt) for i, item in enumerate(items)}
    vocabulary = Vocabulary.base(model.config.vocab_size)
    lm = LanguageModel(model, IdTokenizer(prompts), vocabulary)
    engine = Engine(lm, batch_size=batch_size, cache=CACHES[cache])
    requests = [
        Request(str(i), str(i), SamplingParams(max_new_tokens=item.num_new))
        for i, item in enumerate(items)
    ]

    def run() -> float:
        start = perf_counter()
        completions = list(engine.generate(requests))
        spent = perf_counter() - start
        assert sum(len(c.ids) for c in completions) == sum(item.num_new for item in items)
        return spent

    return run


def static_runner(
    model: PreTrainedModel, items: list[Item], batch_size: int
) -> Callable[[], float]:
    """`model.generate` on batches in the order of the trace, left-padded, as people use it."""

    def run() -> float:
        start = perf_counter()
        for i in range(0, len(items), batch_size):
            batch = items[i : i + batch_size]
            width = max(len(item.prompt) for item in batch)
            ids = torch.tensor([[0] * (width - len(x.prompt)) + list(x.prompt) for x in batch])
            mask = torch.tensor(
                [[0] * (width - len(x.prompt)) + [1] * len(x.prompt) for x in batch]
            )
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(item.num_new for item in batch),
                do_sample=False,
                pad_token_id=0,
            )
            assert made.shape[1] == width + max(item.num_new for item in batch)
        return perf_counter() - start

    return run


def continuous_runner(
    model: PreTrainedModel, items: list[Item], batch_size: int
) -> Callable[[], float]:
    """transformers' continuous batching, with as many requests in flight and room for them."""
    blocks = math.ceil(batch_size * 768 / 256) + batch_size
    settings = ContinuousBatchingConfig(
        num_blocks=blocks, max_batch_tokens=1024, max_requests_per_batch=batch_size
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run() -> float:
        with model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=settings
        ) as manager:
            return serve(manager, items)

    return run


def serve(manager: Any, items: list[Item]) -> float:
    """Seconds that a continuous-batching manager takes for a trace."""
    start = perf_counter()
    for item in items:
        manager.add_request(list(item.prompt), max_new_tokens=item.num_new)
    done = 0
    while done < len(items):
        result = manager.get_result(timeout=5)
        if result is not None and result.is_finished():
            assert result.error is None, result.error
            done += 1
    return perf_counter() - start
