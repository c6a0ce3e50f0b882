"""Attribution on the page: main effects, interactions and Shapley shares."""

from __future__ import annotations

from typing import Any

from jobs.formatting import p_text
from jobs.report.document import Cell, Figure, Fold, Part, Prose, Row, Section, table
from jobs.report.labels import (
    METRIC,
    anchor,
    change_axis,
    contrast_text,
    finite,
    is_nothing,
    label,
    log_axis,
    natural,
    share_text,
)
from jobs.report.render.svg import NUM_COLOURS
from jobs.report.render.svg_plots import Interval, Sum, intervals, sums

Data = dict[str, Any]

_EXPLAINED = (
    "A main effect is a factor's mean change over all combinations of the others; an interaction "
    "(×) is what two or more do together beyond the product of what each does alone. Shapley "
    "values share out the whole change, from all off to all on, and add up to it."
)


def attribution(data: Data) -> Section:
    """Of every metric that could be taken apart, the primary ones first."""
    found = data["attribution"]
    parts: list[Part] = []
    if found["reason"] is not None:
        reason = found["reason"]
        parts.append(Prose(f"Nothing can be attributed: {reason}.", "nothing"))
        return Section("attribution", "What each factor does", parts)
    parts.append(Prose(_factors(found["factors"]), "lede"))
    parts.append(Prose(_EXPLAINED, "quiet"))
    if found["left_out"]:
        parts.append(Prose(f"No part of it: {', '.join(found['left_out'])}.", "quiet"))
    primary = data["judgement"]["primary"]
    usable = [m for m in found["metrics"] if m["contrasts"]]
    for metric in found["metrics"]:
        if not metric["contrasts"]:
            parts.append(Prose(f"{label(metric['metric'])}: {metric['reason']}.", "nothing"))
    parts += _shares(usable)
    parts += [_contrasts(m) for m in usable if m["metric"] in primary]
    others: list[Part] = [_contrasts(m) for m in usable if m["metric"] not in primary]
    if others:
        parts.append(Fold("The same of other metrics", others))
    return Section("attribution", "What each factor does", parts)


def _factors(factors: dict[str, list[str]]) -> str:
    listed = [f"{name} ({off} → {on})" for name, (off, on) in factors.items()]
    return f"Factors: {', '.join(listed)}."


def _contrasts(metric: Data) -> Figure:
    kind = METRIC[metric["metric"]]
    title = f"{kind.heading}: main effects and interactions"
    rows: list[Row] = []
    drawn = []
    for contrast in metric["contrasts"]:
        name = " × ".join(contrast["factors"])
        text = contrast_text(contrast, relative=metric["relative"])
        rows.append([Cell(name, "key"), text, p_text(contrast["p"])])
        bounds = [
            finite(natural(contrast[end], relative=metric["relative"]))
            for end in ("estimate", "low", "high")
        ]
        if bounds[0] is not None:
            is_shown = bounds[1] is not None and not bounds[1] <= 0 <= (bounds[2] or 0)
            style = "neutral" if is_shown else "faint"
            shape = "circle" if len(contrast["factors"]) == 1 else "cross"
            drawn.append(Interval(name, bounds[0], bounds[1], bounds[2], "", shape, style))
    svg = intervals(
        f"contrasts-{anchor(metric['metric'])}", title, drawn, change_axis(kind, "change")
    )
    columns = ("Factor", "Change, 95 % interval", "p")
    note = f"Over {metric['num_clusters']:,} independent units."
    return Figure(title, svg, table(f"{title}: numbers", columns, rows), note)


def _shares(metrics: list[Data]) -> list[Part]:
    """Ratios in one plot, as their logs add up; every other unit in its own."""
    relative = [m for m in metrics if m["relative"]]
    found: list[Part] = []
    if relative:
        found.append(
            _share_figure("shapley", "What each factor contributes (Shapley values)", relative)
        )
    for metric in metrics:
        if not metric["relative"]:
            title = f"What each factor contributes to {label(metric['metric'])}"
            found.append(_share_figure(f"shapley-{anchor(metric['metric'])}", title, [metric]))
    return found


def _share_figure(name: str, title: str, metrics: list[Data]) -> Figure:
    factors = [share["factor"] for share in metrics[0]["shares"]]
    keys = [(f"c{i % NUM_COLOURS} part", factor) for i, factor in enumerate(factors)]
    rows: list[Row] = []
    drawn = []
    for metric in metrics:
        values = [share["estimate"] for share in metric["shares"]]
        parts = [(keys[i][0], v) for i, v in enumerate(values) if not is_nothing(v)]
        drawn.append(Sum(label(metric["metric"]), parts, sum(values)))
        for share in metric["shares"]:
            text = contrast_text(share, relative=metric["relative"])
            part = "0 %" if is_nothing(share["estimate"]) else share_text(share["share"])
            row = [Cell(label(metric["metric"]), "key"), Cell(share["factor"])]
            rows.append([*row, text, part, p_text(share["p"])])
    text = "change from all off to all on"
    kind = METRIC[metrics[0]["metric"]]
    axis = log_axis(text) if kind.is_relative else change_axis(kind, text)
    svg = sums(name, title, drawn, axis, keys)
    columns = ("Metric", "Factor", "Shapley value, 95 % interval", "Share of the whole", "p")
    return Figure(title, svg, table(f"{title}: numbers", columns, rows))
