"""Claims and their answers, as a terminal shows them."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.wording import NOTHING

_STYLES = {"supported": "green", "refuted": "red", "undecided": "yellow", "not applicable": "dim"}


def print_claims(claims: list[dict[str, Any]], out: Console) -> None:
    """One row per claim and comparison, of `report_data`; a claim's own words once."""
    table = Table(
        title="Claims", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("claim", overflow="fold", ratio=3)
    table.add_column("answer", no_wrap=True)
    table.add_column("comparison", overflow="fold", ratio=3)
    table.add_column("evidence", overflow="fold", ratio=4)
    before = None
    for row in claims:
        if before not in (None, row["claim"]):
            table.add_section()
        table.add_row(
            Text(row["text"] if row["claim"] != before else ""),
            Text(row["answer"], style=_STYLES[row["answer"]]),
            Text(f"{row['configuration']} against {row['vs']}" if row["vs"] else NOTHING),
            Text(row["evidence"]),
        )
        before = row["claim"]
    out.print(table)


def any_refuted(claims: list[dict[str, Any]]) -> bool:
    return any(row["answer"] == "refuted" for row in claims)
