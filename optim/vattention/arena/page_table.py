"""`PageTable`: which pages of a cache are committed.

Every tensor [B, H, L, D] of a cache is cut into stripes, runs of addresses that grow with a row's
length: one per row and head where pages are small (head-major, the layout of transformers' own
cache, bit for bit), one per row where they are coarse (token-major). A row's committed pages are
always a prefix of each of its stripes, so a count per row and tensor says it all; the first of them
may be shared with other rows (`optim.vattention.arena.shared_prefix`).

Shapes: T tensors of one kind, B rows, S stripes of a row, N spans.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch

from optim.vattention.arena.arena import Arena, Spans
from optim.vattention.arena.prefetch import Prefetch
from optim.vattention.arena.stripes import Counts, Kind, Region


class PageTable:
    """The committed pages of `num_rows` sequences of up to `max_length` tokens."""

    def __init__(self, arena: Arena, num_rows: int, max_length: int) -> None:
        self.arena = arena
        self.num_rows, self.max_length = num_rows, max_length
        self.tokens_B = np.zeros(num_rows, np.int64)
        """What was asked for: the first forward grows to it the tensors that it adds."""
        self.regions: list[Region] = []
        self._kinds: dict[tuple[int, int], Kind] = {}
        self._prefetch = Prefetch(arena)
        # Derived per row, None where pages changed since: bytes of its own, tokens with pages.
        self._row_bytes_B: list[int] | None = None
        self._room_B: list[int] | None = None

    def add(self, num_heads: int, head_dim: int, dtype: torch.dtype) -> Region:
        """Reserve one tensor's stripes. `grow` has to follow before it is written."""
        self.join()
        token_bytes = head_dim * dtype.itemsize
        stripes = num_heads
        if self.arena.is_coarse:
            token_bytes, stripes = token_bytes * num_heads, 1
        page = self.arena.page_bytes
        shape = (stripes, token_bytes)
        if shape not in self._kinds:
            self._kinds[shape] = Kind(self.num_rows, *shape, self.max_length, page)
        kind = self._kinds[shape]
        reservation = self.arena.reserve(kind.tensor_bytes)
        self._changed()
        self.regions.append(Region(kind, kind.add(reservation.address), reservation, dtype))
        return self.regions[-1]

    def grow(self, tokens_B: Sequence[int] | Counts) -> None:
        """Commit what so many tokens per row need; all or nothing, else KVMemoryError."""
        if self.has_room(tokens_B):
            self.tokens_B = np.maximum(self.tokens_B, tokens_B)
            return
        self.join()
        wanted_B = self._wanted(tokens_B)
        spans = self._growth(wanted_B)
        if len(spans.addresses_N):
            if self.arena.reads_need_memory:
                for kind in self._kinds.values():
                    self.arena.unfill(kind.take_filled(kind.pages(wanted_B) > kind.held_TB))
            self.arena.commit(spans)
            self._note_growth(wanted_B)
        self.tokens_B = np.maximum(self.tokens_B, wanted_B)

    def has_room(self, tokens_B: Sequence[int] | Counts) -> bool:
        """Whether so many tokens per row have their pages. Costs next to nothing in most steps."""
        if not self.regions:
            return False
        if self._room_B is None:
            self.join()
            self._room_B = self._room()
        return all(map(operator.ge, self._room_B, tokens_B))

    def _room(self) -> list[int]:
        room_B = np.full(self.num_rows, self.max_length)
        for kind in self._kinds.values():
            pages_B = kind.held_TB.min(axis=0)
            room_B = np.minimum(room_B, pages_B * kind.page // kind.token_bytes)
        found: list[int] = room_B.tolist()
        return found

    def _changed(self) -> None:
        self._row_bytes_B = self._room_B = None

    def grow_row(self, row: int, tokens: int) -> None:
        """`grow` for one row."""
        wanted_B = np.zeros_like(self.tokens_B)
        wanted_B[row] = tokens
        self.grow(wanted_B)

    def fill(self, num_rows: int, tokens: int) -> None:
        """Make `tokens` columns of the first rows readable, where reading needs memory."""
        if not self.arena.reads_need_memory:
            return
        self.join()
        wanted_B = np.zeros(self.num_rows, np.int64)
        wanted_B[:num_rows] = tokens
        for kind in self._kinds.values():
            pages_B = kind.pages(self._wanted(wanted_B))
            spans = kind.unreadable(pages_B)
            if len(spans.addresses_N):
                self.arena.fill(spans)
                kind.note_filled(pages_B)

    def prefetch(self, tokens_B: Sequence[int] | Counts) -> None:
        """Commit in the background what `grow` will ask for; nothing where the budget is short."""
        self.join()
        wanted_B = self._wanted(tokens_B)
        # A filled page may be read by the step under way, so it is not replaced behind its back.
        for kind in self._kinds.values():
            wanted_B = np.where((kind.filled_TB > kind.held_TB).any(axis=0), 0, wanted_B)
        spans = self._growth(wanted_B)
        if len(spans.addresses_N) and self.arena.has_room(spans.total_bytes):
            self._prefetch.start(spans, wanted_B)

    def join(self) -> None:
        """Wait for the background and enter what it did. Everything that reads the table joins."""
        if (done_B := self._prefetch.join()) is not None:
            self._note_growth(done_B)

    def shrink(self, tokens_B: Sequence[int] | Counts) -> None:
        """Release what lies beyond so many tokens per row; shared pages stay (`drop` ends them)."""
        self.join()
        kept_B = self._wanted(tokens_B)
        self._changed()
        for kind in self._kinds.values():
            self._release(kind, np.broadcast_to(kind.pages(kept_B), kind.held_TB.shape))
        self.tokens_B = np.minimum(self.tokens_B, kept_B)

    def _release(self, kind: Kind, pages_TB: Counts) -> None:
        """Release what a kind holds beyond so many pages."""
        if self.arena.reads_need_memory:
            self.arena.unfill(kind.take_filled(pages_TB < kind.held_TB))
        kept_TB = np.maximum(pages_TB, kind.shared_TB)
        self.arena.release(kind.between(kept_TB, kind.held_TB))
        np.minimum(kind.held_TB, kept_TB, out=kind.held_TB)

    def forget(self, row: int) -> int:
        """The most tokens that a row was asked room for, which now holds none."""
        tokens = int(self.tokens_B[row])
        self.tokens_B[row] = 0
        return tokens

    @torch.inference_mode()
    def move(self, src: int, dst: int, tokens: int) -> None:
        """Copy what row `src` holds of its own to row `dst`, and release it, tensor by tensor.

        Row `dst` has the same shared pages already, or none: then those are copied as well. Beyond
        the budget where need be: refusing would lose a sequence, and little is held twice.
        """
        self.join()
        self._changed()
        self.tokens_B[dst] = max(self.tokens_B[dst], tokens)
        for region in self.regions:
            kind, index = region.kind, region.index
            wanted_TB = kind.held_TB.copy()
            wanted = int(kind.pages(np.array(tokens)))
            wanted_TB[index, dst] = max(wanted, int(wanted_TB[index, dst]))
            spans = kind.between(kind.held_TB, wanted_TB)
            if len(spans.addresses_N):
                if self.arena.reads_need_memory:
                    self.arena.unfill(kind.take_filled(wanted_TB > kind.held_TB))
                self.arena.populate(spans)
                self.arena.book(spans.total_bytes)
                kind.held_TB[:] = wanted_TB
            region.copy(src, dst, int(kind.shared_TB[index, dst]) * kind.page, tokens)
            kept_TB = kind.held_TB.copy()
            kept_TB[index, src] = 0
            self._release(kind, kept_TB)

    def drop(self, region: Region) -> None:
        """Release all of one tensor; its addresses go with the last tensor that looks at them."""
        self.join()
        self._changed()
        kept_TB = region.kind.held_TB.copy()
        kept_TB[region.index] = 0
        self._release(region.kind, kept_TB)
        self.regions.remove(region)
        self.arena.forget(region.reservation)

    def excess_bytes_B(self, tokens_B: Sequence[int] | Counts) -> Counts:
        """Bytes that each row holds of its own beyond what so many tokens need."""
        self.join()
        kept_B = self._wanted(tokens_B)
        excess_B = np.zeros(self.num_rows, np.int64)
        for kind in self._kinds.values():
            kept_TB = np.maximum(kind.pages(kept_B), kind.shared_TB)
            beyond_TB = np.maximum(kind.held_TB - kept_TB, 0)
            excess_B += beyond_TB.sum(axis=0) * kind.page * kind.stripes
        return excess_B

    def most_tokens(self, tokens: int, spare_bytes: int) -> int:
        """The most tokens of a row whose pages take at most so many bytes more than `tokens` do."""
        if spare_bytes <= 0:
            return tokens
        allowed = self._row_bytes(tokens) + spare_bytes
        low, high = tokens, self.max_length
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._row_bytes(middle) <= allowed else (low, middle - 1)
        return low

    def _row_bytes(self, tokens: int) -> int:
        return sum(
            int(kind.pages(np.array(tokens))) * kind.page * kind.stripes * len(kind.bases_T)
            for kind in self._kinds.values()
        )

    def held_bytes(self, row: int | None = None) -> tuple[int, int]:
        """(committed, reserved), of one row's own pages or of the arena, what it shares too."""
        self.join()
        if row is None:
            arena = self.arena
            held = arena.committed_bytes + arena.shared_bytes + arena.pooled_bytes
            return held, arena.reserved_bytes
        if self._row_bytes_B is None:
            self._row_bytes_B = self.excess_bytes_B(np.zeros(self.num_rows, np.int64)).tolist()
        reserved = sum(k.row_bytes * len(k.bases_T) for k in self._kinds.values())
        return self._row_bytes_B[row], reserved

    def note_shared(self, row: int, pages_by_kind: dict[Kind, int]) -> None:
        """Enter that a row's first pages are shared ones, or none of them where 0."""
        self.join()
        self._changed()
        for kind, pages in pages_by_kind.items():
            kind.held_TB[:, row] = kind.shared_TB[:, row] = pages

    def clear_row(self, row: int) -> None:
        """Release all of a row, shared pages apart, and the zeros that it reads."""
        if self.arena.reads_need_memory:
            for kind in self._kinds.values():
                chosen_TB = np.zeros(kind.held_TB.shape, bool)
                chosen_TB[:, row] = True
                self.arena.unfill(kind.take_filled(chosen_TB))
        kept_B = np.full(self.num_rows, self.max_length)
        kept_B[row] = 0
        self.shrink(kept_B)

    def _wanted(self, tokens_B: Sequence[int] | Counts) -> Counts:
        return np.minimum(np.asarray(tokens_B, np.int64), self.max_length)

    def _growth(self, tokens_B: Counts) -> Spans:
        return Spans.join([k.growth(k.pages(tokens_B)) for k in self._kinds.values()])

    def _note_growth(self, tokens_B: Counts) -> None:
        self._changed()
        for kind in self._kinds.values():
            np.maximum(kind.held_TB, kind.pages(tokens_B), out=kind.held_TB)
