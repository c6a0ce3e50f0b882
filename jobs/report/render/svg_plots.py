"""The page's plots: intervals, parts of a sum, quantiles, a scatter, and memory over time.

Every row of a plot has its label above it, so that long names fit on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from jobs.report.render.svg import ROOM, WIDTH, Axis, Drawing, Scale, ems, scale

_ROW, _LINE, _LEFT, _RIGHT, _FOOT = 36, 15, 14, WIDTH - 14, 40


@dataclass(frozen=True)
class Interval:
    """One row: an estimate with bounds, where it has them."""

    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    word: str = ""
    """Shown at the right end of the label's line."""
    shape: str = "circle"
    style: str = "neutral"


def intervals(
    name: str,
    title: str,
    rows: Sequence[Interval],
    axis: Axis,
    band: tuple[float, float] | None = None,
) -> Markup:
    """A forest plot about 0; `band` is shaded (differences that do not matter)."""
    values = [v for r in rows for v in (r.estimate, r.low, r.high) if v is not None]
    # A name and its verdict that do not fit on one line get one each.
    is_tall = any(row.word and ems(row.label) + ems(row.word) + 1 > ROOM for row in rows)
    height = _ROW + (_LINE if is_tall else 0)
    bottom = len(rows) * height + 8
    described = f"{len(rows)} estimates with their 95 % intervals; the table has the numbers."
    drawing = Drawing(name, title, described, bottom + _FOOT)
    along = scale([*values, *(band or ()), 0.0], _LEFT, _RIGHT)
    if band is not None:
        drawing.box(along(band[0]), along(band[1]), 0, bottom, "band")
    drawing.x_axis(along, bottom, 0, axis)
    drawing.line(along(0), 0, along(0), bottom, "zero")
    for place, row in enumerate(rows):
        y = (place + 1) * height - 9
        drawing.text(_LEFT, y - height + 24, row.label, "label")
        if row.word:
            drawing.text(_LEFT if is_tall else _RIGHT, y - 12, row.word, "word",
                         "start" if is_tall else "end")  # fmt: skip
        if row.low is not None and row.high is not None:
            low, high = along(row.low), along(row.high)
            drawing.line(low, y, high, y, f"interval {row.style}")
            for end in (low, high):
                drawing.line(end, y - 4, end, y + 4, f"interval {row.style}")
        drawing.marker(along(row.estimate), y, row.shape, f"fill {row.style}")
    return drawing.markup()


@dataclass(frozen=True)
class Sum:
    """One row: parts that add up to a total."""

    label: str
    parts: Sequence[tuple[str, float]]
    """(class of the style sheet, value)."""
    total: float


def sums(
    name: str,
    title: str,
    rows: Sequence[Sum],
    axis: Axis,
    keys: Sequence[tuple[str, str]],
) -> Markup:
    """Bars about 0: parts of equal sign are stacked; the total is a diamond.

    `keys` are (class, meaning) for the legend above.
    """
    ends = [end for row in rows for _, start, stop in _stacked(row) for end in (start, stop)]
    top = 18 * len(keys) + 22
    bottom = top + len(rows) * _ROW + 8
    described = f"{len(rows)} sums and their parts; the table has the numbers."
    drawing = Drawing(name, title, described, bottom + _FOOT)
    for place, (style, meaning) in enumerate(keys):
        drawing.box(_LEFT, _LEFT + 22, place * 18 + 2, 12, style)
        drawing.text(_LEFT + 30, place * 18 + 12, meaning, "label")
    drawing.marker(_LEFT + 11, 18 * len(keys) + 8, "diamond", "fill total")
    drawing.text(_LEFT + 30, 18 * len(keys) + 12, "all together", "label")
    along = scale([*ends, *(row.total for row in rows), 0.0], _LEFT, _RIGHT)
    drawing.x_axis(along, bottom, top, axis)
    drawing.line(along(0), top, along(0), bottom, "zero")
    for place, row in enumerate(rows):
        y = top + place * _ROW + 27
        drawing.text(_LEFT, y - 12, row.label, "label")
        for style, start, stop in _stacked(row):
            drawing.box(along(start), along(stop), y - 6, 12, style)
        drawing.marker(along(row.total), y, "diamond", "fill total")
    return drawing.markup()


def _stacked(row: Sum) -> list[tuple[str, float, float]]:
    found, above, below = [], 0.0, 0.0
    for style, value in row.parts:
        start = above if value > 0 else below
        found.append((style, start, start + value))
        if value > 0:
            above += value
        else:
            below += value
    return found


@dataclass(frozen=True)
class Spread:
    """One row: 101 quantiles of a configuration's values, 0 to 100 %."""

    label: str
    quantiles: Sequence[float]
    mean: float


_NESTED = ((1, 99, 4, "spread0"), (5, 95, 9, "spread1"), (25, 75, 14, "spread2"))


