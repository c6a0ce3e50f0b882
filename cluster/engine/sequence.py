"""A request while it holds a slot of a batch, or waits for one again."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from torch import Tensor

from cluster.engine.completion import NO_KV, Completion, Request, add_byte_seconds
from cluster.engine.sampling import stream_key
from optim.cache.slot_cache import KVAccounts


class Sequence:
    """A request while it holds a slot."""

    def __init__(self, request: Request, ids: list[int], limit: int | None, start: float) -> None:
        self.request = request
        self.prompt_ids = ids
        self.num_prefilled = 0
        self.stream = stream_key(request.seed, request.prompt_id)
        self.budget = request.params.max_new_tokens
        self.room = math.inf if limit is None else limit - len(ids)
        self.start = start
        self.result = Completion(request, prompt_tokens=len(ids), started_at=datetime.now(UTC))
        self.result.kv = NO_KV
        self.last_token = 0
        self.last_seen = start
        self.seen_V: Tensor | None = None
        """[V] bool: tokens of prompt and completion, where a repetition penalty asks for them."""
        self.has_prompt = False
        """Its prompt was filled in once: it is awaited no more."""

    def restart(self) -> None:
        """Forget what was generated; its noise is the same again, and its clock runs on."""
        old = self.result
        self.num_prefilled = self.last_token = 0
        self.seen_V = None
        self.result = Completion(
            self.request, prompt_tokens=old.prompt_tokens, started_at=old.started_at
        )
        self.result.queue_s, self.result.kv = old.queue_s, old.kv
        self.result.kv_byte_s = old.kv_byte_s
        self.result.num_preemptions = old.num_preemptions + 1

    @property
    def spent(self) -> int:
        return self.result.base_tokens_spent

    def note_kv(self, held: KVAccounts, now: float) -> None:
        """Enter what is held since it was last seen."""
        result, spent = self.result, now - self.last_seen
        assert result.kv is not None
        self.last_seen = now
        result.kv = KVAccounts(*map(max, result.kv, held))
        result.kv_byte_s = add_byte_seconds(result.kv_byte_s, held, spent)
