"""Distributions of latency, tokens and memory on the page, and KV memory over time."""

from __future__ import annotations

from typing import Any

from jobs.formatting import NOTHING, bytes_text, duration_text
from jobs.report.document import Cell, Figure, Fold, Part, Prose, Row, Section, table
from jobs.report.labels import METRIC, bytes_axis, finite, label, time_axis, value_axis
from jobs.report.render.svg_plots import Line, Spread, lines, spreads
from jobs.spec.metrics import Metric

Data = dict[str, Any]

_SHOWN = (50, 90, 95, 99)
_KEPT_OPEN = ("completion_tokens", "ttft_s", "tpot_s", "e2e_s", "kv_committed_peak_bytes")
_EXPLAINED = (
    "Boxes hold the middle 50, 90 and 98 % of values, the line is the median, the dot the mean. "
    "Errors and cold engines are left out of times. Distributions overlap where effects are real: "
    "prompts differ more than configurations do, and the pairing above takes that out."
)


def distributions(data: Data) -> Section:
    """One figure per metric, its rows the configurations in the order of the plan."""
    names = [c["configuration"] for c in data["configurations"]]
    figures = {
        metric: figure
        for metric, found in data["distributions"].items()
        if (figure := _spread(METRIC[metric], found, names)) is not None
    }
    parts: list[Part] = []
    if figures:
        parts.append(Prose(_EXPLAINED, "quiet"))
    else:
        parts.append(Prose("There are no values yet to show the spread of.", "nothing"))
    parts += [figure for metric, figure in figures.items() if metric in _KEPT_OPEN]
    others: list[Part] = [f for metric, f in figures.items() if metric not in _KEPT_OPEN]
    if others:
        parts.append(Fold("Prompt tokens and time per byte", others))
    if (figures_of_each := _each(data["configurations"])) is not None:
        parts.append(figures_of_each)
    return Section("distributions", "Latency, tokens and memory", parts)


def _spread(metric: Metric, found: dict[str, Data], names: list[str]) -> Figure | None:
    rows = [
        Spread(name, found[name]["quantiles"], found[name]["mean"])
        for name in names
        if name in found and all(finite(q) is not None for q in found[name]["quantiles"])
        and finite(found[name]["mean"]) is not None
    ]  # fmt: skip
    if not rows:
        return None
    title = label(metric.name)
    title = title[:1].upper() + title[1:]
    most = max(row.quantiles[99] for row in rows)
    svg = spreads(f"spread-{metric.name}", title, rows, value_axis(metric, most))
    numbers: list[Row] = [
        [
            Cell(row.label, "key"),
            f"{found[row.label]['n']:,}",
            metric.show(row.mean),
            *(metric.show(row.quantiles[q]) for q in _SHOWN),
        ]
        for row in rows
    ]
    columns = ("Configuration", "n", "mean", "median", *(f"p{q}" for q in _SHOWN[1:]))
    return Figure(title, svg, table(f"{title}: numbers", columns, numbers))


def _each(configurations: list[Data]) -> Part | None:
    if not any(c["rows"] for c in configurations):
        return None
    rows: list[Row] = []
    for c in configurations:
        held = c["metrics"].get("completion_bytes_per_s")
        rate = METRIC["completion_bytes_per_s"].show(held["mean"]) if held else NOTHING
        counts = [f"{c[name]:,}" for name in ("rows", "num_errors", "num_length")]
        rows.append([Cell(c["configuration"], "key"), *counts, rate])
    columns = ("Configuration", "Rows", "Errors", "Ended by the budget", "Bytes/s")
    return table("Rows of each configuration, and its throughput", columns, rows)


def memory(data: Data) -> Section:
    """Small multiples with common axes, so that configurations compare."""
    found = data["memory_over_time"]
    series: dict[str, Data] = found["series"]
    heading = "KV memory over time"
    if not series:
        nothing = "No cell has said when it ran and what memory it held, so there is no timeline."
        return Section("memory", heading, [Prose(nothing, "nothing")])
    values = [v for s in series.values() for k, vs in s.items() if k != "t_s" for v in vs]
    top = max((v for v in values if finite(v) is not None), default=0.0)
    end = max(t for s in series.values() for t in s["t_s"])
    names = [c["configuration"] for c in data["configurations"] if c["configuration"] in series]
    when = "All cells began at one time, so each has one point."
    if found["span_s"] > 0:
        when = (
            f"Cells by when they began, in steps of {duration_text(found['bin_s'])} over "
            f"{duration_text(found['span_s'])}."
        )
    held = (
        "Held is physical memory, in use is live tokens times bytes per token; both axes are the "
        "same in all panels."
    )
    parts: list[Part] = [Prose(f"{when} {held}", "quiet")]
    figures: list[Part] = [
        _panel(i, name, series[name], (end, top)) for i, name in enumerate(names)
    ]
    parts += figures[:4]
    if figures[4:]:
        parts.append(Fold("The other configurations", figures[4:]))
    return Section("memory", heading, parts)


_LINES = (
    ("held-peak", "committed_peak", "held, peak of cells"),
    ("held", "committed_mean", "held, mean over time"),
    ("used", "used_mean", "in use, mean over time"),
)


def _panel(place: int, name: str, series: Data, tops: tuple[float, float]) -> Figure:
    drawn = [
        Line(style, series["t_s"], [finite(v) for v in series[key]], meaning)
        for style, key, meaning in _LINES
        if any(finite(v) is not None for v in series[key])
    ]
    axes = (time_axis(tops[0], "since the trial began"), bytes_axis(tops[1]))
    svg = lines(f"memory-{place}", name, drawn, tops, axes)
    rows: list[Row] = []
    for line in drawn:
        known = [y for y in line.ys if y is not None]
        shown = (sum(known) / len(known), max(known))
        rows.append([Cell(line.label, "key"), *(bytes_text(value) for value in shown)])
    numbers = table(f"{name}: KV memory", ("Series", "mean of steps", "greatest"), rows)
    return Figure(name, svg, numbers)
