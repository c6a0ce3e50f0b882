"""`Engine`: one language model on one device, with continuous batching over slots.

A finished sequence's slot is refilled at once. Prompts are prefilled alone (whole, or in chunks
that alternate with decode steps of the others), so a sequence's first token does not depend on who
else is there. Outputs are deterministic given (requests in order, batch size, threads) on one type
of machine. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cluster.engine.batch import Batch
from cluster.engine.completion import Completion, EngineStats, Request, Score
from cluster.engine.encoding import encode_pair, windows
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import Sampler, mask_of, step_key
from cluster.engine.sequence import Sequence
from cluster.engine.stopping import StopFinder
from optim.cache.slot_cache import CacheFactory, SlotCache
from optim.errors import SequenceError
from optim.model import LanguageModel, PhaseName
from optim.models.prompt_ids import prompt_ids
from optim.models.window import changing_rope


class Engine:
    """Generates and scores with one model.

    `batch_size` is the number of slots; `prefill_chunk` the tokens per prefill step, None for whole
    prompts. `max_length` bounds a sequence (prompt and completion); None is the model's context
    length. With `prefixes`, requests with equal prompts are prefilled once. InputError for a
    loaded model of an architecture that would not give its own outputs.
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

    # --- generating ----------------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Complete every request; yields in order of finishing, one `Completion` each.

        A request that cannot run (too long, no tokens, not finite) yields one with `error` set.
        """
        return Batch(self, requests).run()

    def share(self, requests: Iterable[Request]) -> None:
        """Prefill the requests' prompts into `prefixes` now, and outside everybody's time.

        A prompt that cannot be encoded, or that memory is too short for, is left to `generate`.
        """
        assert self.prefixes is not None, "there is nowhere to put them"
        prompts: dict[tuple[int, ...], None] = {}
        for request in requests:
            try:
                prompts[tuple(self.encode(request))] = None
            except SequenceError:
                continue
        longest = max(map(len, prompts), default=1)
        cache: SlotCache = self.lm.cache(self.cache_factory, 1, longest)
        for ids in prompts:
            self.prefixes.announce(ids)
            try:
                self._share_one(list(ids), cache)
            except (torch.OutOfMemoryError, SequenceError):
                cache.release(0)
            self.prefixes.arrived(ids)
        cache.discard()

    def _share_one(self, ids: list[int], cache: SlotCache) -> None:
        assert self.prefixes is not None
        if prefix := self.prefixes.find(ids):
            cache.adopt(prefix)
            return
        if self.prefixes.is_full:
            return
        for start in range(0, len(ids), self.prefill_chunk or len(ids)):
            logits = self.prefill(cache, 0, ids[start:][: self.prefill_chunk])
        if prefix := self.prefixes.offer(ids, cache, 0):
            prefix.logits_1V = logits.clone()
        cache.release(0)

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

    # --- scoring -------------------------------------------------------------------------------

    def score(self, context: str, continuation: str, *, is_chat: bool = False) -> Score:
        """Teacher-forced -ln p(continuation | context) in nats.

        One forward without a cache; where the model treats generated tokens unlike a prompt's, the
        continuation goes through as generated ones do, on top of the context. No token spans the
        join, whatever the vocabulary: `cluster.engine.encoding.encode_pair` says how both are
        encoded. An empty context is the start token, and a continuation of it may be longer than
        the context window (`cluster.engine.encoding.windows`). Raises SequenceError where the
        continuation has no tokens, or both do not fit the window.
        """
        before, after = encode_pair(
            self.lm.tokenizer, context, continuation, add_special_tokens=not is_chat
        )
        if not after:
            raise SequenceError("the continuation has no tokens")
        if not before:
            before = [self._start_token()]
        self._require_embeddings([*before, *after])
        limit = self.lm.context_length
        parts = [(before, after)]
        # The last token is only predicted.
        if limit is not None and len(before) + len(after) - 1 > limit:
            if context:
                raise SequenceError(
                    f"context and continuation have {len(before) + len(after)} tokens and the "
                    f"context window is {limit}"
                )
            parts = list(windows(before, after, limit))
        found = [self._likelihood(*part) for part in parts]
        return Score(
            nats=sum(nats for nats, _ in found),
            num_tokens=len(after),
            num_bytes=len(continuation.encode()),
            is_greedy=all(is_greedy for _, is_greedy in found),
        )

    def _start_token(self) -> int:
        start: int | None = self.lm.tokenizer.bos_token_id
        start = next(iter(sorted(self._ends)), None) if start is None else start
        if start is None:
            raise SequenceError("there is no context, and the model has no start token")
        return start

    def _likelihood(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        """-ln p(after | before), and whether each token of `after` was the likeliest."""
        targets = torch.tensor(after, device=self.lm.device)
        with torch.inference_mode():
            score = self._phased_logits if self.lm.is_phased else self._logits
            logits = score(before, after)
            nats = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
            is_greedy = bool((logits.argmax(-1) == targets).all())
        value = float(nats)
        if not math.isfinite(value):
            raise SequenceError("the logits are not finite (NaN or infinite)")
        return value, is_greedy

    def _logits(self, before: list[int], after: list[int]) -> Tensor:
        """What predicts each token of `after`, [T, V], in one pass."""
        inputs = torch.tensor([[*before, *after[:-1]]], device=self.lm.device)
        out = self.lm.model(input_ids=inputs, use_cache=False, logits_to_keep=len(after))
        logits: Tensor = out.logits[0, -len(after) :]
        return logits

    def _phased_logits(self, before: list[int], after: list[int]) -> Tensor:
        """The same with `before` as a prompt and `after` as generated tokens."""
        with self.lm.phase("prefill"):
            inputs = torch.tensor([before], device=self.lm.device)
            out = self.lm.model(input_ids=inputs, use_cache=True, logits_to_keep=1)
        first: Tensor = out.logits[0, -1:]
        if len(after) == 1:
            return first
        with self.lm.phase("decode"):
            inputs = torch.tensor([after[:-1]], device=self.lm.device)
            rest = self.lm.model(input_ids=inputs, past_key_values=out.past_key_values).logits[0]
        return torch.cat([first, rest])
