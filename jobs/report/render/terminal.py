"""The report that people read: did it change anything, by how much, and how sure is that?"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.results.results import Results
from jobs.analysis.comparison import MAIN_STATISTICS
from jobs.analysis.tails import TAILS
from jobs.formatting import interval_text, number_text, p_text, percent_text
from jobs.report.render.set_table import HEADING, set_columns, set_rows
from jobs.report.render.terminal_tables import (
    attribution_notes,
    attribution_table,
    verdict_notes,
    verdict_tables,
)
from jobs.report.report_data import report_data
from jobs.report.sentences import Paragraph, headline, shortcomings
from jobs.spec.metrics import BY_NAME, METRICS, Metric
from jobs.stats.permutation.effect import WRITTEN, Effect

# So that the tables of several comparisons line up below one another, within 100 columns.
_LABEL_WIDTH = max(len(metric.label) for metric in METRICS)
_NUMBER_WIDTH, _INTERVAL_WIDTH = 9, 18


def report(results: Results, console: Console) -> None:
    """Print what a trial found: verdicts, answers, differences, each configuration's figures."""
    print_report(report_data(results), console)


def print_report(data: dict[str, Any], console: Console) -> None:
    """Print what `report_data` gives."""
    _print(console, data["answer"], style="bold")
    _print(console, " · ".join(headline(data["trial"])))
    for line in shortcomings(data["trial"]):
        _print(console, line, style="yellow")
    if data["trial"]["rows"]:
        _print_verdicts(data, console)
        console.print()
        for comparison in data["comparisons"]:
            _print(console, "• " + comparison["answer"])
        _print_tables(data, console)
    for note in data["notes"]:
        _print(console, note, style="yellow")


def _print_verdicts(data: dict[str, Any], console: Console) -> None:
    if data["verdicts"]:
        console.print()
        for verdicts in verdict_tables(data):
            console.print(verdicts)
        for line in verdict_notes(data):
            _print(console, line, style="dim")
    if set_rows(data):
        console.print()
        console.print(_sets_table(data))
    table = attribution_table(data)
    if table is not None:
        console.print()
        console.print(table)
        for line in attribution_notes(data):
            _print(console, line, style="dim")


def _sets_table(data: dict[str, Any]) -> Table:
    table = _table(f"{HEADING}: each one's own change")
    for place, heading in enumerate(set_columns(data)):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for row in set_rows(data):
        table.add_row(*map(Text, row))
    return table


def _print_tables(data: dict[str, Any], console: Console) -> None:
    if data["comparisons"]:
        for comparison in data["comparisons"]:
            console.print(_effects_table(comparison))
        for line in _footnotes(data["comparisons"]):
            _print(console, line, style="dim")
    if data["scores"]:
        console.print(_scores_table(data["scores"]))
    console.print(_configurations_table(data["configurations"]))


def _print(console: Console, text: str, style: str = "") -> None:
    # As Text, so that brackets in names and intervals are not read as markup.
    console.print(Text(text, style=style), soft_wrap=False)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                 pad_edge=False)  # fmt: skip


def _effects_table(comparison: dict[str, Any]) -> Table:
    """One row per metric; geometric means and tails are left to the JSON and Parquet."""
    title = f"{comparison['configuration']} against {comparison['vs']}"
    twice = ": the same configuration twice" if comparison["is_duplicate"] else ""
    table = _table(title + twice)
    table.add_column("metric", no_wrap=True, min_width=_LABEL_WIDTH)
    for heading in ("reference", "mean", "change"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=_NUMBER_WIDTH)
    table.add_column("95 % interval", justify="right", no_wrap=True, min_width=_INTERVAL_WIDTH)
    table.add_column("", no_wrap=True)
    for row in comparison["effects"]:
        metric = BY_NAME[row["metric"]]
        is_shown = metric.is_worth_a_line(row["reference_mean"], row["mean"])
        if row["statistic"] in MAIN_STATISTICS and row["estimate"] is not None and is_shown:
            table.add_row(*_effect_cells(metric, row))
    return table


