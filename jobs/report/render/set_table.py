"""Each data set's own effect beside the mean of them, and whether they differ: for every report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.formatting import number_text, p_text, percent_text
from jobs.spec.metrics import BY_NAME

HEADING = "By data set"
_MOST_SETS = 4
"""Data sets that have a column each; of more the least and the largest effect are shown."""


def set_columns(data: dict[str, Any]) -> list[str]:
    """The columns of `set_rows`; empty where no effect is of several data sets."""
    names = _names(data["verdicts"])
    if not names:
        return []
    shown = names if len(names) <= _MOST_SETS else ["least", "largest"]
    return ["configuration", "metric", *shown, "p that all are alike"]


def set_rows(data: dict[str, Any]) -> list[list[str]]:
    """One row per primary verdict that is of several data sets and of something that differs."""
    names = _names(data["verdicts"])
    rows = []
    for row in data["verdicts"]:
        if not row["by_set"] or row["identical"]:
            continue
        effects = row["by_set"]
        chosen = [effects.get(name) for name in names]
        if len(names) > _MOST_SETS:
            least, most = (pick(effects, key=effects.__getitem__) for pick in (min, max))
            cells = [f"{_shown(row, effects[name])} ({name})" for name in (least, most)]
        else:
            cells = ["–" if value is None else _shown(row, value) for value in chosen]
        label = BY_NAME[row["metric"]].label.removeprefix("· ")
        rows.append([row["configuration"], label, *cells, p_text(row["interaction_p"])])
    return rows


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["by_set"] or ()))


def _shown(row: dict[str, Any], value: float) -> str:
    if BY_NAME[row["metric"]].is_relative:
        return percent_text(value)
    return number_text(value, sign=True)
