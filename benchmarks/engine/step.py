"""What a decode step of the engine costs beside a bare loop of forward and argmax.

The bare loop is the least that any engine must do: `model.forward` with transformers' own
`DynamicCache` on a contiguous batch of the same shapes, and argmax. The engine samples with
temperature 0.8 and top_p 0.95 and keeps its books; all of that counts as overhead.
"""

from __future__ import annotations

import itertools
import statistics
from time import perf_counter

import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks.engine.ragged import IdTokenizer
from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.sampling import SamplingParams
from optim.cache.slot_cache import CACHES
from optim.model import LanguageModel, Vocabulary

PROMPT, STEPS = 64, 32


def bare_step_s(model: PreTrainedModel, batch_size: int) -> float:
    """Median seconds of a step of the bare loop."""
    ids = torch.randint(3, model.config.vocab_size, (batch_size, PROMPT))
    cache = DynamicCache(config=model.config)
    times = []
    with torch.inference_mode():
        logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
        for _ in range(STEPS):
            token = logits[:, -1].argmax(-1, keepdim=True)
            start = perf_counter()
            logits = model(input_ids=token, past_key_values=cache).logits
            logits[:, -1].argmax(-1).tolist()
            times.append(perf_counter() - start)
    return statistics.median(times)


def engine_step_s(
    model: PreTrainedModel, batch_size: int, cache: str, is_ragged: bool = False
) -> float:
    """Median seconds between two tokens of the engine at a full batch."""
    lengths = [PROMPT + (3 * i - 10 if is_ragged else 0) for i in range(batch_size)]
    prompts = {
        str(i): torch.randint(3, model.config.vocab_size, (length,)).tolist()
        for i, length in enumerate(lengths)
    }
    lm = LanguageModel(model, IdTokenizer(prompts), Vocabulary.base(model.config.vocab_size))
    engine = Engine(lm, batch_size=batch_size, cache=CACHES[cache])
    params = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=STEPS + 1)
    made = list(engine.generate([Request(name, name, params) for name in prompts]))
    # Between the last sequence's tokens all slots are full, and a gap is one whole step.
    times = next(c for c in made if c.request.prompt_id == str(batch_size - 1)).token_times_s
    return statistics.median(b - a for a, b in itertools.pairwise(times))
