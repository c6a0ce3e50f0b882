"""All that the HTML page shows, as JSON-serialisable numbers and texts of bounded size.

DuckDB reduces rows to quantiles, bins, cluster totals and a few samples, so that neither memory in
Python nor the page grows with rows: both grow with configurations, datasets and shards.
"""

from __future__ import annotations

from typing import Any

import duckdb

from cluster.plan import Plan
from cluster.results.results import Results
from jobs.analysis.token_split import first_difference
from jobs.queries.distributions import distributions, memory_over_time
from jobs.queries.sql import connect
from jobs.report.report_data import report_data
from jobs.report.tradeoff import front

NUM_SAMPLES = 6
MOST_CHARS = 1500


def samples(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[dict[str, Any]]:
    """Prompts spread over the datasets, those whose texts differ first; the choice is fixed.

    Of the plan's first seed that has rows. Texts are clipped to `MOST_CHARS`; `differs_at` counts
    code points before the first difference from the reference (None where there is none, or no
    reference's text), `num_chars` those of the whole text.
    """
    seeds = {
        seed for (seed,) in connection.execute("SELECT DISTINCT seed FROM generations").fetchall()
    }
    seed = next((seed for seed in plan.seeds if seed in seeds), None)
    if seed is None:
        return []
    return [_sample(connection, plan, *place, seed) for place in _places(connection, seed)]


def _places(connection: duckdb.DuckDBPyConnection, seed: int) -> list[tuple[str, str]]:
    # Hashes, so that no text is kept while prompts are chosen among millions.
    return connection.execute(
        f"""
        WITH texts AS (
            SELECT dataset, prompt_id,
                min(hash(completion_text)) <> max(hash(completion_text)) AS differ
            FROM generations WHERE seed = ? AND error IS NULL GROUP BY ALL),
        ranked AS (
            SELECT dataset, prompt_id, row_number() OVER (PARTITION BY dataset
                ORDER BY differ DESC, hash(prompt_id), prompt_id) AS place FROM texts)
        SELECT dataset, prompt_id FROM ranked ORDER BY place, dataset LIMIT {NUM_SAMPLES}
        """,
        [seed],
    ).fetchall()


def _sample(
    connection: duckdb.DuckDBPyConnection, plan: Plan, dataset: str, prompt_id: str, seed: int
) -> dict[str, Any]:
    where = [dataset, prompt_id]
    prompt = connection.execute(
        "SELECT prompt, target FROM prompts WHERE dataset = ? AND prompt_id = ?", where
    ).fetchone() or (None, None)
    rows = connection.execute(
        "SELECT configuration, completion_text, completion_tokens, finish_reason, error "
        "FROM generations WHERE dataset = ? AND prompt_id = ? AND seed = ?",
        [*where, seed],
    ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    return {
        "dataset": dataset,
        "prompt_id": prompt_id,
        "seed": seed,
        "prompt": _clipped(prompt[0]),
        "target": _clipped(prompt[1]),
        "texts": [
            _text(c.name, found[c.name], found.get(c.vs or ""), c.vs)
            for c in plan.configurations
            if c.name in found
        ],
    }


def _text(
    name: str, row: tuple[Any, ...], reference: tuple[Any, ...] | None, vs: str | None
) -> dict[str, Any]:
    text, num_tokens, finish_reason, error = row
    theirs = reference[0] if reference else None
    differs = text is not None and theirs is not None and text != theirs
    return {
        "configuration": name,
        "vs": vs,
        "text": _clipped(text),
        "num_chars": None if text is None else len(text),
        "num_tokens": num_tokens,
        "finish_reason": finish_reason,
        "error": _clipped(error),
        "differs_at": first_difference(text, theirs or "") if differs else None,
        "is_compared": text is not None and theirs is not None,
    }


def _clipped(text: str | None) -> str | None:
    return None if text is None else text[:MOST_CHARS]


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
