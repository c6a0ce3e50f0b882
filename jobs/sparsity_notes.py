"""What has to be known of dropped activations before a trial's speed is understood."""

from __future__ import annotations

import duckdb

from jobs.wording import number_text


def sparsity_notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Per configuration that masks activations: how much was dropped, what it saved and cost."""
    rows = connection.execute(
        """
        SELECT configuration, avg(sparsity), sum(skipped_bytes) / nullif(sum(layer_bytes), 0),
            sum(select_s) / nullif(sum(wall_s), 0)
        FROM cells WHERE kind = 'generations' AND sparsity IS NOT NULL
        GROUP BY configuration ORDER BY configuration
        """
    ).fetchall()
    return [_note(*row) for row in rows]


def _note(name: str, sparsity: float, skipped: float | None, choosing: float | None) -> str:
    text = f"{name}: {sparsity:.1%} of the weights of attention and MLP had an input of zero"
    if skipped is None:
        return f"{text}."
    if skipped:
        text += f", {skipped:.1%} of their bytes were not read"
    else:
        text += ", but all of them were read: at this batch size dense products were used"
    if choosing:
        text += f"; choosing took {number_text(100 * choosing)} % of the time"
    return f"{text}."
