"""What a trial is, and how far it has come, in words."""

from __future__ import annotations

from typing import Any

from jobs.wording import plural

NO_VERDICT = "There is no verdict yet: no configuration has a measured difference from a reference."


def headline(trial: dict[str, Any]) -> list[str]:
    """Model and devices, configurations, prompts and seeds, rows: of `report_data`'s trial."""
    devices = " and ".join(trial["devices"]) or "no device yet"
    return [
        f"{trial['model']} on {devices}",
        plural(trial["num_configurations"], "configuration"),
        f"{plural(trial['num_prompts'], 'prompt')} × {plural(trial['num_seeds'], 'seed')} "
        f"({', '.join(trial['datasets'])})",
        f"{plural(trial['rows'], 'row')}, {plural(trial['num_errors'], 'error')}",
    ]


def shortcomings(trial: dict[str, Any]) -> list[str]:
    """What is missing before the trial can say all that it is meant to; empty where nothing is."""
    done, planned = trial["cells_done"], trial["cells_planned"]
    lines = []
    if done < planned:
        lines.append(f"Not complete: {done:,} of {planned:,} planned cells are there.")
    if not trial["rows"]:
        lines.append("There are no rows yet.")
    elif trial["rows"] == trial["num_errors"]:
        lines.append("Every row has an error, so there is nothing to measure.")
    if trial["num_configurations"] == 1:
        lines.append("One configuration alone: there is nothing to compare it with.")
    return lines
