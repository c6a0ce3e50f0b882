"""`VAttentionSlotCache`: each slot of the engine is a contiguous range that fills page by page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from optim.cache.prefix import Prefix, Sharing, bytes_of
from optim.cache.slot_cache import SlotCache, Step
from optim.cache.slot_layers import SlotLayer
from optim.errors import SlotLostError
from optim.vattention.arena.arena import Arena, KVMemoryError
from optim.vattention.arena.page_table import PageTable
from optim.vattention.arena.shared_prefix import SharedRow
from optim.vattention.new_arena import new_arena
from optim.vattention.settings import Settings
from optim.vattention.slot_layer import ArenaLayerSlots

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VAttentionSlotCache(SlotCache):
    """Keys and values of full-attention layers in an arena; sliding ones as in every cache.

    After each step and release, what is committed is at most what is used, plus a page per stripe,
    plus the look-ahead, plus `deferred_bytes` where reclaim is deferred. A stripe is a row of a
    head of a layer's keys or values with base pages, all heads of it with huge ones. Everything is
    unmapped when the last reference to the cache goes, or with `close`.
    """

    name = "vattention"

    def __init__(
        self,
        model: PreTrainedModel,
        num_slots: int,
        max_length: int,
        settings: Settings | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.arena = arena or new_arena(self.settings, model.device)
        self._pages = PageTable(self.arena, num_slots, max_length)
        # Columns up to here may hold tokens of a sequence that ended: to be zeroed before they
        # are read, since a masked column is still multiplied, and 0 x NaN is NaN.
        self._written = [0] * num_slots
        self._shared: dict[int, SharedRow] = {}  # slot -> what its first pages are mapped to
        self._sharers: Counter[SharedRow] = Counter()  # slots that map it
        super().__init__(model, num_slots, max_length)

    def new_full_layer(self) -> SlotLayer:
        return ArenaLayerSlots(self._pages)

    @contextmanager
    def prefill(self, slot: int, num_tokens: int) -> Iterator[Step]:
        total = self.lengths[slot] + num_tokens
        self._check_length(total)
        self._grow(slot, total)
        with super().prefill(slot, num_tokens) as step:
            yield step

    @contextmanager
    def decode(self, num_active: int) -> Iterator[Step]:
        for problem in self.without_room(num_active).values():
            raise KVMemoryError(problem)
        self._clear_old_tokens(num_active)
        self._pages.fill(num_active, max(self.lengths[:num_active]) + 1)
        ahead = self.settings.look_ahead
        idle = [0] * (self.num_slots - num_active)
        active = self.lengths[:num_active]
        # All rows at once, as soon as the next step would find one of them without a page.
        if ahead and not self._pages.has_room([n + 2 for n in active] + idle):
            self._pages.prefetch([n + 1 + ahead for n in active] + idle)
        with super().decode(num_active) as step:
            yield step

    def without_room(self, num_active: int) -> dict[int, str]:
        wanted = [n + 1 for n in self.lengths[:num_active]]
        try:
            self._check_length(max(wanted))
            self._pages.grow(wanted + [0] * (self.num_slots - num_active))
            return {}
        except KVMemoryError:
            problems = {}
        for slot, tokens in enumerate(wanted):  # the earlier slots get what there is
            try:
                self._check_length(tokens)
                self._grow(slot, tokens)
            except KVMemoryError as error:
                problems[slot] = str(error)
        return problems

    def release(self, slot: int) -> None:
        if shared := self._shared.pop(slot, None):
            self._sharers[shared] -= 1
            if not self._sharers[shared]:
                del self._sharers[shared]
            shared.unmap(self._pages, slot)
            self._written[slot] = 0
        self._written[slot] = max(self._written[slot], self._pages.forget(slot))
        super().release(slot)
        self._reclaim(self.settings.kept_bytes)

    @torch.inference_mode()
    def move(self, src: int, dst: int) -> None:
        shared = self._shared.get(src)
        if shared is not None:
            self._pages.clear_row(dst)
            if shared.map(self._pages, dst):
                self._note_shared(dst, shared)
        self._pages.move(src, dst, self.lengths[src])
        super().move(src, dst)
        self._written[src] = 0  # its pages went with the move

    # --- prompts that are shared ---------------------------------------------------------------

    @torch.inference_mode()
    def freeze(self, slot: int) -> Prefix:
        shared = SharedRow(self._pages, self.lengths[slot])
        shared.fill_from(self._pages, slot)
        states = self._states(shared, slot)
        prefix = Prefix(
            self.lengths[slot], states, shared=shared, num_copied_bytes=self._copied_bytes(states)
        )
        # The slot gives its own copy up for the shared one.
        self._pages.clear_row(slot)
        try:
            self._attach(slot, shared)
        except KVMemoryError as error:
            prefix.close()
            raise SlotLostError(f"a prompt could not be shared: {error}") from error
        return prefix

    @torch.inference_mode()
    def fork(self, slot: int, prefix: Prefix) -> Sharing:
        shared = self._adopted(prefix)
        for layer, (key, value) in zip(self.layers, prefix.states, strict=True):
            if not isinstance(layer, ArenaLayerSlots):
                layer.restore(slot, key, value)
        self._pages.clear_row(slot)
        is_mapped = self._attach(slot, shared)
        self.lengths[slot] = prefix.num_tokens
        return "mapped" if is_mapped else "copied"

    def _attach(self, slot: int, shared: SharedRow) -> bool:
        try:
            is_mapped = shared.attach(self._pages, slot)
        except KVMemoryError:
            self._reclaim(0)
            is_mapped = shared.attach(self._pages, slot)
        if is_mapped:
            self._note_shared(slot, shared)
        self._written[slot] = 0
        return is_mapped

    def _note_shared(self, slot: int, shared: SharedRow) -> None:
        self._shared[slot] = shared
        self._sharers[shared] += 1

    @torch.inference_mode()
    def adopt(self, prefix: Prefix) -> None:
        self._adopted(prefix)

    def _adopted(self, prefix: Prefix) -> SharedRow:
        """The prompt in memory that this cache can map; moved there where it was elsewhere."""
        for layer, (key, value) in zip(self.layers, prefix.states, strict=True):
            if isinstance(layer, ArenaLayerSlots) and layer.keys is None:
                layer.allocate(key, value)
        if isinstance(prefix.shared, SharedRow) and prefix.shared.fits(self._pages):
            return prefix.shared
        shared = SharedRow(self._pages, prefix.num_tokens)
        states = self._states(shared, None)
        for index, layer in enumerate(self.layers):
            if isinstance(layer, ArenaLayerSlots):
                for own, given in zip(states[index], prefix.states[index], strict=True):
                    own.copy_(given)
            else:
                states[index] = prefix.states[index]
        prefix.close()
        prefix.states, prefix.shared = states, shared
        prefix.num_copied_bytes = self._copied_bytes(states)
        return shared

    def _copied_bytes(self, states: list[tuple[Tensor, Tensor]]) -> int:
        """Of the states that are not in shared memory."""
        layers = zip(self.layers, states, strict=True)
        return bytes_of(pair for layer, pair in layers if not isinstance(layer, ArenaLayerSlots))

    def _states(self, shared: SharedRow, slot: int | None) -> list[tuple[Tensor, Tensor]]:
        """Views of a shared prompt by layer, with a slot's own states of the other layers."""
        places = {id(region): i for i, region in enumerate(self._pages.regions)}
        states = []
        for layer in self.layers:
            if isinstance(layer, ArenaLayerSlots):
                assert layer.keys is not None
                assert layer.values is not None
                key, value = (
                    shared.tensor(places[id(region)], x.shape[1], x.shape[3])
                    for region, x in zip(layer.regions, (layer.keys, layer.values), strict=True)
                )
                states.append((key, value))
            elif slot is not None:
                states.append(layer.snapshot(slot, shared.tokens))
            else:
                states.append((torch.empty(0), torch.empty(0)))
        return states

    # --- accounts ------------------------------------------------------------------------------

    def full_bytes(self, slot: int | None) -> tuple[int, int]:
        committed, reserved = self._pages.held_bytes(slot)
        if slot is not None and (shared := self._shared.get(slot)):
            # Per slot its share, as in Pss.
            committed += shared.num_bytes // self._sharers[shared]
        return committed, reserved

    def audit(self) -> tuple[int, int] | None:
        committed, _ = self._pages.held_bytes()
        return committed, self.arena.audit()

    def discard(self) -> None:
        """Release every page. Addresses go with the last tensor that looks at them."""
        for slot in range(self.num_slots):
            self.release(slot)
        self._reclaim(0)
        super().discard()

    def close(self) -> None:
        """Unmap everything now; LiveTensorError while somebody looks at a tensor of it."""
        self._pages.join()
        self.layers.clear()
        self._shared.clear()
        self._sharers.clear()
        self._pages = PageTable(self.arena, self.num_slots, self.max_length)
        self.arena.close()

    def _check_length(self, tokens: int) -> None:
        if tokens > self.max_length:
            raise KVMemoryError(
                f"the sequence has {tokens} tokens and its slot is reserved for {self.max_length}"
            )

    def _grow(self, slot: int, tokens: int) -> None:
        try:
            self._pages.grow_row(slot, tokens)
        except KVMemoryError:
            self._reclaim(0)
            self._pages.grow_row(slot, tokens)

    def _reclaim(self, bound: int) -> None:
        """Release what live sequences do not need until at most `bound` bytes of it are left.

        Free slots first, from the last: the next sequence takes the first free one. The slot that
        crosses the bound keeps what is below it.
        """
        ahead = self.settings.look_ahead
        needed = np.array([n + ahead if n else 0 for n in self.lengths])
        excess_B = self._pages.excess_bytes_B(needed)
        kept = np.full_like(needed, self.max_length)
        left = int(excess_B.sum())
        order = sorted(range(self.num_slots), key=lambda s: (self.lengths[s] == 0, s), reverse=True)
        for slot in order:
            if left <= bound:
                break
            spare = bound - (left - int(excess_B[slot]))
            kept[slot] = self._pages.most_tokens(int(needed[slot]), spare)
            left -= int(excess_B[slot])
            if not kept[slot]:
                self._written[slot] = 0
        self._pages.shrink(kept)

    @torch.inference_mode()
    def _clear_old_tokens(self, num_active: int) -> None:
        for slot in range(num_active):
            if self._written[slot] > self.lengths[slot]:
                for layer in self.layers:
                    if isinstance(layer, ArenaLayerSlots):
                        layer.clear(slot, self.lengths[slot], self._written[slot])
            self._written[slot] = 0
