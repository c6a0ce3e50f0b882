"""`Engine`: one language model on one device, with continuous batching over slots.

A finished sequence's slot is refilled at once. Prompts are prefilled alone (whole, or in chunks
that alternate with decode steps of the others), so a sequence's first token does not depend on who
else is there. Outputs are deterministic given (requests in order, batch size, threads) on one type
of machine. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cluster.engine.batch import Batch
from cluster.engine.completion import Completion, Request, Score
from cluster.engine.encoding import encode_pair, windows
from cluster.engine.model_runner import ModelRunner
from optim.cache.slot_cache import SlotCache
from optim.errors import SequenceError


class Engine(ModelRunner):
    """Generates and scores with one model; made as a `ModelRunner` is."""

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
