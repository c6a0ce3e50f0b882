"""What has to be known of dropped activations before a trial's speed is understood."""

from __future__ import annotations

import duckdb


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
    share = f"{sparsity * 100:.1f} %"
    text = f"{name}: {share} of the weights of attention and MLP had an input of zero"
    if skipped is None:
        return f"{text}."
    if skipped:
        text += f", {skipped * 100:.1f} % of their bytes were not read"
    else:
        text += ", but all of them were read: at this batch size dense products were used"
    if choosing:
        text += f"; choosing took {100 * choosing:.1f} % of the time"
    return f"{text}."
