"""What `optrial plan` prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.forecasting.filling import Unfilled
from jobs.forecasting.forecast import Forecast, Visible
from jobs.formatting import bytes_text, duration_text, plural
from jobs.spec.metrics import BY_NAME


def print_forecast(found: Forecast, out: Console) -> None:
    """Costs, then the smallest effect that each comparison can see."""
    out.print(
        Text(
            f"{plural(found.num_cells, 'cell')}, {plural(found.num_rows, 'completion')}: "
            f"{plural(found.num_configurations, 'configuration')} (repeats included) x "
            f"{plural(found.num_prompts, 'prompt')} x {plural(found.num_seeds, 'seed')}."
        )
    )
    for each in found.unfilled:
        out.print(Text(unfilled_text(each), style="yellow"))
    if found.device_s is None:
        out.print("Without a pilot, nothing is known of time, storage and spread.")
        return
    out.print(
        Text(
            f"About {clock_text(found.device_s)} of device time, {clock_text(found.elapsed_s)} on "
            f"the workers asked for, and {bytes_text(found.storage_bytes)} of results; "
            f"from a pilot of {plural(found.pilot_rows, 'completion')}."
        )
    )
    out.print(_table(found))
    out.print(
        Text(
            "Of one answer alone, before the adjustment for all of them. Spreads of so short a "
            "pilot are rough: take the figures as orders of magnitude.",
            style="dim",
        )
    )


def unfilled_text(found: Unfilled) -> str:
    """How many slots stay empty, and the shards or prompts that would fill them."""
    is_even = found.num_prompts % found.shards == 0
    size = plural(found.shard_prompts, "prompt")
    if not is_even:
        size = f"{found.shard_prompts} or {plural(found.shard_prompts + 1, 'prompt')}"
    text = (
        f"Shards of {', '.join(found.datasets)} hold {size}, "
        f"fewer than twice the batch of {found.batch_size}: {_empty_text(found.empty_share)}. "
    )
    mends = [f"`shards: {found.mended_shards}`"] if found.mended_shards != found.shards else []
    if found.mended_prompts != found.num_prompts:
        mends.insert(0, f"`limit: {found.mended_prompts}` (now {found.num_prompts})")
    return (
        f"{text}{' with '.join(mends)} would fill them; the verdicts need "
        f"{plural(found.needed_shards, 'shard')} each."
    )


def _empty_text(share: float) -> str:
    if share < 0.005:
        return "its slots stay empty as soon as lengths differ"
    return f"about {share * 100:.0f} % of its slots stay empty"


def clock_text(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None or seconds < 120:
        return duration_text(seconds)
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def _table(found: Forecast) -> Table:
    table = Table(
        title="Smallest effect that it finds", title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for heading in ("configuration", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("smallest", "matters from"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in found.visible:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: Visible) -> tuple[str, ...]:
    metric = BY_NAME[row.metric]
    relative = metric.is_relative
    matters = f"{row.margin * 100:g} %" if relative else f"{row.margin:g}"
    if row.smallest is None:
        return row.configuration, metric.label, "–", matters, row.reason or ""
    smallest = f"{row.smallest * 100:.2g} %" if relative else f"{row.smallest:.2g}"
    note = row.reason or ("enough" if row.is_enough else "too few prompts, seeds or shards")
    return row.configuration, metric.label, smallest, matters, note
