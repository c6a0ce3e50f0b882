"""Quality against speed against memory: each configuration's place, and how sure its front is."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np

from cluster.plan import Plan
from jobs.queries.complete_cases import aligned
from jobs.spec.metrics import METRICS
from jobs.stats.pareto import dominated, front_probabilities

QUALITY = "bits_per_byte"
OBJECTIVES = (QUALITY, "e2e_s_per_byte", "kv_committed_peak_bytes")
"""All of them are better where they are lower."""

_NONE = (math.nan, math.nan)
_Units = dict[tuple[str, int], tuple[float, float]]
"""(dataset, shard) -> the objective's amount there, and what it is divided by."""


def front(connection: duckdb.DuckDBPyConnection, plan: Plan) -> dict[str, Any]:
    """Points and probabilities over the (dataset, shard) that all configurations completed.

    An objective without units is left out; repeats of an A/A pair are no rivals, so they are too.
    `points`: configuration, the objectives over all units (bits, seconds and bytes; a ratio is the
    ratio of totals, as everywhere),
    `probability` of being on the front (None without units), and `is_on_front` by the means.
    `reason` says why there are no points.
    """
    names = [c.name for c in plan.configurations if c.duplicate_of is None]
    found = {name: _units(connection, name, names) for name in OBJECTIVES}
    objectives = [name for name in OBJECTIVES if all(found[name].values()) and found[name]]
    places = sorted({place for name in objectives for place in found[name][names[0]]})
    if not places:
        reason = "no shard was completed by all configurations"
        return {"objectives": [], "num_units": 0, "points": [], "reason": reason}
    values = {
        configuration: np.array(
            [[found[o][configuration].get(p, _NONE) for p in places] for o in objectives]
        ).transpose(0, 2, 1)
        for configuration in names
    }
    probabilities = front_probabilities(values, seed=0)
    totals = np.stack([np.nansum(each, axis=2) for each in values.values()])
    means = totals[:, :, 0] / totals[:, :, 1]
    on_front = ~dominated(means[:, :, None])[:, 0]
    return {
        "objectives": objectives,
        "num_units": len(places),
        "points": [
            {
                "configuration": name,
                **{o: float(means[i, j]) for j, o in enumerate(objectives)},
                "probability": probabilities[name],
                "is_on_front": bool(on_front[i]),
            }
            for i, name in enumerate(names)
        ],
        "reason": None,
    }


def _units(
    connection: duckdb.DuckDBPyConnection, objective: str, names: list[str]
) -> dict[str, _Units]:
    """Of each configuration."""
    if objective == QUALITY:
        return _quality(connection, names)
    metric = next(m for m in METRICS if m.name == objective)
    totals = aligned(connection, metric, names)
    places: list[Any] = totals.clusters
    return {
        name: {
            place: (float(above), float(below))
            for place, above, below in zip(places, *totals.totals[name], strict=True)
            if below > 0 and math.isfinite(above / below)
        }
        for name in names
    }


def _quality(connection: duckdb.DuckDBPyConnection, names: list[str]) -> dict[str, _Units]:
    """Bits per byte of a shard's targets that all configurations have, and how many these are."""
    rows = connection.execute(
        """
        WITH used AS (
            SELECT dataset, prompt_id, shard, configuration, nats / ln(2) / num_bytes AS bits
            FROM likelihoods WHERE configuration IN (SELECT unnest($names)) AND candidate = -1
                AND error IS NULL AND isfinite(nats) AND num_bytes > 0),
        whole AS (SELECT dataset, prompt_id FROM used GROUP BY ALL
            HAVING count(DISTINCT configuration) = len($names))
        SELECT configuration, dataset, shard, sum(bits), count(*)
        FROM used JOIN whole
            USING (dataset, prompt_id) GROUP BY ALL ORDER BY ALL
        """,
        {"names": names},
    ).fetchall()
    found: dict[str, _Units] = {name: {} for name in names}
    for configuration, dataset, shard, bits, num_targets in rows:
        found[configuration][dataset, shard] = (bits, num_targets)
    return found
