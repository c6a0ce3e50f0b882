"""KV caches behind the slots of the engine: the interface, and the two plain ones.

A `SlotCache` holds up to `num_slots` sequences. Active slots are always the prefix 0..n-1, so a
decode step reads views, never gathered copies. At equal batch composition every cache returns
tensors of equal shape and content, so tokens are identical whatever the cache.

Sliding-window layers are the same object in every cache (`SlidingLayer`): right-aligned, bounded by
the window, as transformers' own.

Shapes: B active rows, H key/value heads, L columns, D head size.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from optim.cache.prefix import Prefix, Sharing
from optim.cache.slot_layers import (
    DynamicLayerSlots,
    Rows,
    SlidingLayer,
    SlotLayer,
    StaticLayerSlots,
)
from optim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"


class KVAccounts(NamedTuple):
    """Bytes of keys and values: address space, physical memory, and live tokens."""

    used_bytes: int
    committed_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class Step:
    """What a model's forward needs for one prefill chunk or one decode step."""

    cache: Cache
    attention_mask: Tensor | dict[str, Tensor] | None
    """None where the model's own causal mask is right (one row, or rows of equal length)."""
    position_ids: Tensor | None


class SlotView(Cache):  # type: ignore[misc]
    """The transformers `Cache` that a forward pass writes through."""

    def __init__(self, layers: list[SlotLayer], windows: list[int | None]) -> None:
        super().__init__(layers=layers)
        self.windows = windows
        self.past = 0
        self.slot: int | None = None
        self.rows: Rows | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: SlotLayer = self.layers[layer_idx]
        if self.rows is not None:
            return layer.decode(self.rows, key_states, value_states)
        assert self.slot is not None
        return layer.prefill(self.slot, self.past, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        window = self.windows[layer_idx]
        if window is None:
            return self.past + query_length, 0
        kept = min(self.past, window - 1)
        return kept + query_length, self.past - kept

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False


class SlotCache(ABC):
    """Keys and values of up to `num_slots` sequences of one model."""

    name: ClassVar[str] = ""

    def __init__(self, model: PreTrainedModel, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.lengths = [0] * num_slots
        self.device = model.device
        self._is_eager = _attention_of(model) == "eager"
        self._mask_dtype = model.dtype
        self._is_plain = _counts_mask(model.config)
        self.windows = layer_windows(model)
        self.layers: list[SlotLayer] = [
            self.new_full_layer() if window is None else SlidingLayer(window)
            for window in self.windows
        ]
        self._view = SlotView(self.layers, self.windows)

    @abstractmethod
    def new_full_layer(self) -> SlotLayer:
        """A full-attention layer in this cache's memory."""

    @abstractmethod
    def full_bytes(self, slot: int | None) -> tuple[int, int]:
        """(committed, reserved) bytes of the full-attention layers, of one slot or all."""

    @property
    def full_bytes_per_token(self) -> int:
        """Of one token's keys and values in the full-attention layers."""
        return sum(layer.bytes_per_token for layer in self.layers if not layer.is_sliding)

    def without_room(self, num_active: int) -> dict[int, str]:
        """Which of the slots 0..num_active-1 cannot take one token more, and why.

        To be asked before `decode`, which raises where there is such a slot.
        """
        return {}

    @contextmanager
    def prefill(self, slot: int, num_tokens: int) -> Iterator[Step]:
        """Append `num_tokens` to one slot; its length grows only where the forward succeeds."""
        self._view.slot, self._view.rows = slot, None
        self._view.past = self.lengths[slot]
        yield Step(self._view, None, None)
        self.lengths[slot] += num_tokens

    @contextmanager
    def decode(self, num_active: int) -> Iterator[Step]:
        """Append one token to each of the slots 0..num_active-1."""
        rows = Rows(self.lengths[:num_active], self.device)
        self._view.rows, self._view.past = rows, rows.longest
        if rows.is_uniform:
            yield Step(self._view, None, None)
        else:
            yield Step(self._view, self._masks(rows), rows.lengths_B[:, None])
        for slot in range(num_active):
            self.lengths[slot] += 1

    def release(self, slot: int) -> None:
        """End a slot's sequence. The last active slot is moved into a hole by `move`."""
        self.lengths[slot] = 0
        used = max((s + 1 for s, length in enumerate(self.lengths) if length), default=0)
        for layer in self.layers:
            layer.truncate(used)

    @torch.inference_mode()
    def move(self, src: int, dst: int) -> None:
        """Move a sequence to a free slot."""
        for layer in self.layers:
            layer.move(src, dst, self.lengths[src])
        self.lengths[dst] = self.lengths[src]
        self.release(src)

    @torch.inference_mode()
    def freeze(self, slot: int) -> Prefix:
        """What a slot holds after its prefill, for `fork` to give to others; the slot goes on.

        Raises SequenceError where there is no memory for it; the slot goes on all the same, but for
        SlotLostError, after which it is to be released.
        """
        length = self.lengths[slot]
        return Prefix(length, [layer.snapshot(slot, length) for layer in self.layers])

    @torch.inference_mode()
    def fork(self, slot: int, prefix: Prefix) -> Sharing:
        """Fill a free slot with a prompt, as its own prefill would have, bit for bit.

        Raises SequenceError where there is no memory for it.
        """
        for layer, (key, value) in zip(self.layers, prefix.states, strict=True):
            layer.restore(slot, key, value)
        self.lengths[slot] = prefix.num_tokens
        return "copied"

    def adopt(self, prefix: Prefix) -> None:
        """Bring a prompt into memory that slots of caches like this one can share, if it is not.

        Raises SequenceError where there is no memory for it.
        """
        return

    def discard(self) -> None:
        """Give all memory back now rather than with the last reference; unusable afterwards."""
        self.layers.clear()

    def audit(self) -> tuple[int, int] | None:
        """(bytes by the books, bytes by the system) of keys and values, where both can be told.

        Of full-attention layers and prompts that are shared. May take milliseconds.
        """
        return None

    def accounts(self, slot: int | None = None) -> KVAccounts:
        """Bytes held now, for one slot or for all. O(slots), with no look at tensors.

        Used counts every sequence's tokens, also those that it shares with others; committed counts
        shared memory once, and of one slot its even share of it.
        """
        committed, reserved = self.full_bytes(slot)
        lengths = self.lengths if slot is None else [self.lengths[slot]]
        sliding = sum(
            layer.bytes_per_token * min(length, window - 1)
            for layer, window in zip(self.layers, self.windows, strict=True)
            if window is not None
            for length in lengths
        )
        return KVAccounts(
            used_bytes=self.full_bytes_per_token * sum(lengths) + sliding,
            committed_bytes=committed + sliding,
            reserved_bytes=reserved + sliding,
        )

    def _masks(self, rows: Rows) -> Tensor | dict[str, Tensor]:
        """One mask per layer type: bool for sdpa, additive for eager; [B, 1, 1, L].

        [B, L] where the model counts in it, which makes the rest of it itself.
        """
        total_B1 = (rows.lengths_B + 1)[:, None]
        masks: dict[str, Tensor] = {}
        window = next((w for w in self.windows if w is not None), None)
        if None in self.windows:
            masks[FULL] = torch.arange(rows.longest + 1, device=self.device)[None] < total_B1
        if window is not None:
            width = min(rows.longest, window - 1) + 1
            first_B1 = width - total_B1.clamp(max=window)
            masks[SLIDING] = torch.arange(width, device=self.device)[None] >= first_B1
        if self._is_plain:
            return masks[FULL]
        shaped = {kind: self._shape(mask_BL) for kind, mask_BL in masks.items()}
        # Models with one layer type take a plain tensor; only hybrid ones know the dict form.
        return next(iter(shaped.values())) if len(shaped) == 1 else shaped

    def _shape(self, mask_BL: Tensor) -> Tensor:
        mask_B11L = mask_BL[:, None, None, :]
        if not self._is_eager:
            return mask_B11L
        lowest = torch.finfo(self._mask_dtype).min
        additive = torch.zeros(mask_B11L.shape, dtype=self._mask_dtype, device=self.device)
        return additive.masked_fill_(~mask_B11L, lowest)


CacheFactory = Callable[["PreTrainedModel", int, int], SlotCache]
"""(model, number of slots, longest sequence in tokens) -> cache."""


class DynamicSlotCache(SlotCache):
    """The baseline: one right-padded tensor per layer, as long as the longest live row."""

    name = "dynamic"

    def new_full_layer(self) -> SlotLayer:
        return DynamicLayerSlots()

    def full_bytes(self, slot: int | None) -> tuple[int, int]:
        # A row is padded to the longest, so each live slot holds that much.
        live = sum(length > 0 for length in self.lengths) if slot is None else 1
        held = max(self.lengths) * live * self.full_bytes_per_token
        return held, held


class StaticSlotCache(SlotCache):
    """Slots x longest sequence, allocated at the first use and never given back."""

    name = "static"

    def new_full_layer(self) -> SlotLayer:
        return StaticLayerSlots(self.num_slots, self.max_length)

    def full_bytes(self, slot: int | None) -> tuple[int, int]:
        rows = self.num_slots if slot is None else 1
        held = self.max_length * rows * self.full_bytes_per_token
        return held, held


CACHES: dict[str, CacheFactory] = {"dynamic": DynamicSlotCache, "static": StaticSlotCache}


def cache_factory(name: str) -> CacheFactory:
    """The cache that a configuration names; InputError with the known names where there is none."""
    if name not in CACHES:
        raise InputError(
            f"there is no cache called {name!r}",
            field="cache",
            mend=f"Known caches: {', '.join(CACHES)}",
        )
    return CACHES[name]


def cache_name(factory: CacheFactory | None) -> str:
    """What a cache is called, by what makes it: `dynamic` where nothing does."""
    made = factory.func if isinstance(factory, functools.partial) else factory
    return str(getattr(made, "name", "")) if made is not None else DynamicSlotCache.name


def layer_windows(model: PreTrainedModel) -> list[int | None]:
    """Each layer's sliding window in tokens, None for full attention.

    Raises InputError for layers of other kinds (linear attention, chunked, state space), whose
    state is no keys and values per token.
    """
    return config_windows(model.config, type(model).__name__)


def config_windows(config: Any, name: str) -> list[int | None]:
    """The same by a configuration alone; `name` is what the refusal calls the model."""
    windows: list[int | None] = []
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or []
    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and "chunked_attention" not in kinds:
            windows.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            windows.append(None)
        else:
            raise InputError(
                f"{name} has layers of the kind {type(layer).__name__}, and only full and "
                "sliding-window attention can be batched in slots",
                field="model",
            )
    if len({w for w in windows if w is not None}) > 1:
        raise InputError(f"{name} has sliding windows of several sizes", field="model")
    return windows


def _counts_mask(config: Any) -> bool:
    """Whether keys' positions are counted in the mask: ALiBi as BLOOM and Falcon have it."""
    return config.model_type == "bloom" or getattr(config, "alibi", False) is True


def _attention_of(model: PreTrainedModel) -> str:
    name = str(getattr(model.config, "_attn_implementation", "eager"))
    if name not in ("sdpa", "eager"):
        raise InputError(
            f"the attention implementation {name!r} has no mask for rows of several lengths",
            field="model",
            mend="Load the model with attn_implementation='sdpa' or 'eager'",
        )
    return name
