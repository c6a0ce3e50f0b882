"""One call of `Engine.generate`: its queue, its slots, its cache, step by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from cluster.completion import NO_KV, Completion, Request
from cluster.sampling import stream_key
from optim.cache import KVAccounts
from optim.errors import SequenceError

if TYPE_CHECKING:
    from cluster.engine import Engine


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

    @property
    def spent(self) -> int:
        return self.result.base_tokens_spent

    def note_kv(self, now: KVAccounts) -> None:
        peak = self.result.kv
        assert peak is not None
        self.result.kv = KVAccounts(*map(max, peak, now))


class Batch:
    """One call of `generate`: its cache, its slots, its queue."""

    def __init__(self, engine: Engine, requests: Iterable[Request]) -> None:
        self.engine = engine
        self.submitted = perf_counter()
        self.failed: list[Completion] = []
        self.queue = deque(self._encoded(requests))
        self.cache = engine.new_cache(self._longest())
        self.active: list[Sequence] = []  # slot i holds active[i]
        self.filling: Sequence | None = None  # under prefill, in slot len(active)
        self.last = perf_counter()

    def _encoded(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[int]]]:
        for request in requests:
            try:
                yield request, self.engine.encode(request)
            except SequenceError as error:
                self.failed.append(Completion(request, error=str(error)))

    def _longest(self) -> int:
        """Tokens of the longest sequence that can come of these requests: a static cache's size."""
        lengths = [len(ids) + request.params.max_new_tokens for request, ids in self.queue]
        longest = max(lengths, default=1)
        return longest if self.engine.max_length is None else min(longest, self.engine.max_length)

    def run(self) -> Iterator[Completion]:
        yield from self.failed
        whole = self.engine.prefill_chunk is None
        while self.queue or self.active or self.filling:
            while len(self.active) < self.engine.batch_size and (self.queue or self.filling):
                done = self._advance_prefill()
                if done is not None:
                    yield done
                if not whole and self.active:
                    break  # one chunk, then a step for those that wait
            if self.active:
                yield from self._decode_step()

    def _advance_prefill(self) -> Completion | None:
        """Run one chunk of the next prompt; returns a completion where one is over already."""
        slot = len(self.active)
        if self.filling is None:
            request, ids = self.queue.popleft()
            started = perf_counter()
            self.filling = Sequence(request, ids, self.engine.max_length, started)
            self.filling.result.queue_s = started - self.submitted
        sequence = self.filling
        try:
            token = self._prefill_chunk(sequence, slot)
        except (torch.OutOfMemoryError, MemoryError, SequenceError) as error:
            self.engine.fail(sequence, f"{type(error).__name__}: {error}")
            self._end_prefill(slot)
            return sequence.result
        if token is None:
            return None
        now = self._tick(is_prefill=True)
        sequence.note_kv(self.cache.accounts(slot))
        self.filling = None
        if self.engine.accept(sequence, token, now):
            self.cache.release(slot)
            return sequence.result
        self.active.append(sequence)
        return None

    def _prefill_chunk(self, sequence: Sequence, slot: int) -> int | None:
        """The first token where the prompt is through, else None."""
        start = sequence.num_prefilled
        chunk = sequence.prompt_ids[start:][: self.engine.prefill_chunk]
        inputs = torch.tensor([chunk], device=self.engine.lm.device)
        with self.cache.prefill(slot, len(chunk)) as step:
            logits = self.engine.forward(
                input_ids=inputs,
                past_key_values=step.cache,
                attention_mask=step.attention_mask,
                position_ids=step.position_ids,
            )
        sequence.num_prefilled += len(chunk)
        if sequence.num_prefilled < len(sequence.prompt_ids):
            self._tick(is_prefill=True)
            return None
        return self.engine.choose(logits, [sequence])[0]

    def _end_prefill(self, slot: int) -> None:
        self.filling = None
        self.cache.release(slot)

    def _decode_step(self) -> Iterator[Completion]:
        active, engine = self.active, self.engine
        inputs = torch.tensor([[s.last_token] for s in active], device=engine.lm.device)
        with self.cache.decode(len(active)) as step:
            logits = engine.forward(
                input_ids=inputs,
                past_key_values=step.cache,
                attention_mask=step.attention_mask,
                position_ids=step.position_ids,
            )
        tokens = engine.choose(logits, active)
        now = self._tick(is_prefill=False)
        finished = []
        for slot, (sequence, token) in enumerate(zip(active, tokens, strict=True)):
            sequence.note_kv(self.cache.accounts(slot))
            if engine.accept(sequence, token, now):
                finished.append(slot)
        for slot in reversed(finished):
            yield self._vacate(slot)

    def _vacate(self, slot: int) -> Completion:
        """Free a slot and close the hole, so that active slots stay a prefix."""
        result = self.active[slot].result
        last = len(self.active) - 1
        self.cache.release(slot)
        if slot != last:
            self.active[slot] = self.active[last]
            self.cache.move(last, slot)
        self.active.pop()
        if self.filling is not None:
            self.cache.move(last + 1, last)
        return result

    def _tick(self, *, is_prefill: bool) -> float:
        """Charge the time since the last tick; called when the device's work is complete."""
        now = perf_counter()
        stats, spent = self.engine.stats, now - self.last
        self.last = now
        held = self.cache.accounts()
        stats.kv_peak = KVAccounts(*map(max, stats.kv_peak, held))
        stats.kv_used_byte_s += held.used_bytes * spent
        stats.kv_committed_byte_s += held.committed_bytes * spent
        if is_prefill:
            stats.prefill_s += spent
        else:
            stats.decode_s += spent
            stats.num_steps += 1
        return now
