"""A full-attention layer of `VAttentionCache`, and the rows that all such layers share.

All rows of a transformers cache are equally long (padding is part of them), so one length per layer
says what is committed. Shapes: B rows, H key/value heads, L tokens, D head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from optim.vattention.arena.arena import Arena, KVMemoryError
from optim.vattention.arena.page_table import PageTable
from optim.vattention.arena.stripes import Region
from optim.vattention.settings import Settings


class Rows:
    """The pages of all layers: committed for every layer at once, by the first that needs them."""

    def __init__(
        self, new_arena: Callable[[torch.device], Arena], settings: Settings, limit: int | None
    ) -> None:
        self.settings = settings
        self.limit = limit
        """Tokens that a row may hold; None where its range is moved to a larger one at need."""
        self.arena: Arena | None = None
        self.pages: PageTable | None = None
        self.others: list[Any] = []
        """Transformers' own layers, which hold the same sequences: they are reset with the rest."""
        # Weak, since layers refer here: memory has to go with the last reference to the cache.
        self._layers: list[weakref.ref[ArenaLayer]] = []
        self._new_arena = new_arena
        self._device: torch.device | None = None
        self._ready = 0  # tokens that every layer has pages for; fewer where that is unknown

    @property
    def layers(self) -> list[ArenaLayer]:
        return [layer for found in self._layers if (layer := found()) is not None]

    def join(self, layer: ArenaLayer) -> None:
        """Count a layer among those that are committed together."""
        self._layers.append(weakref.ref(layer))

    def begin(self, num_rows: int, max_length: int, device: torch.device) -> PageTable:
        """The table, made with the first layer's first tokens."""
        if self.pages is None:
            if self.arena is None:
                self.arena = self._new_arena(device)
            self._device = device
            self.pages = PageTable(self.arena, num_rows, max_length)
        self.check(num_rows)
        if device != self._device:
            raise ValueError(f"the cache is on {self._device} and is given tensors on {device}")
        self._ready = 0  # nothing is committed for the layer that comes
        return self.pages

    def check(self, num_rows: int) -> None:
        """ValueError where tokens come in another number of rows than there are."""
        if self._pages().num_rows != num_rows:
            raise ValueError(
                f"the cache holds {self._pages().num_rows} rows and is given {num_rows}: use "
                "batch_repeat_interleave or batch_select_indices, or reset it"
            )

    def make_room(self, tokens: int, *, is_new: bool) -> None:
        """Commit what `tokens` per row need in every layer, and begin with what comes next."""
        if tokens <= self._ready:
            return
        if tokens > self._pages().max_length:
            self._lengthen(tokens)
        pages = self._pages()
        wanted_B = np.full(pages.num_rows, tokens)
        pages.grow(wanted_B)
        self._ready = tokens
        ahead = self.settings.look_ahead
        if ahead and not is_new and not pages.has_room(wanted_B + 1):
            pages.prefetch(wanted_B + ahead)

    def trim(self) -> None:
        """Release what no layer needs, now or ahead, beyond what may be kept."""
        if self.pages is None:
            return
        longest = max((layer.length for layer in self.layers), default=0)
        self._ready = min(self._ready, longest)
        # Without the look-ahead, each crop of a rejected guess would undo what the next one needs.
        needed = longest + self.settings.look_ahead if longest else 0
        needed_B = np.full(self.pages.num_rows, needed)
        if self.pages.excess_bytes_B(needed_B).sum() > self.settings.kept_bytes:
            self.pages.shrink(needed_B)

    def select(self, index: Tensor) -> None:
        """Let row i hold what row index[i] held, for as many rows as the index has.

        Raises KVMemoryError where another number of rows does not fit; everything is then reset.
        """
        if self.pages is None:
            return
        chosen = index.tolist()
        if not chosen:
            raise ValueError("a cache keeps at least one row: reset it to forget all of them")
        if len(chosen) != self.pages.num_rows:
            self._rebuild(chosen, self.pages.max_length)
            return
        changed = [row for row, taken in enumerate(chosen) if row != taken]
        if changed:
            for layer in self.layers:
                layer.take_rows(changed, index[changed])

    def reset(self) -> None:
        """Forget everything and give all memory back; what comes next may have other rows."""
        self.forget()
        if self.pages is not None:
            _drop_all(self.pages)
            self.pages = None

    def forget(self) -> None:
        """Forget everything in every layer; the memory stays."""
        for layer in self.others:
            layer.reset()
        for layer in self.layers:
            layer.detach()
        self._ready = 0

    def _pages(self) -> PageTable:
        assert self.pages is not None
        return self.pages

    def _lengthen(self, tokens: int) -> None:
        if self.limit is not None:
            raise KVMemoryError(
                f"the sequence has {tokens} tokens and the cache was made for {self.limit}"
            )
        pages = self._pages()
        self._rebuild(list(range(pages.num_rows)), max(tokens, 2 * pages.max_length))

    def _rebuild(self, chosen: list[int], max_length: int) -> None:
        """Move to ranges for other rows or lengths, layer by layer: little is held twice."""
        old = self._pages()
        new = PageTable(old.arena, len(chosen), max_length)
        try:
            for layer in self.layers:
                layer.move_to(old, new, chosen)
        except BaseException:
            # Some layers have moved and some have not: there is no cache left to go on with.
            _drop_all(new)
            self.reset()
            raise
        self.pages = new
        self._ready = 0  # a forward that failed midway leaves layers of several lengths


