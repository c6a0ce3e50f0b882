"""One call of `Engine.generate`: its queue, its slots, its cache, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from time import perf_counter

import torch

from cluster.engine.completion import Completion, Request, add_byte_seconds
from cluster.engine.model_runner import ModelRunner
from cluster.engine.sequence import Sequence
from optim.cache.prefix import Prefix
from optim.cache.slot_cache import KVAccounts
from optim.errors import NoRoomError, SequenceError


class Batch:
    """One call of `generate`: its cache, its slots, its queue."""

    def __init__(self, runner: ModelRunner, requests: Iterable[Request]) -> None:
        self.runner = runner
        self.submitted = perf_counter()
        self.failed: list[Completion] = []
        self.prefixes = runner.prefixes
        self.queue = deque(self._encoded(requests))
        self.preempted: deque[Sequence] = deque()  # to be run again before the queue
        self.cache = runner.new_cache(self._longest())
        self.active: list[Sequence] = []  # slot i holds active[i]
        self.filling: Sequence | None = None  # under prefill, in slot len(active)
        self.is_full = False
        """Memory was short: nobody is let in before somebody has left."""
        self.last = perf_counter()

    def _encoded(self, requests: Iterable[Request]) -> Iterator[tuple[Request, list[int]]]:
        for request in requests:
            try:
                ids = self.runner.encode(request)
            except SequenceError as error:
                self.failed.append(Completion(request, error=str(error)))
                continue
            if self.prefixes is not None:
                self.prefixes.announce(ids)
            yield request, ids

    def _longest(self) -> int:
        """Tokens of the longest sequence that can come of these requests: a static cache's size."""
        lengths = [len(ids) + request.params.max_new_tokens for request, ids in self.queue]
        longest = max(lengths, default=1)
        return longest if self.runner.max_length is None else min(longest, self.runner.max_length)

    def run(self) -> Iterator[Completion]:
        yield from self.failed
        whole = self.runner.prefill_chunk is None
        while self.is_waiting or self.active or self.filling:
            while self._may_prefill():
                done = self._advance_prefill()
                if done is not None:
                    yield done
                if not whole and self.active:
                    break  # one chunk, then a step for those that wait
            if self.active:
                yield from self._decode_step()
        self.cache.discard()

    @property
    def is_waiting(self) -> bool:
        """Whether a sequence waits for a slot."""
        return bool(self.queue or self.preempted)

    def _may_prefill(self) -> bool:
        if self.filling is not None:
            return True
        has_slot = len(self.active) < self.runner.batch_size
        return has_slot and self.is_waiting and not (self.is_full and self.active)

    def _next(self) -> Sequence:
        """The sequence whose turn it is."""
        started = perf_counter()
        if self.preempted:
            sequence = self.preempted.popleft()
            sequence.last_seen = started
            if sequence.result.num_preemptions:
                return sequence
            sequence.start = started
        else:
            request, ids = self.queue.popleft()
            sequence = Sequence(request, ids, self.runner.max_length, started)
        sequence.result.queue_s = started - self.submitted
        return sequence

    def _advance_prefill(self) -> Completion | None:
        """Run one chunk of the next prompt; returns a completion where one is over already."""
        slot = len(self.active)
        if self.filling is None:
            self.filling = self._next()
        sequence = self.filling
        try:
            token = self._first_token(sequence, slot)
        except (torch.OutOfMemoryError, MemoryError, SequenceError) as error:
            self._end_prefill(slot)
            if self.active and isinstance(error, torch.OutOfMemoryError | NoRoomError):
                # It is tried again when somebody has left; alone, it can never run.
                self._wait(sequence)
                return None
            self._arrived(sequence)
            self.runner.fail(sequence, f"{type(error).__name__}: {error}")
            return sequence.result
        if token is None:
            return None
        now = self._tick(is_prefill=True)
        sequence.note_kv(self.cache.accounts(slot), now)
        self.filling = None
        if self.runner.accept(sequence, token, now):
            self._arrived(sequence)
            self._audit_if_last(len(self.active))
            self.cache.release(slot)
            self.is_full = False
            return sequence.result
        self.active.append(sequence)
        self._arrived(sequence)
        return None

    def _first_token(self, sequence: Sequence, slot: int) -> int | None:
        """The first token where the prompt is through, else None; forked where it can be."""
        if sequence.num_prefilled or self.prefixes is None:
            return self._prefill_chunk(sequence, slot)
        prefix = self.prefixes.find(sequence.prompt_ids)
        if prefix is None:
            return self._prefill_chunk(sequence, slot)
        return self._fork(sequence, slot, prefix)

    def _fork(self, sequence: Sequence, slot: int, prefix: Prefix) -> int:
        sequence.result.prefill_shared = self.cache.fork(slot, prefix)
        sequence.num_prefilled = prefix.num_tokens
        assert prefix.logits_1V is not None
        return self.runner.choose(prefix.logits_1V, [sequence])[0]

    def _arrived(self, sequence: Sequence) -> None:
        if self.prefixes is not None and not sequence.has_prompt:
            self.prefixes.arrived(sequence.prompt_ids)
        sequence.has_prompt = True

    def _wait(self, sequence: Sequence) -> None:
        """Set a sequence aside for want of memory, until another one has ended."""
        self.is_full = True
        if sequence.result.ids or sequence.num_prefilled:
            sequence.restart()
        self.preempted.appendleft(sequence)

    def _prefill_chunk(self, sequence: Sequence, slot: int) -> int | None:
        """The first token where the prompt is through, else None."""
        start = sequence.num_prefilled
        chunk = sequence.prompt_ids[start:][: self.runner.prefill_chunk]
        logits = self.runner.prefill(self.cache, slot, chunk)
        sequence.num_prefilled += len(chunk)
        if sequence.num_prefilled < len(sequence.prompt_ids):
            sequence.note_kv(self.cache.accounts(slot), self._tick(is_prefill=True))
            return None
        token = self.runner.choose(logits, [sequence])[0]
        if self.prefixes is not None:
            prefix = self.prefixes.offer(sequence.prompt_ids, self.cache, slot)
            if prefix is not None:
                prefix.logits_1V = logits.clone()
        return token

    def _end_prefill(self, slot: int) -> None:
        self.filling = None
        self.cache.release(slot)

    def _decode_step(self) -> Iterator[Completion]:
        yield from self._make_room()
        active, runner = self.active, self.runner
        if not active:
            return
        inputs = torch.tensor([[s.last_token] for s in active], device=runner.lm.device)
        with self.cache.decode(len(active)) as step:
            logits = runner.forward(
                "decode",
                input_ids=inputs,
                past_key_values=step.cache,
                attention_mask=step.attention_mask,
                position_ids=step.position_ids,
            )
        tokens = runner.choose(logits, active)
        now = self._tick(is_prefill=False)
        finished = []
        for slot, (sequence, token) in enumerate(zip(active, tokens, strict=True)):
            sequence.note_kv(self.cache.accounts(slot), now)
            if runner.accept(sequence, token, now):
                finished.append(slot)
        for slot in reversed(finished):
            yield self._vacate(slot)

    def _make_room(self) -> Iterator[Completion]:
        """Preempt the last sequences until the others can take one token more.

        They run again later, from the start: their noise is the same. One that is alone fails.
        """
        while self.active and (problems := self.cache.without_room(len(self.active))):
            last = len(self.active) - 1
            if self.filling is not None:
                sequence = self.filling
                self._end_prefill(last + 1)
                self._wait(sequence)
            elif last:
                sequence = self.active[last]
                self._leave(last)
                self._wait(sequence)
            else:
                self.runner.fail(self.active[last], problems[last])
                yield self._vacate(last)

    def _vacate(self, slot: int) -> Completion:
        """Free a finished sequence's slot."""
        result = self.active[slot].result
        self._audit_if_last(len(self.active) - 1)
        self._leave(slot)
        self.is_full = False
        return result

    def _leave(self, slot: int) -> None:
        """Free a slot and close the hole, so that active slots stay a prefix.

        What cannot be moved for want of memory begins again later.
        """
        filling_slot = len(self.active)
        self.cache.release(slot)
        while slot < len(self.active) - 1:
            sequence = self.active.pop()
            if self._moved(len(self.active), slot):
                self.active[slot] = sequence
                break
            self._wait(sequence)
        else:
            self.active.pop()
        if self.filling is not None and not self._moved(filling_slot, len(self.active)):
            sequence, self.filling = self.filling, None
            self._wait(sequence)

    def _moved(self, src: int, dst: int) -> bool:
        """Whether a sequence could be moved; if not, both slots are free."""
        try:
            self.cache.move(src, dst)
        except NoRoomError:
            self.cache.release(src)
            self.cache.release(dst)
            return False
        return True

    def _audit_if_last(self, num_others: int) -> None:
        """Check the cache's books once, when nobody's time is taken any more."""
        if num_others or self.is_waiting or self.filling is not None:
            return
        start = perf_counter()
        self.runner.stats.kv_audit = self.cache.audit()
        self.runner.stats.audit_s += perf_counter() - start

    def _tick(self, *, is_prefill: bool) -> float:
        """Charge the time since the last tick; called when the device's work is complete."""
        now = perf_counter()
        stats, spent = self.runner.stats, now - self.last
        self.last = now
        held = self.cache.accounts()
        if self.prefixes is not None:
            waiting = self.prefixes.unmapped_bytes
            held = held._replace(
                committed_bytes=held.committed_bytes + waiting,
                reserved_bytes=held.reserved_bytes + waiting,
            )
        stats.kv_peak = KVAccounts(*map(max, stats.kv_peak, held))
        stats.kv_byte_s = add_byte_seconds(stats.kv_byte_s, held, spent)
        if is_prefill:
            stats.prefill_s += spent
        else:
            stats.decode_s += spent
            stats.num_steps += 1
            stats.num_slot_steps += len(self.active) + (self.filling is not None)
        return now
