"""What has to be known of how full batches were before a trial's throughput is understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from cluster.plan import Plan
from jobs.analysis.guards.load import Load, LoadPair, load_pair
from jobs.formatting import plural

LOW = 0.75
"""Share of occupied slots below which it is said."""
APART = 0.05
"""Difference of two shares above which it is said."""
_MOST_NAMES = 4


def load_notes(
    connection: duckdb.DuckDBPyConnection, plan: Plan, found: Mapping[str, Load]
) -> list[str]:
    """One line where slots stood empty, and one where the two sides of a comparison differ in it.

    `found` is what `jobs.analysis.guards.load.loads` gives.
    """
    arms = [c for c in plan.configurations if c.duplicate_of is None]
    low = {c.name: found[c.name] for c in arms if c.name in found and found[c.name].share < LOW}
    pairs = [load_pair(connection, c.name, c.vs) for c in arms if c.vs is not None]
    apart = [each for each in pairs if each and abs(each.share - each.reference) > APART]
    notes = []
    if low:
        num_slots = max(plan.configuration(name).batch_size for name in low)
        is_joint = plan.share_prompts != "none"
        why = _why([*low.values()], num_slots, is_joint=is_joint)
        notes.append(f"{_shares_text(low)}: {why}")
    if apart:
        notes.append(_apart_text(apart))
    unknown, known = (sum(getattr(each, name) for each in found.values())
                      for name in ("num_unknown", "num_cells"))  # fmt: skip
    if notes and unknown:
        notes[0] += (
            f" This is of {known:,} of {plural(known + unknown, 'cell')}: the others were run "
            "before it was recorded."
        )
    return notes


def _shares_text(low: Mapping[str, Load]) -> str:
    """The mean over configurations, and each one's where a line holds them."""
    ordered = sorted(low.items(), key=lambda item: item[1].share)
    if len(low) == 1:
        [(name, only)] = ordered
        return f"Slots of {name} were {_percent(only.share)} occupied on average"
    mean = sum(each.share for each in low.values()) / len(low)
    if len(low) <= _MOST_NAMES:
        own = ", ".join(f"{name} {_percent(each.share)}" for name, each in low.items())
    else:
        (least, lowest), (most, highest) = ordered[0], ordered[-1]
        own = (
            f"{len(low)} configurations, from {least} {_percent(lowest.share)} to "
            f"{most} {_percent(highest.share)}"
        )
    return f"Slots were {_percent(mean)} occupied on average ({own})"


def _why(low: Sequence[Load], num_slots: int, *, is_joint: bool) -> str:
    """`num_slots` is the largest batch size among them."""
    fewest, most = min(each.fewest for each in low), max(each.most for each in low)
    size = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    asked = f"calls of {size} completions" if is_joint else f"shards of {size} prompts"
    if most < num_slots:
        reason = f"{asked} cannot fill batches of {num_slots}"
    elif most < 2 * num_slots:
        reason = f"{asked} do not fill batches of {num_slots} twice"
    else:
        reason = f"the last of {asked} leave slots of batches of {num_slots} empty"
    return (
        f"{reason}. Larger shards fill them better: more prompts, or fewer `shards` (`optrial "
        "plan` says how many the verdicts need)."
    )


def _apart_text(apart: Sequence[LoadPair]) -> str:
    shown = [
        f"{each.configuration} {_percent(each.share)} of its slots occupied, {each.vs} "
        f"{_percent(each.reference)}"
        for each in sorted(apart, key=lambda p: -abs(p.share - p.reference))[:_MOST_NAMES]
    ]
    more = f"; and {len(apart) - len(shown)} more" if len(apart) > len(shown) else ""
    return f"Load differs, so throughput compares loads as well: {'; '.join(shown)}{more}."


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
