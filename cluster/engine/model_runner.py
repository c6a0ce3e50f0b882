"""`ModelRunner`: a model, its tokenizer and its sampler, one step at a time.

What `Batch` schedules: a prompt is encoded and prefilled into a slot of a cache, logits come of one
forward pass, tokens are chosen from them and accepted. Knows nothing of queues, nor of Ray.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cluster.engine.completion import Completion, EngineStats, Request
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import Sampler, mask_of, step_key
from cluster.engine.sequence import Sequence
from cluster.engine.stopping import StopFinder
from optim.cache.slot_cache import CacheFactory, SlotCache
from optim.errors import SequenceError
from optim.model import LanguageModel, PhaseName
from optim.models.prompt_ids import prompt_ids
from optim.models.window import changing_rope


class ModelRunner:
    """Runs one model on one device.

    `batch_size` is the number of slots; `prefill_chunk` the tokens per prefill step, None for whole
    prompts. `max_length` bounds a sequence (prompt and completion); None is the model's context
    length. With `prefixes`, requests with equal prompts are prefilled once.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        batch_size: int = 8,
        cache: CacheFactory | None = None,
        prefill_chunk: int | None = None,
        max_length: int | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        self.lm = lm
        self.prefixes = prefixes
        self.batch_size = batch_size
        self.prefill_chunk = prefill_chunk
        lengths = [n for n in (max_length, lm.context_length) if n is not None]
        self.max_length = min(lengths) if lengths else None
        self.cache_factory = cache
        self._sampler = Sampler(lm.vocabulary.keys_V, lm.vocabulary.base_lengths_V, lm.device)
        self._base_lengths: list[int] = lm.vocabulary.base_lengths_V.tolist()
        self._rope = changing_rope(lm.model.config)
        self._ends = lm.end_ids
        self._stops = StopFinder(lm.tokenizer)
        self._num_embeddings = int(lm.model.get_input_embeddings().weight.shape[0])
        self.stats = EngineStats()

    def reset_stats(self) -> None:
        self.stats = EngineStats()
        if self.lm.meter is not None:
            self.lm.meter.reset()

    def encode(self, request: Request) -> list[int]:
        """Token ids of a prompt; SequenceError where there are none or too many."""
        try:
            ids = prompt_ids(self.lm.tokenizer, request.prompt, special=not request.is_chat)
        except (TypeError, ValueError, UnicodeError) as error:
            raise SequenceError(f"the prompt cannot be encoded: {error}") from error
        if not ids:
            start = self.lm.tokenizer.bos_token_id
            if start is None:
                raise SequenceError("the prompt has no tokens")
            ids = [start]
        self._require_embeddings(ids)
        if self.max_length is not None and len(ids) >= self.max_length:
            why = f": beyond it {self._rope} changes all positions" if self._rope else ""
            raise SequenceError(
                f"the prompt has {len(ids)} tokens and the context window is {self.max_length}{why}"
            )
        return ids

    def _require_embeddings(self, ids: list[int]) -> None:
        """A tokenizer may know tokens that were added without a row for them."""
        wrong = next((each for each in ids if each >= self._num_embeddings), None)
        if wrong is not None:
            token = self.lm.tokenizer.convert_ids_to_tokens(wrong)
            raise SequenceError(
                f"the token {token!r} ({wrong}) has no embedding: the model has "
                f"{self._num_embeddings} of them"
            )

    def new_cache(self, longest: int) -> SlotCache:
        """A fresh cache for one call, for sequences of up to `longest` tokens."""
        cache: SlotCache = self.lm.cache(self.cache_factory, self.batch_size, longest)
        return cache

    def prefill(self, cache: SlotCache, slot: int, ids: list[int]) -> Tensor:
        """Append tokens to a slot; the logits [1, V] after the last."""
        inputs = torch.tensor([ids], device=self.lm.device)
        with cache.prefill(slot, len(ids)) as step:
            return self.forward(
                "prefill",
                input_ids=inputs,
                past_key_values=step.cache,
                attention_mask=step.attention_mask,
                position_ids=step.position_ids,
            )

    def forward(self, phase: PhaseName, **inputs: Any) -> Tensor:
        """Logits of the last position, [B, V]."""
        with torch.inference_mode(), self.lm.phase(phase):
            logits: Tensor = self.lm.model(**inputs, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]

    def choose(self, logits_BV: Tensor, sequences: list[Sequence]) -> list[int]:
        """The next token of each sequence; -1 where the logits are not finite."""
        size = logits_BV.shape[-1]
        penalises = any(s.request.params.repetition_penalty != 1 for s in sequences)
        seen = [self._seen(s, size) for s in sequences] if penalises else None
        with torch.inference_mode():
            return self._sampler(
                logits_BV,
                [s.request.params for s in sequences],
                [step_key(s.stream, s.spent) for s in sequences],
                [s.budget - s.spent for s in sequences],
                seen,
            )

    def _seen(self, sequence: Sequence, size: int) -> Tensor | None:
        """[V] bool: the tokens that a sequence's repetition penalty is for."""
        if sequence.request.params.repetition_penalty == 1:
            return None
        if sequence.seen_V is None:
            tokens = {*sequence.prompt_ids, *sequence.result.ids}
            sequence.seen_V = mask_of(tokens, size, self.lm.device)
        return sequence.seen_V

    def accept(self, sequence: Sequence, token: int, now: float) -> bool:
        """Append a token; True where the sequence is finished."""
        result, params = sequence.result, sequence.request.params
        if token < 0:
            return self.fail(sequence, "the logits are not finite (NaN or infinite)")
        result.ids.append(token)
        result.base_tokens_spent += self._base_lengths[token]
        elapsed = now - sequence.start
        result.token_times_s.append(elapsed)
        if result.ttft_s is None:
            result.ttft_s = elapsed
        result.e2e_s = elapsed
        sequence.last_token = token
        if sequence.seen_V is not None:
            sequence.seen_V[token] = True
        if token in self._ends:
            result.finish_reason, result.ended_by_token = "stop", True
        elif params.stop and self._cut_at_stop(result, params.stop):
            result.finish_reason = "stop"
            return True
        elif sequence.spent >= sequence.budget or len(result.ids) >= sequence.room:
            result.finish_reason = "length"
        else:
            return False
        result.text = self.decode(result.ids)
        return True

    def fail(self, sequence: Sequence, error: str) -> bool:
        old = sequence.result
        sequence.result = Completion(
            sequence.request,
            error=error,
            started_at=old.started_at,
            num_preemptions=old.num_preemptions,
        )
        return True

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, exactly: no special tokens, no clean-up of spaces."""
        if ids and ids[-1] in self._ends:
            ids = ids[:-1]
        text: str = self.lm.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _cut_at_stop(self, result: Completion, stops: tuple[str, ...]) -> bool:
        text = self._stops.cut(result.ids, stops)
        if text is None:
            return False
        result.text = text
        return True
