"""`SharedRow`: the keys and values of one prompt, which rows of several caches can map.

The full pages of its stripes are mapped; the page where the prompt ends is copied, since each row
goes on writing there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optim.vattention.arena.arena import Spans
from optim.vattention.arena.page_table import PageTable
from optim.vattention.arena.stripes import Counts, Kind, Region, tokens_of


@dataclass(frozen=True)
class _Place:
    """Where one tensor's stripes lie in the shared memory."""

    offset: int
    stripes: int
    token_bytes: int
    dtype: torch.dtype
    stripe_bytes: int


class SharedRow:
    """A prompt's row of each tensor of a table, in shared memory.

    Raises KVMemoryError where there is no memory for it.
    """

    def __init__(self, pages: PageTable, tokens: int) -> None:
        pages.join()  # what the background commits counts against the budget
        self.tokens = tokens
        self.page = pages.arena.page_bytes
        self._places: list[_Place] = []
        total = 0
        for region in pages.regions:
            kind = region.kind
            stripe = int(kind.pages(np.array(tokens))) * self.page
            self._places.append(
                _Place(total, kind.stripes, kind.token_bytes, region.stripes_BSE.dtype, stripe)
            )
            total += stripe * kind.stripes
        self.memory = pages.arena.new_shared(total)

    @property
    def num_bytes(self) -> int:
        return self.memory.num_bytes

    @property
    def is_mapped(self) -> bool:
        return self.memory.num_mappings > 0

    def close(self) -> None:
        """Give the memory back as soon as no row maps it. Nobody may look at its tensors."""
        self.memory.close()

    def fits(self, pages: PageTable) -> bool:
        """Whether rows of that table are laid out like this one."""
        theirs = [
            (r.kind.page, r.kind.stripes, r.kind.token_bytes, r.stripes_BSE.dtype)
            for r in pages.regions
        ]
        own = [(self.page, p.stripes, p.token_bytes, p.dtype) for p in self._places]
        return theirs == own

    def tensor(self, index: int, num_heads: int, head_dim: int) -> Tensor:
        """[1, H, P, D] of the table's tensor `index`."""
        return tokens_of(self._stripes(index), num_heads, self.tokens, head_dim)

    def _stripes(self, index: int) -> Tensor:
        place = self._places[index]
        size = place.dtype.itemsize
        with torch.inference_mode(False):
            flat = self.memory.tensor(place.dtype)
            first, length = place.offset // size, place.stripe_bytes * place.stripes // size
            return flat[first : first + length].view(1, place.stripes, -1)

    @torch.inference_mode()
    def fill_from(self, pages: PageTable, row: int) -> None:
        """Copy a row of a table in."""
        for index, region in enumerate(pages.regions):
            end = self._end(index)
            self._stripes(index)[0, :, :end] = region.stripes_BSE[row, :, :end]

    def _end(self, index: int) -> int:
        """Elements of a stripe that hold tokens."""
        place = self._places[index]
        return self.tokens * place.token_bytes // place.dtype.itemsize

    def attach(self, pages: PageTable, row: int) -> bool:
        """Give an empty row of a table the prompt; False where it had to be copied whole.

        Raises KVMemoryError where there is no memory for what is copied; the row is empty then.
        """
        is_mapped = self.map(pages, row)
        try:
            pages.grow_row(row, self.tokens)
        except BaseException:
            if is_mapped:
                self.unmap(pages, row)
            raise
        self._copy_rest(pages, row)
        return is_mapped

    def map(self, pages: PageTable, row: int) -> bool:
        """Map the full pages into an empty row. False where there is none, or no mapping left."""
        full = self._full_pages(pages.regions)
        if not any(full.values()):
            return False
        offsets_N, spans = self._spans(pages.regions, row)
        if not pages.arena.map_shared(self.memory, offsets_N, spans):
            return False
        pages.note_shared(row, full)
        return True

    def unmap(self, pages: PageTable, row: int) -> None:
        """Undo `map`, with all that the row holds of its own."""
        pages.clear_row(row)
        pages.arena.unmap_shared(self.memory, self._spans(pages.regions, row)[1])
        pages.note_shared(row, dict.fromkeys(self._full_pages(pages.regions), 0))

    def _full_pages(self, regions: list[Region]) -> dict[Kind, int]:
        return {r.kind: self.tokens * r.kind.token_bytes // self.page for r in regions}

    def _spans(self, regions: list[Region], row: int) -> tuple[Counts, Spans]:
        offsets, starts, sizes = [], [], []
        for place, region in zip(self._places, regions, strict=True):
            kind = region.kind
            size = self.tokens * kind.token_bytes // self.page * self.page
            if size:
                stripe_S = np.arange(kind.stripes)
                offsets.append(place.offset + stripe_S * place.stripe_bytes)
                first = kind.bases_T[region.index] + row * kind.row_bytes
                starts.append(first + stripe_S * kind.stripe_bytes)
                sizes.append(np.full(kind.stripes, size))
        return np.concatenate(offsets), Spans(np.concatenate(starts), np.concatenate(sizes))

    @torch.inference_mode()
    def _copy_rest(self, pages: PageTable, row: int) -> None:
        for index, region in enumerate(pages.regions):
            kind, end = region.kind, self._end(index)
            mapped = int(kind.shared_TB[region.index, row]) * self.page
            first = mapped // region.stripes_BSE.element_size()
            region.stripes_BSE[row, :, first:end] = self._stripes(index)[0, :, first:end]