def spreads(name: str, title: str, rows: Sequence[Spread], axis: Axis) -> Markup:
    """Nested boxes of the middle 98, 90 and 50 % of values, the median, and the mean (a dot)."""
    ends = [v for row in rows for v in (row.quantiles[1], row.quantiles[99], row.mean)]
    bottom = len(rows) * _ROW + 8
    described = (
        f"{len(rows)} distributions: boxes hold the middle 50, 90 and 98 % of values, a line is "
        "the median, a dot the mean; the table has the numbers."
    )
    drawing = Drawing(name, title, described, bottom + _FOOT)
    # From zero, unless the values lie far from it.
    from_zero = bool(ends) and min(ends) >= 0 and min(ends) < 0.5 * max(ends)
    along = scale(ends, _LEFT, _RIGHT, zero=from_zero)
    drawing.x_axis(along, bottom, 0, axis)
    for place, row in enumerate(rows):
        y = place * _ROW + 27
        drawing.text(_LEFT, y - 12, row.label, "label")
        for low, high, height, style in _NESTED:
            x1, x2 = along(row.quantiles[low]), along(row.quantiles[high])
            drawing.box(x1, max(x2, x1 + 0.5), y - height / 2, height, style)
        middle = along(row.quantiles[50])
        drawing.line(middle, y - 8, middle, y + 8, "median")
        drawing.marker(along(row.mean), y, "circle", "mean", 2.5)
    return drawing.markup()


@dataclass(frozen=True)
class Point:
    """One configuration in a scatter, by its number in the legend."""

    number: int
    x: float
    y: float
    size: float
    """0 to 1: the area of the ring around it."""
    shape: str
    style: str
    is_on_front: bool


def scatter(name: str, title: str, points: Sequence[Point], axes: tuple[Axis, Axis]) -> Markup:
    """Numbered points with rings sized by a third quantity; those off the front are hollow."""
    left, bottom = 54, 300
    described = (
        f"{len(points)} configurations by {axes[0].label} and {axes[1].label}; "
        "numbers as in the table."
    )
    drawing = Drawing(name, title, described, bottom + _FOOT)
    x = scale([p.x for p in points], left + 24, _RIGHT - 24)
    y = scale([p.y for p in points], bottom - 26, 42)
    drawing.text(4, 14, f"↑ {axes[1].label}", "axis")
    drawing.x_axis(x, bottom, 24, axes[0])
    drawing.y_axis(y, left, _RIGHT, axes[1])
    for point in points:
        radius = 7 + 16 * max(point.size, 0.0) ** 0.5
        drawing.marker(x(point.x), y(point.y), "circle", f"ring {point.style}", round(radius, 2))
    for point in points:
        kind = "fill" if point.is_on_front else "hollow"
        drawing.marker(x(point.x), y(point.y), point.shape, f"{kind} {point.style}")
    taken: list[tuple[float, float]] = []
    for point in points:
        place = _free(x(point.x), y(point.y), taken)
        taken.append(place)
        drawing.text(*place, str(point.number), "number")
    return drawing.markup()


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Beside a point, where no other number stands yet."""
    around = [(7, -5), (7, 13), (-16, -5), (-16, 13), (9, 4), (-18, 4), (-4, -10), (-4, 20)]
    for dx, dy in around:
        if all(abs(x + dx - a) > 14 or abs(y + dy - b) > 11 for a, b in taken):
            return x + dx, y + dy
    return x + around[0][0], y + around[0][1]


@dataclass(frozen=True)
class Line:
    style: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    label: str = field(default="")


def lines(
    name: str,
    title: str,
    drawn: Sequence[Line],
    tops: tuple[float, float],
    axes: tuple[Axis, Axis],
) -> Markup:
    """Lines over time from 0; `tops` are the ends of both axes, so that panels compare."""
    left, bottom, top = 62, 150, 12 + 18 * len(drawn)
    height = bottom + 18 * len(drawn)
    described = f"{len(drawn)} lines over time; the table has their means and peaks."
    drawing = Drawing(name, title, described, height + _FOOT)
    x, y = Scale(0, tops[0] or 1, left, _RIGHT), Scale(0, tops[1] * 1.05 or 1, height, top)
    drawing.x_axis(x, height, top, axes[0])
    drawing.y_axis(y, left, _RIGHT, axes[1])
    for place, line in enumerate(drawn):
        drawing.line(left, 10 + place * 18, left + 26, 10 + place * 18, f"line {line.style}")
        drawing.text(left + 34, 14 + place * 18, line.label, "label")
        points = [(x(a), y(b)) for a, b in zip(line.xs, line.ys, strict=True) if b is not None]
        if len(points) == 1:
            drawing.marker(*points[0], "circle", f"fill {line.style}", 3)
        drawing.path(points, f"line {line.style}")
    return drawing.markup()
