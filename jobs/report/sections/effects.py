"""The page's forest plots: every effect with its interval, and scores."""

from __future__ import annotations

from typing import Any

from jobs.analysis.comparison import MAIN_STATISTICS
from jobs.analysis.tails import TAILS
from jobs.formatting import NOTHING, number_text
from jobs.report.document import Cell, Figure, Fold, Part, Prose, Row, Section, Table, table
from jobs.report.labels import (
    METRIC,
    anchor,
    change,
    change_axis,
    finite,
    names_in,
    score_change,
    shape,
    verdict_cell,
)
from jobs.report.labels import look as verdict_look
from jobs.report.render.set_table import HEADING, set_columns, set_rows
from jobs.report.render.svg_plots import Interval, intervals
from jobs.report.sections.verdicts import exploratory

Data = dict[str, Any]

_EXPLAINED = (
    "Points are changes of totals, paired by prompt and seed; lines are 95 % intervals; the shaded "
    "band is ±δ, the differences that do not matter."
)


def effects(data: Data) -> Section:
    """A forest plot per metric, the primary ones first and the others folded."""
    primary = {*data["judgement"]["primary"], "failed_share"}
    names = names_in(data)
    shown = [f for f in (_forest(data, m) for m in names if m in primary) if f is not None]
    others = [f for f in (_forest(data, m) for m in names if m not in primary) if f is not None]
    parts: list[Part] = []
    if not shown and not others:
        nothing = "There are no effects yet: that takes rows of a configuration and its reference."
        parts.append(Prose(nothing, "nothing"))
    else:
        parts.append(Prose(_EXPLAINED, "quiet"))
    parts += shown
    if by_set := set_rows(data):
        cells: list[Row] = [[Cell(row[0], "key"), *row[1:]] for row in by_set]
        headings = [name[:1].upper() + name[1:] for name in set_columns(data)]
        parts.append(table(f"{HEADING}: each one's own change", headings, cells))
    rest: list[Part] = [each for each in (exploratory(data),) if each is not None]
    rest += others
    rest += [each for each in (_tails(data),) if each is not None]
    if rest:
        parts.append(Fold("All other metrics, exploratory", rest))
    if data["scores"]:
        parts.append(_scores(data["scores"]))
    return Section("effects", "Effects and their uncertainty", parts)


def effect_of(comparison: Data, metric: str) -> Data | None:
    """The metric's main effect, where there is an estimate."""
    for row in comparison["effects"]:
        if row["metric"] == metric and row["statistic"] in MAIN_STATISTICS:
            return row if finite(row["estimate"]) is not None else None
    return None


def forest(name: str, title: str, metric: str, rows: list[tuple[str, Data]]) -> Figure:
    """One metric's effects; rows are (label, effect)."""
    kind = METRIC[metric]
    margins = [row["margin"] for _, row in rows if row["margin"] is not None]
    band = None
    if margins:
        band = (1 / (1 + margins[0]) - 1 if kind.is_relative else -margins[0], margins[0])
    drawn = [
        Interval(
            text,
            row["estimate"],
            finite(row["low"]),
            finite(row["high"]),
            row["verdict"] or "",
            shape(row["verdict"]),
            verdict_look(row["verdict"])[0],
        )
        for text, row in rows
    ]
    axis = change_axis(kind, "change" if kind.is_relative else "difference")
    svg = intervals(name, title, drawn, axis, band)
    numbers: list[Row] = [
        [
            Cell(text, "key"),
            kind.show(row["reference_mean"]),
            kind.show(row["mean"]),
            Cell(change(row), "num", note=row["reason"] or ""),
            verdict_cell(row["verdict"]),
        ]
        for text, row in rows
    ]
    columns = ("Configuration", "Reference", "Mean", "Change, 95 % interval", "Verdict")
    return Figure(title, svg, table(f"{title}: numbers", columns, numbers))


def _forest(data: Data, metric: str) -> Figure | None:
    rows = []
    for comparison in data["comparisons"]:
        effect = None if comparison["is_duplicate"] else effect_of(comparison, metric)
        if effect is not None:
            rows.append((comparison["configuration"], effect))
    if not rows:
        return None
    return forest(f"effect-{anchor(metric)}", METRIC[metric].heading, metric, rows)


def _tails(data: Data) -> Table | None:
    """Of the slowest rows, by comparison and metric."""
    found = [
        (comparison, row)
        for comparison in data["comparisons"]
        if not comparison["is_duplicate"]
        for row in comparison["effects"]
        if row["statistic"] in TAILS and finite(row["estimate"]) is not None
    ]
    rows: list[Row] = [
        [
            Cell(comparison["configuration"], "key"),
            Cell(f"{METRIC[row['metric']].label}, {row['statistic']}"),
            METRIC[row["metric"]].show(row["reference_mean"]),
            METRIC[row["metric"]].show(row["mean"]),
            Cell(change(row), "num", note=row["reason"] or ""),
        ]
        for comparison, row in found
    ]
    columns = ("Configuration", "Quantile of rows", "Reference", "Here", "Change, 95 % interval")
    return table("The slowest 5 % and 1 % of rows", columns, rows) if rows else None


def _scores(scores: list[Data]) -> Table:
    rows: list[Row] = []
    for row in sorted(scores, key=lambda row: (row["scorer"], row["dataset"])):
        own = row["mean"]
        rows.append(
            [
                Cell(f"{row['scorer']} on {row['dataset']}", "key"),
                Cell(row["configuration"]),
                f"{own['num_units']:,}",
                number_text(own["estimate"]) if own["estimate"] is not None else NOTHING,
                score_change(row) if row["difference"] else "reference",
            ]
        )
    columns = ("Scorer", "Configuration", "Prompts", "Mean", "Difference, 95 % interval")
    return table("Scores of outputs", columns, rows)
