"""Numbers and verdicts as the page shows them: words with a symbol, axes, probabilities."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from jobs.formatting import (
    NOTHING,
    bytes_text,
    duration_text,
    number_text,
    percent_text,
    plural,
    relative_bounds,
)
from jobs.report.document import Cell
from jobs.report.render.svg import Axis
from jobs.report.render.terminal_tables import change_text
from jobs.spec.metrics import BY_NAME, Metric

METRIC = BY_NAME

_LOOKS = {
    "better": ("better", "✓"),
    "worse": ("worse", "✗"),
    "equivalent": ("same", "≈"),
    "exactly equal": ("same", "="),
    "mixed": ("other", "≠"),
    "inconclusive": ("open", "?"),
    "withheld": ("open", "–"),
    "higher": ("other", "↑"),
    "lower": ("other", "↓"),
}
_SHAPES = {"better": "circle", "worse": "diamond", "same": "square", "open": "cross"}


def label(metric: str) -> str:
    return METRIC[metric].label.removeprefix("· ")


def names_in(data: dict[str, Any]) -> list[str]:
    """The metrics, then the scores that some comparison has an effect of."""
    effects = (row["metric"] for c in data["comparisons"] for row in c["effects"])
    return list(dict.fromkeys([*METRIC, *effects]))


def anchor(metric: str) -> str:
    """A part of an id of the page: scores may have any character in their names."""
    if metric in METRIC:
        return metric
    return "score-" + hashlib.sha256(metric.encode()).hexdigest()[:8]


def look(word: str | None) -> tuple[str, str]:
    """The style and the symbol of a verdict."""
    return _LOOKS.get(word or "", ("other", ""))


def shape(word: str | None) -> str:
    """The marker of a verdict, so that it is not told by colour alone."""
    return _SHAPES.get(look(word)[0], "up")


def verdict_cell(word: str | None, note: str = "") -> Cell:
    style, symbol = look(word)
    return Cell(word or NOTHING, f"verdict {style}", symbol, note)


def change(row: dict[str, Any]) -> str:
    """An effect with its interval; `exactly 0` where that may be said."""
    return nothing(row, is_equal=row["is_equal"]) if row["identical"] else change_text(row)


def nothing(effect: dict[str, Any], *, is_equal: bool) -> str:
    """Of an effect whose pairs are all equal."""
    return "exactly 0" if is_equal else f"0 in {plural(effect['num_units'], 'pair')}"


def score_change(row: dict[str, Any]) -> str:
    """The difference of a row of scores from its reference, with its interval."""
    found = row["difference"]
    if found["identical"]:
        return nothing(found, is_equal=row["is_equal"])
    return relative_bounds(found["estimate"], found["low"], found["high"], relative=False)


def share_text(share: float | None) -> str:
    """A part of a whole, in percent without a sign for what it adds."""
    if share is None or not math.isfinite(share):
        return NOTHING
    percent = round(share * 100)
    return f"{percent} %".replace("-", "−")


def probability_text(probability: float | None) -> str:
    """Resamples are too few to tell 1 from nearly 1."""
    if probability is None or not math.isfinite(probability):
        return NOTHING
    if probability >= 0.995:
        return "> 99 %"
    return "< 1 %" if probability < 0.005 else f"{probability * 100:.0f} %"


def contrast_text(contrast: dict[str, Any], *, relative: bool) -> str:
    """A contrast or a Shapley value, from its scale (logs of ratios) to what people read."""
    values = [contrast[name] for name in ("estimate", "low", "high")]
    shown = [natural(value, relative=relative) for value in values]
    if is_nothing(contrast["estimate"]):
        return "0"
    return relative_bounds(*shown, relative=relative)


def is_nothing(estimate: float | None) -> bool:
    """Whether a sum of logs is 0 but for rounding."""
    return estimate is not None and abs(estimate) < 1e-12


def natural(value: float | None, *, relative: bool) -> float | None:
    """From the log of a ratio to a fraction."""
    return math.expm1(value) if relative and value is not None else value


def finite(value: float | None) -> float | None:
    """None for what cannot be drawn."""
    return value if value is not None and math.isfinite(value) else None


def change_axis(metric: Metric, text: str) -> Axis:
    """Of a metric's differences."""
    return Axis(percent_tick if metric.is_relative else unit_tick, text)


def log_axis(text: str) -> Axis:
    """Of logs of ratios, which are added up."""
    return Axis(lambda log: percent_tick(round(math.expm1(log), 9)), text, is_log=True)


def value_axis(metric: Metric, most: float, text: str = "") -> Axis:
    """Of a metric's own values, up to `most`."""
    if metric.show is duration_text:
        return time_axis(most, text)
    return bytes_axis(most, text) if metric.show is bytes_text else Axis(_plain_tick, text)


def time_axis(most_s: float, text: str = "") -> Axis:
    return _axis_in((("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)), most_s, text)


def bytes_axis(most: float, text: str = "") -> Axis:
    return _axis_in((("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)), most, text)


def _axis_in(units: tuple[tuple[str, float], ...], most: float, text: str) -> Axis:
    """In the greatest unit that `most` has one of, else the last."""
    name, size = next((unit for unit in units if abs(most) >= unit[1]), units[-1])
    return Axis(lambda value: f"{_plain_tick(value / size)} {name}" if value else "0", text, size)


def _plain_tick(value: float) -> str:
    return f"{value:,.6g}"


def percent_tick(fraction: float) -> str:
    return f"{round(fraction * 100, 6):+,.6g} %".replace("-", "−") if fraction else "0"


def unit_tick(value: float) -> str:
    return f"{value:+,.6g}".replace("-", "−") if value else "0"


def estimate_text(metric: Metric, value: float | None) -> str:
    """A difference without its interval."""
    return percent_text(value) if metric.is_relative else number_text(value, sign=True)