def _effect_cells(metric: Metric, row: dict[str, Any]) -> list[Text]:
    effect = _effect(row)
    relative = row["statistic"] != "mean difference"
    change = percent_text(effect.estimate) if relative else number_text(effect.estimate, sign=True)
    bounds = interval_text(effect, relative=relative, is_equal=row["is_equal"])
    if effect.reason is not None:
        bounds = "no interval"
    elif row["is_uniform"]:
        bounds = "in every unit"
    cells = (metric.show(row["reference_mean"]), metric.show(row["mean"]), change, bounds)
    note = "includes 0" if effect.includes_zero and not effect.identical else ""
    if row["verdict"] == "withheld":
        note = "withheld"
    return [Text(metric.label), *map(Text, cells), Text(note, style="dim")]


def _footnotes(comparisons: list[dict[str, Any]]) -> list[str]:
    lines = []
    rows = [
        row
        for c in comparisons
        for row in c["effects"]
        if row["estimate"] is not None and row["statistic"] not in TAILS
    ]
    for reason in sorted({row["reason"] for row in rows} - {None}):
        names = dict.fromkeys(row["metric"] for row in rows if row["reason"] == reason)
        labels = [BY_NAME[name].label for name in names]
        lines.append(f"No interval for {'; '.join(labels)}: {reason}.")
    if any(effect.includes_zero and not effect.identical for effect in map(_effect, rows)):
        lines.append("Where an interval includes 0, no difference is shown; it may still be there.")
    named = "Bits per byte, shares"
    if any(BY_NAME[row["metric"]].source == "score" for row in rows):
        named += ", scores"
    lines.append(f"Changes are of totals, paired by prompt and seed. {named}: the difference.")
    return lines


def _effect(row: dict[str, Any]) -> Effect:
    return Effect(**{name: row[name] for name in WRITTEN})


def _scores_table(scores: list[dict[str, Any]]) -> Table:
    table = _table("Scores: means over prompts, difference from the reference with 95 % interval")
    for heading in ("scorer", "dataset", "configuration"):
        table.add_column(heading, overflow="fold")
    for heading in ("prompts", "mean", "difference", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    for row in sorted(scores, key=lambda row: (row["scorer"], row["dataset"])):
        own, difference = _effect(row["mean"]), row["difference"]
        cells = [row["scorer"], row["dataset"], row["configuration"], str(own.num_units)]
        cells.append(number_text(own.estimate))
        if difference is None:
            cells += ["reference", "", ""]
        else:
            found = _effect(difference)
            cells += [
                number_text(found.estimate, sign=True),
                interval_text(found, is_equal=row["is_equal"]),
            ]
            cells.append(p_text(found.p))
        table.add_row(*map(Text, cells))
    return table


def _configurations_table(configurations: list[dict[str, Any]]) -> Table:
    """Rows grouped by metric, so that the configurations stand below one another."""
    table = _table("Each configuration")
    table.add_column("", no_wrap=True)
    for heading in ("n", "mean", "median", "p95"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(Text("rows (errors)", style="bold"))
    for row in configurations:
        counts = f"{row['rows']:,} ({row['num_errors']:,})"
        table.add_row(Text(f"  {row['configuration']}"), counts)
    for metric in METRICS:
        rows = [row for row in configurations if metric.name in row["metrics"]]
        if not metric.is_worth_a_line(*(row["metrics"][metric.name]["mean"] for row in rows)):
            continue
        if rows:
            table.add_section()
            table.add_row(Text(metric.label, style="bold"))
        for row in rows:
            values = row["metrics"][metric.name]
            shown = (metric.show(values[name]) for name in ("mean", "p50", "p95"))
            table.add_row(Text(f"  {row['configuration']}"), f"{values['n']:,}", *shown)
    return table


def print_paragraphs(paragraphs: list[Paragraph], out: Console) -> None:
    """Headings, and their lines as a list."""
    for paragraph in paragraphs:
        out.print()
        out.print(Text(paragraph.heading, style="bold"))
        for line in paragraph.lines:
            # Indented as a whole, so that what wraps stands below its line.
            out.print(Padding(Text(line), (0, 0, 0, 2)))
