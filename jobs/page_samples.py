"""A handful of prompts with what every configuration wrote, and where texts part."""

from __future__ import annotations

from typing import Any

import duckdb

from cluster.plan import Plan
from jobs.token_account import first_difference

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
