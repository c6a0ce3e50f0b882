"""One full-attention layer of the engine's slots, in the arena."""

from __future__ import annotations

from torch import Tensor

from optim.cache.slot_layers import StaticLayerSlots
from optim.vattention.arena.page_table import PageTable
from optim.vattention.arena.stripes import Region


class ArenaLayerSlots(StaticLayerSlots):
    """Written and read like a static layer; committed as its rows grow."""

    def __init__(self, pages: PageTable) -> None:
        super().__init__(pages.num_rows, pages.max_length)
        self._pages = pages
        self.regions: list[Region] = []
        """Of the keys and of the values; none before the first prompt."""

    def allocate(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Reserve address space for tensors of these heads, head sizes and types."""
        self._note_sizes(key, value)
        self.regions = [self._pages.add(x.shape[1], x.shape[3], x.dtype) for x in (key, value)]
        self.keys, self.values = (
            region.tensor(x.shape[1], self.max_length, x.shape[3])
            for region, x in zip(self.regions, (key, value), strict=True)
        )
        return self.keys, self.values

    def _allocate(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        made = self.allocate(key, value)
        self._pages.grow(self._pages.tokens_B)
        return made

    def move(self, src: int, dst: int, length: int) -> None:
        """Nothing: the table moves all tensors at once."""

    def clear(self, slot: int, first: int, last: int) -> None:
        """Zero the tokens first..last of a slot, as far as they are committed."""
        for region in self.regions:
            region.clear(slot, first, last)
