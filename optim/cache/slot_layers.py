"""One layer's keys and values for all slots: dynamic, static, and sliding-window.

Full-attention layers are right-padded and start at column 0, so that caches differ in memory and
speed but never in arithmetic. Shapes: B active rows, H key/value heads, L columns, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SlotLayer(ABC):
    """One layer's keys and values for all slots."""

    is_sliding = False
    is_compileable = False
    bytes_per_token = 0
    """Of one token's key and value in this layer; 0 before the first update."""

    @abstractmethod
    def prefill(self, slot: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [1, H, q, D] to a slot that holds `past` tokens; return all that it attends."""

    @abstractmethod
    def decode(self, rows: Rows, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, H, 1, D], one token to each active row; return [B, H, L, D]."""

    @abstractmethod
    def snapshot(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, H, P, D] of a slot that was filled and has not been decoded yet.

        Nobody writes to them: what shares memory with the layer stays as it is.
        """

    @abstractmethod
    def restore(self, slot: int, key: Tensor, value: Tensor) -> None:
        """Fill a free slot with a copy of what `snapshot` gave, here or in another cache."""

    @abstractmethod
    def move(self, src: int, dst: int, length: int) -> None:
        """Make slot `dst` hold what `src` holds; `src` is released after."""

    @abstractmethod
    def truncate(self, num_rows: int) -> None:
        """Forget every slot from `num_rows` on."""

    def _note_sizes(self, key: Tensor, value: Tensor) -> None:
        self.bytes_per_token = (
            key.shape[1] * key.shape[3] + value.shape[1] * value.shape[3]
        ) * key.element_size()


class Rows:
    """The active rows of a decode step: their lengths, and indices made once for all layers."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths = lengths
        self.num = len(lengths)
        self.longest = max(lengths)
        self.is_uniform = min(lengths) == self.longest
        if not self.is_uniform:
            self.lengths_B = torch.tensor(lengths, device=device)
            self.index_B = torch.arange(self.num, device=device)

    def scatter(self, target: Tensor, new: Tensor) -> None:
        """Write [B, H, 1, D] into [B, H, L, D], each row at its own next column."""
        target[self.index_B, :, self.lengths_B] = new[:, :, 0]


class DynamicLayerSlots(SlotLayer):
    """Grown by concatenation to the longest live row, as transformers' `DynamicLayer`.

    A slot under prefill is kept apart until its first decode step, so that chunks of one prompt can
    alternate with steps of the others; a lone sequence is adopted without a copy.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # [rows, H, L, D]
        self.values: Tensor | None = None
        self.staged: dict[int, tuple[Tensor, Tensor]] = {}

    def prefill(self, slot: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self._note_sizes(key, value)
        if past:
            old_key, old_value = self.staged[slot]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        else:
            key, value = key.contiguous(), value.contiguous()
        self.staged[slot] = (key, value)
        return key, value

    def decode(self, rows: Rows, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.staged:
            self._merge(rows)
        assert self.keys is not None
        assert self.values is not None
        # One copy per step, the price of growing by concatenation that this cache stands for.
        self.keys = torch.cat([self.keys[: rows.num, :, : rows.longest], key], dim=2)
        self.values = torch.cat([self.values[: rows.num, :, : rows.longest], value], dim=2)
        if not rows.is_uniform:
            rows.scatter(self.keys, key)
            rows.scatter(self.values, value)
        return self.keys, self.values

    def _merge(self, rows: Rows) -> None:
        for slot in sorted(s for s in self.staged if s < rows.num):
            key, value = self.staged.pop(slot)
            self.keys = _append_row(self.keys, key, slot)
            self.values = _append_row(self.values, value, slot)

    def snapshot(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        return self.staged[slot]

    def restore(self, slot: int, key: Tensor, value: Tensor) -> None:
        self._note_sizes(key, value)
        self.staged[slot] = (key.clone(), value.clone())

    def move(self, src: int, dst: int, length: int) -> None:
        if src in self.staged:
            self.staged[dst] = self.staged.pop(src)
        elif self.keys is not None and self.values is not None:
            self.keys[dst, :, :length] = self.keys[src, :, :length]
            self.values[dst, :, :length] = self.values[src, :, :length]

    def truncate(self, num_rows: int) -> None:
        self.staged = {s: pair for s, pair in self.staged.items() if s < num_rows}
        if self.keys is not None and self.values is not None:
            rows = min(num_rows, self.keys.shape[0])
            self.keys = self.keys[:rows] if rows else None
            self.values = self.values[:rows] if rows else None


def _append_row(batch: Tensor | None, row: Tensor, slot: int) -> Tensor:
    """Put [1, H, P, D] below [slot, H, L, D], both right-padded with zeros to the longer."""
    if batch is None:
        return row
    batch = batch[:slot]
    length = max(batch.shape[2], row.shape[2])
    merged = batch.new_zeros((slot + 1, *batch.shape[1:2], length, batch.shape[3]))
    merged[:slot, :, : batch.shape[2]] = batch
    merged[slot:, :, : row.shape[2]] = row
    return merged


class StaticLayerSlots(SlotLayer):
    """Preallocated, slots x longest sequence, as transformers' `StaticLayer`, but read as views."""

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots, self.max_length = num_slots, max_length
        self.keys: Tensor | None = None  # [slots, H, longest, D]
        self.values: Tensor | None = None

    def _allocate(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self._note_sizes(key, value)
        # Zeroed, since a masked column is still multiplied, and 0 x NaN is NaN.
        self.keys, self.values = (
            x.new_zeros((self.num_slots, x.shape[1], self.max_length, x.shape[3]))
            for x in (key, value)
        )
        return self.keys, self.values

    def prefill(self, slot: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            keys, values = self._allocate(key, value)
        else:
            keys, values = self.keys, self.values
        total = past + key.shape[2]
        keys[slot, :, past:total] = key[0]
        values[slot, :, past:total] = value[0]
        return keys[slot : slot + 1, :, :total], values[slot : slot + 1, :, :total]

    def decode(self, rows: Rows, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        length = rows.longest + 1
        keys, values = self.keys[: rows.num, :, :length], self.values[: rows.num, :, :length]
        if rows.is_uniform:
            keys[:, :, -1:] = key
            values[:, :, -1:] = value
        else:
            rows.scatter(keys, key)
            rows.scatter(values, value)
        return keys, values

    def snapshot(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        keys, values = (x[slot : slot + 1, :, :length] for x in (self.keys, self.values))
        return keys.clone(), values.clone()

    def restore(self, slot: int, key: Tensor, value: Tensor) -> None:
        self.prefill(slot, 0, key, value)

    def move(self, src: int, dst: int, length: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys[dst, :, :length] = self.keys[src, :, :length]
            self.values[dst, :, :length] = self.values[src, :, :length]

    def truncate(self, num_rows: int) -> None:
        pass


class SlidingLayer(SlotLayer):
    """A sliding-window layer: each row's last window-1 tokens, right-aligned.

    Right-aligned rows append and drop in the same columns, whatever their lengths, so a step is one
    concatenation, as in transformers' `DynamicSlidingWindowLayer`.
    """

    is_sliding = True

    def __init__(self, window: int) -> None:
        self.kept = window - 1
        self.keys: Tensor | None = None  # [rows, H, min(longest, window - 1), D]
        self.values: Tensor | None = None
        self.staged: dict[int, tuple[Tensor, Tensor]] = {}

    def prefill(self, slot: int, past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self._note_sizes(key, value)
        if past:
            old_key, old_value = self.staged[slot]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        else:
            key, value = key.contiguous(), value.contiguous()
        self.staged[slot] = (self._last(key), self._last(value))
        return key, value

    def decode(self, rows: Rows, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        for slot in sorted(s for s in self.staged if s < rows.num):
            staged_key, staged_value = self.staged.pop(slot)
            self.keys = _append_right_aligned(self.keys, staged_key, slot)
            self.values = _append_right_aligned(self.values, staged_value, slot)
        assert self.keys is not None
        assert self.values is not None
        width = min(rows.longest, self.kept)
        first = self.keys.shape[2] - width
        keys = torch.cat([self.keys[: rows.num, :, first:], key], dim=2)
        values = torch.cat([self.values[: rows.num, :, first:], value], dim=2)
        self.keys, self.values = self._last(keys), self._last(values)
        return keys, values

    def _last(self, states: Tensor) -> Tensor:
        return states[:, :, max(states.shape[2] - self.kept, 0) :]

    def snapshot(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        return self.staged[slot]

    def restore(self, slot: int, key: Tensor, value: Tensor) -> None:
        self._note_sizes(key, value)
        self.staged[slot] = (key.clone(), value.clone())

    def move(self, src: int, dst: int, length: int) -> None:
        if src in self.staged:
            self.staged[dst] = self.staged.pop(src)
        elif self.keys is not None and self.values is not None:
            self.keys[dst] = self.keys[src]
            self.values[dst] = self.values[src]

    def truncate(self, num_rows: int) -> None:
        self.staged = {s: pair for s, pair in self.staged.items() if s < num_rows}
        if self.keys is not None and self.values is not None:
            rows = min(num_rows, self.keys.shape[0])
            self.keys = self.keys[:rows] if rows else None
            self.values = self.values[:rows] if rows else None


def _append_right_aligned(batch: Tensor | None, row: Tensor, slot: int) -> Tensor:
    if batch is None:
        return row
    batch = batch[:slot]
    width = max(batch.shape[2], row.shape[2])
    merged = batch.new_zeros((slot + 1, batch.shape[1], width, batch.shape[3]))
    merged[:slot, :, width - batch.shape[2] :] = batch
    merged[slot:, :, width - row.shape[2] :] = row
    return merged
