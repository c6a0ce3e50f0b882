"""Where the tokens of a tensor lie: stripes, and how many pages of each are there.

Shapes: T tensors of one kind, B rows, S stripes of a row, N spans, E elements of a stripe.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optim.vattention.arena.arena import Reservation, Spans

Counts = NDArray[np.int64]


class Kind:
    """Tensors of one shape: where their stripes lie, and the pages that each stripe has.

    Of a stripe's pages the first `shared` are somebody else's memory, the next up to `held` its
    own, the next up to `filled` zeros that can only be read.
    """

    def __init__(self, rows: int, stripes: int, token_bytes: int, length: int, page: int) -> None:
        self.page = page
        self.stripes = stripes
        self.token_bytes = token_bytes  # of one token in one stripe
        self.stripe_bytes = -(-token_bytes * length // page) * page
        self.row_bytes = stripes * self.stripe_bytes
        self.tensor_bytes = rows * self.row_bytes
        self.bases_T = np.empty(0, np.int64)
        self.held_TB = np.empty((0, rows), np.int64)
        self.shared_TB = np.empty((0, rows), np.int64)
        self.filled_TB = np.empty((0, rows), np.int64)

    def add(self, address: int) -> int:
        """Enter a tensor; its index."""
        self.bases_T = np.append(self.bases_T, address)
        empty = np.zeros((1, self.rows), np.int64)
        self.held_TB = np.vstack([self.held_TB, empty])
        self.shared_TB = np.vstack([self.shared_TB, empty])
        self.filled_TB = np.vstack([self.filled_TB, empty])
        return len(self.bases_T) - 1

    @property
    def rows(self) -> int:
        return int(self.held_TB.shape[1])

    def pages(self, tokens_B: Counts) -> Counts:
        """Pages per stripe that hold so many tokens."""
        return -(-tokens_B * self.token_bytes // self.page)

    def between(self, first_TB: Counts, last_TB: Counts) -> Spans:
        """The page ranges first..last of every stripe, where last is greater."""
        tensor_N, row_N = np.nonzero(last_TB > first_TB)
        first_N, last_N = first_TB[tensor_N, row_N], last_TB[tensor_N, row_N]
        start_N = self.bases_T[tensor_N] + row_N * self.row_bytes + first_N * self.page
        start_NS = start_N[:, None] + np.arange(self.stripes) * self.stripe_bytes
        size_NS = np.broadcast_to(((last_N - first_N) * self.page)[:, None], start_NS.shape)
        return Spans(start_NS.reshape(-1), size_NS.reshape(-1))

    def growth(self, pages_B: Counts) -> Spans:
        """What has to be committed for so many pages per row."""
        return self.between(self.held_TB, np.broadcast_to(pages_B, self.held_TB.shape))

    # --- zeros for reading ---------------------------------------------------------------------

    def unreadable(self, pages_B: Counts) -> Spans:
        """What has to be filled for so many pages of each row to be readable."""
        first_TB = np.maximum(self.held_TB, self.filled_TB)
        return self.between(first_TB, np.broadcast_to(pages_B, first_TB.shape))

    def note_filled(self, pages_B: Counts) -> None:
        """Enter that so many pages are readable."""
        wanted_TB = np.broadcast_to(pages_B, self.held_TB.shape)
        self.filled_TB = np.maximum(
            self.filled_TB, np.where(wanted_TB > self.held_TB, wanted_TB, 0)
        )

    def take_filled(self, chosen_TB: NDArray[np.bool_]) -> Spans:
        """All filled pages of the chosen rows; entered as filled no more."""
        spans = self.between(self.held_TB, np.where(chosen_TB, self.filled_TB, 0))
        self.filled_TB = np.where(chosen_TB, 0, self.filled_TB)
        return spans


class Region:
    """One tensor's place in the table."""

    def __init__(
        self, kind: Kind, index: int, reservation: Reservation, dtype: torch.dtype
    ) -> None:
        self.kind, self.index = kind, index
        self.reservation = reservation
        with torch.inference_mode(False):  # else it could not be written outside inference mode
            flat = reservation.tensor(dtype)[: kind.tensor_bytes // dtype.itemsize]
            self.stripes_BSE = flat.view(kind.rows, kind.stripes, -1)

    def tensor(self, num_heads: int, length: int, head_dim: int) -> Tensor:
        """[B, H, L, D] over the whole reservation; only committed columns may be written."""
        return tokens_of(self.stripes_BSE, num_heads, length, head_dim)

    def clear(self, row: int, first: int, last: int) -> None:
        """Zero the tokens first..last of a row, as far as they are committed."""
        size = self.stripes_BSE.element_size()
        end = min(last * self.kind.token_bytes, self.held_pages(row) * self.kind.page)
        self.stripes_BSE[row, :, first * self.kind.token_bytes // size : end // size].zero_()

    def copy(self, src: int, dst: int, first_byte: int, tokens: int) -> None:
        """Copy each stripe of a row from a byte on, up to so many tokens."""
        size = self.stripes_BSE.element_size()
        part = slice(first_byte // size, tokens * self.kind.token_bytes // size)
        self.stripes_BSE[dst, :, part] = self.stripes_BSE[src, :, part]

    def held_pages(self, row: int) -> int:
        return int(self.kind.held_TB[self.index, row])


def tokens_of(stripes_BSE: Tensor, num_heads: int, length: int, head_dim: int) -> Tensor:
    """[B, H, L, D] over stripes, which hold one head each, or all of them token by token."""
    rows, stripes, _ = stripes_BSE.shape
    strides = (stripes_BSE.stride(0), stripes_BSE.stride(1), head_dim, 1)
    if stripes != num_heads:
        strides = (stripes_BSE.stride(0), head_dim, num_heads * head_dim, 1)
    with torch.inference_mode(False):
        return stripes_BSE.as_strided((rows, num_heads, length, head_dim), strides)
