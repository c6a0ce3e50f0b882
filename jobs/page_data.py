"""All that the HTML page shows, as JSON-serialisable numbers and texts of bounded size.

DuckDB reduces rows to quantiles, bins, cluster totals and a few samples, so that neither memory in
Python nor the page grows with rows: both grow with configurations, datasets and shards.
"""

from __future__ import annotations

from typing import Any

import duckdb

from cluster.plan import Plan
from cluster.results import Results
from jobs.page_front import front
from jobs.page_quantiles import distributions, memory_over_time
from jobs.page_samples import samples
from jobs.query import connect
from jobs.report_data import report_data

_MOST_ERRORS = 10
_ERROR_CHARS = 300


def page_data(results: Results, report: dict[str, Any] | None = None) -> dict[str, Any]:
    """`report_data`, and beside it: distributions, memory_over_time, front, samples,
    provenance.

    Times are in seconds, memory in bytes, relative effects fractions. `report` is `report_data`
    where that was read already.
    """
    data = dict(report_data(results) if report is None else report)
    plan = results.plan()
    connection = connect(results)
    try:
        data["distributions"] = distributions(connection)
        data["memory_over_time"] = memory_over_time(connection)
        data["front"] = front(connection, plan)
        data["samples"] = samples(connection, plan)
        data["provenance"] = _provenance(connection, results.manifest(), plan, data["trial"])
    finally:
        connection.close()
    return data


def _provenance(
    connection: duckdb.DuckDBPyConnection,
    manifest: dict[str, Any],
    plan: Plan,
    trial: dict[str, Any],
) -> dict[str, Any]:
    """What the manifest says of how the results came to be."""
    return {
        "run_id": plan.run_id,
        "created_at": manifest.get("created_at"),
        "versions": manifest.get("versions") or {},
        "python": manifest.get("python"),
        "platform": manifest.get("platform"),
        "hardware": manifest.get("hardware") or {},
        "git": manifest.get("git") or {},
        "model": plan.model.model_dump(mode="json"),
        "datasets": [dataset.model_dump(mode="json") for dataset in plan.datasets],
        "configurations": [c.model_dump(mode="json") for c in plan.configurations],
        "seeds": list(plan.seeds),
        "generation": plan.generation.identity(),
        "share_prompts": plan.share_prompts,
        "weight_order": plan.weight_order,
        "analysis": plan.analysis,
        "cells_done": trial["cells_done"],
        "cells_planned": trial["cells_planned"],
        "errors": _errors(connection),
    }


def _errors(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The commonest messages, of completions and targets together."""
    rows = connection.execute(
        f"""
        SELECT left(error, {_ERROR_CHARS}) AS message, count(*) AS num_rows,
            count(DISTINCT configuration)
        FROM (SELECT configuration, error FROM generations UNION ALL
            SELECT configuration, error FROM likelihoods)
        WHERE error IS NOT NULL GROUP BY message ORDER BY num_rows DESC, message
        LIMIT {_MOST_ERRORS}
        """
    ).fetchall()
    return [
        {"message": message, "num_rows": count, "num_configurations": configurations}
        for message, count, configurations in rows
    ]
