"""Claims and their answers, as a terminal shows them and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.results import Results
from jobs.claims import Checked, check_claims, read_claims
from jobs.findings import read_findings
from jobs.query import connect

_STYLES = {"supported": "green", "refuted": "red", "undecided": "yellow", "not applicable": "dim"}


def checked_claims(results: Results, path: str) -> list[Checked]:
    """The claims of a file, or `authors`, against what a trial found."""
    claims = read_claims(path)
    connection = connect(results)
    try:
        return check_claims(claims, read_findings(connection, results.plan()), connection)
    finally:
        connection.close()


def claims_data(checked: list[Checked]) -> list[dict[str, Any]]:
    return [
        {
            "claim": each.claim.name,
            "text": each.claim.text,
            "source": each.claim.source,
            "metric": each.claim.metric,
            "answer": each.answer,
            "configuration": each.configuration,
            "vs": each.vs,
            "evidence": each.evidence,
        }
        for each in checked
    ]


def print_claims(checked: list[Checked], out: Console) -> None:
    """One row per claim and comparison; a claim's own words once."""
    table = Table(
        title="Claims", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("claim", overflow="fold", ratio=3)
    table.add_column("answer", no_wrap=True)
    table.add_column("comparison", overflow="fold", ratio=3)
    table.add_column("evidence", overflow="fold", ratio=4)
    before = None
    for each in checked:
        if before not in (None, each.claim.name):
            table.add_section()
        table.add_row(
            Text(each.claim.text if each.claim.name != before else ""),
            Text(each.answer, style=_STYLES[each.answer]),
            Text(f"{each.configuration} against {each.vs}" if each.configuration else "–"),
            Text(each.evidence),
        )
        before = each.claim.name
    out.print(table)


def any_refuted(checked: list[Checked]) -> bool:
    return any(each.answer == "refuted" for each in checked)
