"""Rows that cannot be run, and rows that failed: how many, why, and how many are too many."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from cluster.results.results import Results
from jobs.data.prompts import PromptRow
from jobs.formatting import plural
from jobs.queries.sql import connect
from optim.errors import InputError

_MOST_REASONS = 5


@dataclass(frozen=True)
class Allowed:
    """How many rows with an error are not too many: a number of all, or a share of each part."""

    count: int | None = None
    share: float = 0.05

    @classmethod
    def of(cls, text: str | None, share: float) -> Allowed:
        """`text` is a command's: `3` rows of the trial, or a share such as `0.1` or `10%`."""
        if text is None:
            return cls(share=share)
        number = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(\s*%)?", text.strip())
        if number is None:
            raise _not_a_limit(text)
        value, is_percent = float(number[1]), number[2] is not None
        if "." not in number[1] and not is_percent:
            return cls(count=int(value))
        value = value / 100 if is_percent else value
        if value > 1:
            raise _not_a_limit(text)
        return cls(share=value)


def _not_a_limit(text: str) -> InputError:
    return InputError(
        f"expected a number of rows or a share of them, got {text!r}",
        field="--max-row-errors",
        mend="Such as 3, 0.05 or 5%",
    )


def require_few_faults(
    rows: Sequence[PromptRow], dataset: str, source: str, allowed: float
) -> None:
    """InputError where none of a dataset's rows can be run, or more than this share cannot."""
    faults = [row.error for row in rows if row.error is not None]
    if not faults or (len(faults) <= allowed * len(rows) and len(faults) < len(rows)):
        return
    grouped = Counter(map(_reason, faults))
    commonest, num = grouped.most_common(1)[0]
    example = next(fault for fault in faults if _reason(fault) == commonest)
    all_of_them = len(faults) == len(rows)
    problem = (
        f"none of its {plural(len(rows), 'row')} can be run"
        if all_of_them
        else f"{len(faults):,} of {plural(len(rows), 'row')} cannot be run, "
        f"and {allowed * 100:g} % may"
    )
    others = "" if num == len(faults) else f" ({num:,} of them)"
    raise InputError(
        f"{problem}; {example}{others}",
        source=source,
        field=f"datasets.{dataset}",
        mend="Mend the rows" + ("" if all_of_them else ", or allow more by `max_row_errors`"),
    )


def _reason(fault: str) -> str:
    """Faults of one kind differ by the place, and by what numbers they name."""
    return re.sub(r"\d+", "#", fault)


def error_notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Why rows failed, the commonest reason first; empty where none did."""
    found = connection.execute(
        """
        SELECT count(*) AS num, arg_min(error, (dataset, prompt_id)),
            list_sort(list(DISTINCT configuration)), count(DISTINCT (dataset, prompt_id))
        FROM generations WHERE error IS NOT NULL
        GROUP BY regexp_replace(error, '[0-9]+', '#', 'g') ORDER BY num DESC, 2
        """
    ).fetchall()
    notes = []
    for num, example, names, num_prompts in found[:_MOST_REASONS]:
        where = ", ".join(names) if len(names) <= 3 else plural(len(names), "configuration")
        notes.append(
            f"{plural(num, 'row')} failed ({plural(num_prompts, 'prompt')}; {where}): {example}"
        )
    if len(found) > _MOST_REASONS:
        rest = sum(num for num, *_ in found[_MOST_REASONS:])
        notes.append(f"{plural(rest, 'row')} failed for {len(found) - _MOST_REASONS} other reasons")
    return notes


def too_many_errors(results: Results, allowed: Allowed) -> str | None:
    """What is said where more rows of the trial failed than may; over all runs of it.

    A share is of each configuration's rows.
    """
    connection = connect(results)
    try:
        counts = connection.execute(
            """
            SELECT configuration, count(error), count(*) FROM generations
            GROUP BY configuration ORDER BY 2 DESC, 1
            """
        ).fetchall()
    finally:
        connection.close()
    if allowed.count is not None:
        num = sum(errors for _, errors, _ in counts)
        if num <= allowed.count:
            return None
        return f"{plural(num, 'row')} have an error, and {allowed.count} may"
    lost = [(name, errors, rows) for name, errors, rows in counts if errors > allowed.share * rows]
    if not lost:
        return None
    name, errors, rows = lost[0]
    more = f", and {plural(len(lost) - 1, 'other configuration')} too many" if lost[1:] else ""
    return f"{name} lost {errors:,} of {rows:,} rows, and {allowed.share * 100:g} % may be{more}"
