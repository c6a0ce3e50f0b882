"""What has to be known of a trial's memory before its figures are believed."""

from __future__ import annotations

import duckdb

from jobs.formatting import bytes_text, plural


def memory_notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Prompts that were shared, sequences that were begun again, books that do not agree."""
    row = connection.execute(
        """
        SELECT count(*) FILTER (prefill_shared IS NOT NULL),
            count(*) FILTER (prefill_shared = 'copied'), count(*) FILTER (num_preemptions > 0),
            count(*)
        FROM generations WHERE error IS NULL
        """
    ).fetchone()
    shared, copied, preempted, total = row or (0, 0, 0, 0)
    notes = []
    if shared:
        notes.append(
            f"Prompts were shared: {shared:,} of {plural(total, 'row')} got a prompt that another "
            f"had prefilled ({copied:,} by copying it). Their time to first token is that of the "
            "fork."
        )
    if preempted:
        notes.append(
            f"KV memory was short: {plural(preempted, 'row')} had to be begun again, which the "
            "times include."
        )
    return notes + _audit_notes(connection)


def _audit_notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        """
        SELECT configuration, count(*), max(abs(kv_system_bytes - kv_books_bytes))
        FROM cells WHERE kv_system_bytes <> kv_books_bytes GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    return [
        f"KV memory of {name} cannot be trusted: in {plural(count, 'cell')} the system counts "
        f"other bytes than the cache, by up to {bytes_text(most)}."
        for name, count, most in rows
    ]