def _drop_all(pages: PageTable) -> None:
    for region in list(pages.regions):
        pages.drop(region)


class ArenaLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values in the arena, head-major with base pages as in `DynamicLayer`."""

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, rows: Rows, max_length: int) -> None:
        super().__init__()
        self.rows = rows
        self.max_length = max_length
        self.length = 0
        self.bytes_per_token = 0
        self._whole: tuple[Tensor, Tensor] | None = None  # [B, H, reserved, D]
        self._regions: list[Region] = []
        rows.join(self)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        pages = self.rows.begin(key_states.shape[0], self.max_length, self.device)
        shapes = [(x.shape[1], x.shape[3], x.dtype) for x in (key_states, value_states)]
        self._reserve(pages, shapes)
        self.is_initialized = True

    def _reserve(self, pages: PageTable, shapes: list[tuple[int, int, torch.dtype]]) -> None:
        self._shapes = shapes
        self._regions = [pages.add(*shape) for shape in shapes]
        key, value = (
            region.tensor(heads, pages.max_length, size)
            for region, (heads, size, _) in zip(self._regions, shapes, strict=True)
        )
        self._whole = key, value
        self.bytes_per_token = sum(heads * size * kind.itemsize for heads, size, kind in shapes)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, q, D]; all keys and values [B, H, L, D], as views.

        What was returned before stays valid until rows are reordered, cropped, reset or moved.
        Raises KVMemoryError where there is no memory, RuntimeError for tensors that need gradients.
        """
        if key_states.requires_grad or value_states.requires_grad:
            raise RuntimeError(
                "a vattention cache is written in place and keeps no gradients: call the model "
                "under torch.no_grad() or torch.inference_mode()"
            )
        is_new = not self.is_initialized
        if is_new:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[2]
        total = self.length + count
        self.rows.make_room(total, is_new=is_new)
        assert self._whole is not None
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            target = whole.narrow(2, self.length, count)
            # A copy would repeat and round what does not fit.
            if target.shape != new.shape or target.dtype is not new.dtype:
                self._refuse(target, new)
            target.copy_(new)
        return self._show(total)

    def _refuse(self, target: Tensor, new: Tensor) -> None:
        self.rows.check(new.shape[0])
        raise ValueError(
            f"the cache takes {target.dtype} of shape {list(target.shape)} here and is given "
            f"{new.dtype} of shape {list(new.shape)}"
        )

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._whole is not None
        key, value = self._whole
        self.keys, self.values = key.narrow(2, 0, length), value.narrow(2, 0, length)
        self.length = length
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1 if self.rows.limit is None else self.rows.limit

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens; the pages go when the cache trims them. As `DynamicLayer.crop`."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop` takes the number of tokens to remove as a negative, got {tokens_to_remove}"
            )
        if self.is_initialized:
            self._show(max(self.length + tokens_to_remove, 0))

    def take_rows(self, changed: list[int], index: Tensor) -> None:
        """Let the changed rows hold what the rows of the index held."""
        if self.length and self._whole is not None:
            for whole in self._whole:
                held = whole.narrow(2, 0, self.length)
                taken = held.index_select(0, index.to(held.device))
                for place, row in enumerate(changed):
                    held[row] = taken[place]

    def _refuse_alone(self, *args: object) -> None:
        raise RuntimeError(
            "the layers of a vattention cache have their memory in common: reset it and change its "
            "rows through the cache"
        )

    reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse_alone

    def offload(self) -> None:
        raise RuntimeError("a vattention cache is not offloaded: it commits only what is used")

    prefetch = offload

    def detach(self) -> None:
        """Forget tokens and tensors."""
        self.keys = self.values = None  # type: ignore[assignment]
        self._whole = None
        self._regions, self.length, self.is_initialized = [], 0, False

    def move_to(self, old: PageTable, new: PageTable, chosen: list[int]) -> None:
        """Copy the chosen rows to another table, and give the old ones up."""
        before, regions, length = self._whole, self._regions, self.length
        if before is None:
            return
        self._reserve(new, self._shapes)
        new.grow(np.full(new.num_rows, length))
        assert self._whole is not None
        for source, target in zip(before, self._whole, strict=True):
            for row, taken in enumerate(chosen):
                target[row, :, :length] = source[taken, :, :length]
        self._show(length)
        for region in regions:
            old.drop(region)
