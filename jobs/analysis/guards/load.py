"""How full batches were: each configuration's mean share of slots that held a sequence.

An engine refills a slot at once, so its slots are full until the queue is empty: the more prompts a
shard has for each slot, the less its last completions, which leave slots empty, weigh.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import duckdb


class Load(NamedTuple):
    """What the cells of a configuration say of its slots."""

    share: float
    """Slots that held a sequence over all that there were, summed over decode steps."""
    fewest: int
    """Completions that a call of the engine was asked for, at least."""
    most: int
    num_cells: int
    """Cells that the share is of."""
    num_unknown: int
    """Cells that were run before it was recorded."""


class LoadPair(NamedTuple):
    """The same share of two configurations, over the cells that both have it of."""

    configuration: str
    vs: str
    share: float
    reference: float


# A call's steps are those of all its cells; with its weight shared out it counts once.
_WEIGHT = "(o.num_steps / coalesce(o.joint_cells, 1))"


def loads(connection: duckdb.DuckDBPyConnection) -> dict[str, Load]:
    """By configuration; those without any cell that has a share are left out."""
    rows = connection.execute(
        f"""
        SELECT configuration,
            sum(mean_occupied_share * {_WEIGHT}) / sum({_WEIGHT}) FILTER (is_known),
            min(size) FILTER (is_known), max(size) FILTER (is_known),
            count(*) FILTER (is_known), count(*) FILTER (NOT is_known AND num_steps > 0)
        FROM (SELECT *, mean_occupied_share IS NOT NULL AS is_known,
            (stop - start) * coalesce(joint_cells, 1) AS size FROM cells
            WHERE kind = 'generations') o
        GROUP BY configuration ORDER BY configuration
        """
    ).fetchall()
    return {name: Load(*found) for name, *found in rows if found[0] is not None}


def load_pair(
    connection: duckdb.DuckDBPyConnection, configuration: str, vs: str
) -> LoadPair | None:
    """None where no cell has a share on both sides."""
    theirs = _WEIGHT.replace("o.", "r.")
    row = connection.execute(
        f"""
        SELECT sum(o.mean_occupied_share * {_WEIGHT}) / sum({_WEIGHT}),
            sum(r.mean_occupied_share * {theirs}) / sum({theirs})
        FROM cells o JOIN cells r USING (dataset, shard, seed, kind)
        WHERE o.configuration = ? AND r.configuration = ? AND kind = 'generations'
            AND o.mean_occupied_share IS NOT NULL AND r.mean_occupied_share IS NOT NULL
        """,
        [configuration, vs],
    ).fetchone()
    if row is None or row[0] is None:
        return None
    return LoadPair(configuration, vs, *row)


def slot_steps(lengths: Sequence[int], num_slots: int) -> tuple[int, int]:
    """(slots that hold a sequence, summed over decode steps; all that there are) of one call.

    `lengths` are completions in tokens, in the order of the queue. A prefill gives the first token,
    each decode step one more, and a slot is refilled before the next step (prompts prefilled
    whole).
    """
    ends = [0] * num_slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + max(0, length - 1))
    held = sum(max(0, length - 1) for length in lengths)
    return held, num_slots * max(ends)
