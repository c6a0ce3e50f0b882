"""Whether the machine held still while a trial ran: drift, place in the block, false alarms.

Every block runs all configurations in a random order, so that neither a drift nor a place favours
one; both are shown because they widen intervals, and because a large one says that the machine was
not alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np

from cluster.plan import Plan
from jobs.formatting import percent_text
from jobs.stats.drift import OrderEffect, Trend, false_alarm_rate, order_effect, trend

LEVEL = 0.01
"""p below which a drift or an effect of place is mentioned."""
NUM_RELABELLINGS = 200


@dataclass(frozen=True)
class FalseAlarms:
    """Of the 95 % interval of time per completion, were the A/A pair's sides named at random."""

    configuration: str
    rate: float | None
    num_relabellings: int
    """Those that gave an interval."""


@dataclass(frozen=True)
class Steadiness:
    drift: Trend | None
    """Of the log of time per further token, less its configuration's mean, over the cells in the
    order in which they began."""
    place: OrderEffect | None
    """Of the same, less its block's mean too, over the place in the block."""
    false_alarms: tuple[FalseAlarms, ...]


def steadiness(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Steadiness:
    """What the connection's views show; None where there are too few cells to tell."""
    rows = connection.execute(_CELLS).fetchall()
    logs = np.array([math.log(row[-1]) for row in rows])
    own = _less_mean(logs, [row[0] for row in rows])
    within = _less_mean(own, [row[1] for row in rows])
    pairs = [(c.name, c.duplicate_of) for c in plan.configurations if c.duplicate_of is not None]
    return Steadiness(
        drift=trend(own, np.arange(len(own), dtype=np.float64)),
        place=order_effect(within, [row[2] for row in rows]),
        false_alarms=tuple(_false_alarms(connection, name, of) for name, of in pairs),
    )


def steadiness_data(found: Steadiness) -> dict[str, Any]:
    """Plain numbers, as JSON takes them."""
    place = found.place
    return {
        "drift": None if found.drift is None else found.drift._asdict(),
        "place": None if place is None else {"p": place.p, "medians": place.medians},
        "false_alarms": [asdict(each) for each in found.false_alarms],
    }


def steadiness_notes(found: Steadiness) -> Iterator[str]:
    """What a reader should know: drift and places only where they show, the alarm rate always."""
    if found.drift is not None and found.drift.p < LEVEL:
        change = percent_text(math.expm1(found.drift.last_third - found.drift.first_third))
        yield (
            f"The machine drifted: from the first to the last third of the run, time per further "
            f"token changed by {change} in every configuration together. Their order was drawn "
            "anew in each block, so it favours none."
        )
    if found.place is not None and found.place.p < LEVEL:
        medians = found.place.medians
        slowest = max(medians, key=lambda place: medians[place])
        yield (
            f"Place in the block matters: number {slowest + 1} took "
            f"{percent_text(math.expm1(medians[slowest]))} of the block's mean. The order was "
            "drawn anew in each block, so it favours none."
        )
    for each in found.false_alarms:
        if each.rate is not None:
            yield (
                f"False alarms: had the two sides of {each.configuration} been named at random in "
                f"every block, {each.rate * 100:.1f} % of {each.num_relabellings} such namings "
                "would have shown a difference in time (5 % are expected)."
            )


def _less_mean(values: Any, groups: list[Any]) -> Any:
    _, places = np.unique(np.array([repr(group) for group in groups]), return_inverse=True)
    if not len(places):
        return values
    return values - (np.bincount(places, values) / np.bincount(places))[places]


def _false_alarms(
    connection: duckdb.DuckDBPyConnection, configuration: str, duplicate_of: str
) -> FalseAlarms:
    rows = connection.execute(_PAIR, [configuration, duplicate_of]).fetchall()
    rate, used = false_alarm_rate(
        [row[3] for row in rows],
        [row[4] for row in rows],
        [tuple(row[:3]) for row in rows],
        NUM_RELABELLINGS,
        clusters=[tuple(row[:2]) for row in rows],
    )
    return FalseAlarms(configuration, rate, used)


_CELLS = """
    SELECT c.configuration, [c.dataset, c.shard::VARCHAR, c.seed::VARCHAR], c.order_in_block,
        avg(g.tpot_s)
    FROM cells c JOIN generations g ON g.cell = c.key
    WHERE c.kind = 'generations' AND c.num_errors = 0 AND g.tpot_s > 0
        AND NOT coalesce(g.warmup, false) AND c.started_at IS NOT NULL
    GROUP BY c.key, c.configuration, c.dataset, c.shard, c.seed, c.order_in_block, c.started_at
    ORDER BY c.started_at, c.key
"""
_PAIR = """
    SELECT o.dataset, o.shard, o.seed, sum(o.e2e_s), sum(r.e2e_s)
    FROM generations o JOIN generations r USING (dataset, prompt_id, seed)
    WHERE o.configuration = ? AND r.configuration = ? AND o.e2e_s IS NOT NULL
        AND r.e2e_s IS NOT NULL AND NOT coalesce(o.warmup, false)
        AND NOT coalesce(r.warmup, false)
    GROUP BY ALL ORDER BY ALL
"""
