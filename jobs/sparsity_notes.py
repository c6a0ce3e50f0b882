"""What has to be known of dropped activations before a trial's speed is understood."""

from __future__ import annotations

import duckdb

from jobs.wording import bytes_text, number_text


def sparsity_notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Per configuration that masks activations: how much was dropped, what it saved and cost."""
    rows = connection.execute(
        """
        SELECT configuration, avg(sparsity), sum(skipped_bytes), sum(completion_tokens),
            sum(select_s), sum(decode_s)
        FROM cells WHERE kind = 'generations' AND sparsity IS NOT NULL
        GROUP BY configuration ORDER BY configuration
        """
    ).fetchall()
    return [_note(*row) for row in rows]


def _note(
    name: str,
    sparsity: float,
    skipped_bytes: int | None,
    num_tokens: int,
    select_s: float | None,
    decode_s: float,
) -> str:
    text = f"{name}: {sparsity:.1%} of the weights of attention and MLP had an input of zero"
    if skipped_bytes is None:
        return f"{text}."
    if not skipped_bytes:
        text += ", but none was skipped: at this batch size dense products were used"
    else:
        each = skipped_bytes / max(1, num_tokens)
        text += f"; {bytes_text(each)} per token were not read"
    if select_s and decode_s:
        share = number_text(100 * select_s / decode_s)
        text += f"; choosing took {share} % of the time of decoding"
    return f"{text}."
