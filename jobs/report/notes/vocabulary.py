"""What has to be known of another vocabulary before a trial's tokens are understood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from cluster.plan import Plan
from jobs.formatting import percent_text


def vocabulary_notes(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[str]:
    """Per vocabulary: what it saves on its domain and costs on others, and on each dataset here."""
    rows = connection.execute(
        """
        SELECT configuration, max(num_new_tokens), max(domain_saving), max(off_domain_inflation)
        FROM cells WHERE num_new_tokens IS NOT NULL GROUP BY configuration ORDER BY configuration
        """
    ).fetchall()
    # Configurations of one artifact say the same; the first of them, in the plan's order, says it.
    order = [configuration.name for configuration in plan.configurations]
    first: dict[tuple[Any, ...], str] = {}
    for name, *facts in sorted(rows, key=lambda row: order.index(row[0])):
        first.setdefault(tuple(facts), name)
    return [_note(connection, name, *facts) for facts, name in first.items()]


def _note(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    num_new: int,
    saving: float,
    inflation: float | None = None,
) -> str:
    text = f"The vocabulary of {name} has {num_new:,} new tokens: {percent_text(-saving)} tokens "
    text += "on text of its domain that was held out when it was prepared"
    if inflation is not None:
        text += f", {percent_text(inflation)} on protected text of other domains"
    found = connection.execute(
        """
        SELECT dataset, sum(prompt_tokens) / sum(base_prompt_tokens) - 1 FROM generations
        WHERE configuration = ? AND error IS NULL GROUP BY dataset ORDER BY dataset
        """,
        [name],
    ).fetchall()
    return f"{text}; on the prompts here {_listed(found)}."


def _listed(found: Sequence[tuple[str, float | None]]) -> str:
    return ", ".join(f"{dataset} {percent_text(change)}" for dataset, change in found)
