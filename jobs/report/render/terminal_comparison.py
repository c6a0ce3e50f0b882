"""What `optrial compare` prints: tokens in, out and in total, time, memory, verdicts, and why."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.results.results import Results
from jobs.analysis.comparison import MAIN_STATISTICS
from jobs.report.explain import explain_results
from jobs.report.render.terminal import print_paragraphs
from jobs.report.render.terminal_tables import STYLES, change_text, verdict_notes, verdict_phrase
from jobs.report.report_data import report_data
from jobs.spec.metrics import BY_NAME

SHOWN = (
    "prompt_tokens", "completion_tokens", "total_tokens", "tokens_per_base_token",
    "base_completion_tokens", "e2e_s", "e2e_s_per_byte", "kv_committed_peak_bytes",
    "bits_per_byte",
)  # fmt: skip


def print_comparison(results: Results, out: Console) -> None:
    """The table, the notes and the explanation of a trial of two configurations."""
    data = report_data(results)
    comparisons = [c for c in data["comparisons"] if not c["is_duplicate"]]
    for comparison in comparisons:
        out.print(_table(comparison))
        for line in (*verdict_notes(data), *data["notes"]):
            out.print(Text(line, style="dim"))
    if data["trial"]["rows"]:
        print_paragraphs(explain_results(results, None, "completion_tokens"), out)
    out.print()
    out.print(Text(f"All of it: optrial report {results.output}", style="dim"))


def _table(comparison: dict[str, Any]) -> Table:
    table = Table(
        title="Means over prompts and seeds", title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("", min_width=22, max_width=24)
    table.add_column(comparison["vs"], justify="right", no_wrap=True)
    table.add_column(comparison["configuration"], justify="right", no_wrap=True)
    table.add_column("change, 95 % interval", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    rows = {
        row["metric"]: row
        for row in comparison["effects"]
        if row["statistic"] in MAIN_STATISTICS and row["estimate"] is not None
    }
    for name in SHOWN:
        if name not in rows:
            continue
        row, metric = rows[name], BY_NAME[name]
        verdict = Text(verdict_phrase(row), style=STYLES.get(row["verdict"], ""))
        values = [metric.show(row[side]) for side in ("reference_mean", "mean")]
        table.add_row(metric.label, *values, Text(change_text(row)), verdict)
    return table
