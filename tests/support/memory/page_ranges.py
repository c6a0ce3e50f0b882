"""Pages of a reservation, counted from its start."""

from __future__ import annotations

import numpy as np

from optim.vattention.arena.arena import Reservation, Spans


def page_ranges(reservation: Reservation, page_bytes: int, *ranges: tuple[int, int]) -> Spans:
    """Spans of (first page, number of pages)."""
    return Spans(
        np.array([reservation.address + first * page_bytes for first, _ in ranges], np.int64),
        np.array([count * page_bytes for _, count in ranges], np.int64),
    )
