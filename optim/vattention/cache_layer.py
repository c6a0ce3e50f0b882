"""A full-attention layer of `VAttentionCache`, and the rows that all such layers share.

All rows of a transformers cache are equally long (padding is part of them), so one length per layer
says what is committed. Shapes: B rows, H key/value heads, L tokens, D head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from optim.vattention.arena import Arena, KVMemoryError
from optim.vattention.pages import PageTable
from optim.vattention.settings import Settings
from optim.vattention.stripes import Region


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
        # Weak, since layers refer here: memory has to go with the last reference to the cache.
        self._layers: list[weakref.ref[ArenaLayer]] = []
        self._new_arena = new_arena
        self._ready = 0  # tokens that every layer has pages for

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
            self.pages = PageTable(self.arena, num_rows, max_length)
        if self.pages.num_rows != num_rows:
            raise ValueError(
                f"the cache holds {self.pages.num_rows} rows and is given {num_rows}: use "
                "batch_repeat_interleave or batch_select_indices, or reset it"
            )
        return self.pages

    def make_room(self, tokens: int, *, is_new: bool) -> None:
        """Commit what `tokens` per row need in every layer, and begin with what comes next."""
        if tokens <= self._ready and not is_new:
            return
        pages = self._pages()
        if tokens > pages.max_length:
            self._lengthen(tokens)
            pages = self._pages()
        wanted_B = np.full(pages.num_rows, max(tokens, self._ready))
        pages.grow(wanted_B)
        self._ready = int(wanted_B[0])
        ahead = self.settings.look_ahead
        if ahead and not is_new and not pages.has_room(wanted_B + 1):
            pages.prefetch(wanted_B + ahead)

    def trim(self) -> None:
        """Release what no layer needs, beyond what may be kept."""
        if self.pages is None:
            return
        longest = max((layer.length for layer in self.layers), default=0)
        needed_B = np.full(self.pages.num_rows, longest)
        self._ready = min(self._ready, longest)
        if int(self.pages.excess_bytes_B(needed_B).sum()) > self.settings.kept_bytes:
            self.pages.shrink(needed_B)

    def select(self, index: Tensor) -> None:
        """Let row i hold what row index[i] held, for as many rows as the index has."""
        if self.pages is None:
            return
        chosen = index.tolist()
        if len(chosen) == self.pages.num_rows:
            for layer in self.layers:
                layer.take_rows(index)
        else:
            self._rebuild(chosen, self.pages.max_length)

    def release(self) -> None:
        """Give all memory back; the next tokens may come in another number of rows."""
        for layer in self.layers:
            layer.detach()
        if self.pages is not None:
            _drop_all(self.pages)
        self.pages, self._ready = None, 0

    def _pages(self) -> PageTable:
        assert self.pages is not None
        return self.pages

    def _lengthen(self, tokens: int) -> None:
        pages = self._pages()
        if self.limit is not None:
            raise KVMemoryError(
                f"the sequence has {tokens} tokens and the cache was made for {self.limit}"
            )
        self._rebuild(list(range(pages.num_rows)), max(tokens, 2 * pages.max_length))

    def _rebuild(self, chosen: list[int], max_length: int) -> None:
        """Move to ranges for other rows or lengths, layer by layer: little is held twice."""
        old = self._pages()
        new = PageTable(old.arena, len(chosen), max_length)
        try:
            for layer in self.layers:
                layer.move_to(old, new, chosen)
        except KVMemoryError:
            # Some layers have moved and some have not: there is no cache left to go on with.
            _drop_all(new)
            self.release()
            raise
        self.pages = new
        self._ready = int(new.tokens_B.max(initial=0))


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
        self._reserve(
            pages, [(x.shape[1], x.shape[3], x.dtype) for x in (key_states, value_states)]
        )
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
        elif key_states.shape[0] != self.num_rows:
            self.rows.begin(key_states.shape[0], self.max_length, self.device)
        total = self.length + key_states.shape[2]
        self.rows.make_room(total, is_new=is_new)
        assert self._whole is not None
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, self.length : total] = new
        return self._show(total)

    @property
    def num_rows(self) -> int:
        return self._whole[0].shape[0] if self._whole else 0

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._whole is not None
        key, value = (whole[:, :, :length] for whole in self._whole)
        self.keys, self.values, self.length = key, value, length
        return key, value

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

    def reset(self) -> None:
        """Forget all tokens; the memory goes when the cache releases it."""
        self.detach()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.take_rows(beam_idx)

    def take_rows(self, index: Tensor) -> None:
        """Let row i hold what row index[i] held; one tensor is held twice meanwhile."""
        if self.length and self._whole is not None:
            if len(index) != self.num_rows:
                raise ValueError("the number of rows is changed through the cache, for all layers")
            for whole in self._whole:
                held = whole[:, :, : self.length]
                held.copy_(held.index_select(0, index.to(held.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise RuntimeError("rows are repeated through the cache, for all layers at once")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise RuntimeError("rows are selected through the cache, for all layers at once")

    def offload(self) -> None:
        raise RuntimeError("a vattention cache is not offloaded: it commits only what is used")

    def prefetch(self) -> None:
        raise RuntimeError("a vattention cache is not offloaded: it commits only what is used")

    def detach(self) -> None:
        """Forget tokens and tensors."""
        self.keys = self.values = None  # type: ignore[assignment]
        self._whole = None
        self._regions, self.length, self.is_initialized = [], 0, False

    def move_to(self, old: PageTable, new: PageTable, chosen: list[int]) -> None:
        """Copy the chosen rows to another table, and give the old ones up."""
        if self._whole is None:
            return
        before, regions, length = self._whole, self._regions, self.length
        self._reserve(new, self._shapes)
        new.grow(np.full(new.num_rows, length))
        assert self._whole is not None
        for source, target in zip(before, self._whole, strict=True):
            for row, taken in enumerate(chosen):
                target[row, :, :length] = source[taken, :, :length]
        self._show(length)
        for region in regions:
            old.drop(region)
