"""Quality against speed against memory on the page, with the probability of being on the front."""

from __future__ import annotations

from typing import Any

from jobs.formatting import plural
from jobs.report.document import Cell, Figure, Part, Prose, Section, table
from jobs.report.labels import METRIC, finite, label, probability_text, value_axis
from jobs.report.render.svg import look
from jobs.report.render.svg_plots import Point, scatter

Data = dict[str, Any]

_MISSING = {
    "bits_per_byte": "quality (no targets were scored by all configurations)",
    "e2e_s_per_byte": "speed",
    "kv_committed_peak_bytes": "memory",
}


def tradeoff(data: Data) -> Section:
    """A scatter of two objectives; rings are the third. One objective alone has no plot."""
    front = data["front"]
    heading = "Quality, speed and memory"
    if not front["points"]:
        nothing = f"There is no trade-off to show: {front['reason']}."
        return Section("trade-off", heading, [Prose(nothing, "nothing")])
    objectives: list[str] = front["objectives"]
    parts: list[Part] = [Prose(_explained(front), "quiet")]
    absent = [text for name, text in _MISSING.items() if name not in objectives]
    if absent:
        parts.append(Prose(f"Left out for want of data: {'; '.join(absent)}.", "nothing"))
    columns = ["Configuration", *(label(name) for name in objectives), "On the front"]
    rows = [_row(i, point, objectives) for i, point in enumerate(front["points"], 1)]
    numbers = table("Means, and the probability of being on the front", columns, rows, fold=False)
    drawable = all(finite(p[o]) is not None for p in front["points"] for o in objectives)
    if len(objectives) < 2 or not drawable:
        parts.append(numbers)
    else:
        parts.append(_figure(front, numbers))
    return Section("trade-off", heading, parts)


def _explained(front: Data) -> str:
    return (
        "Lower is better everywhere. A configuration is on the front where no other is at least as "
        "good in all and better in one; the probability is the share of 2,000 resamples of "
        f"{plural(front['num_units'], 'shard')} in which it is."
    )


def _row(number: int, point: Data, objectives: list[str]) -> list[Cell | str]:
    marked = Cell(point["configuration"], "key", symbol=str(number))
    values = [METRIC[name].show(point[name]) for name in objectives]
    kept = "front" if point["is_on_front"] else "quiet"
    note = "by the means" if point["is_on_front"] else "not by the means"
    return [marked, *values, Cell(probability_text(point["probability"]), f"num {kept}", note=note)]


def _figure(front: Data, numbers: Any) -> Figure:
    objectives = front["objectives"]
    # Quality upwards, speed along, memory as the ring; else the two that there are.
    y_name, x_name = objectives[0], objectives[1]
    ring = objectives[2] if len(objectives) > 2 else None
    most = max((p[ring] for p in front["points"]), default=0) if ring else 0
    points = []
    for i, point in enumerate(front["points"]):
        shape, colour = look(i)
        size = point[ring] / most if ring and most else 0.0
        points.append(
            Point(i + 1, point[x_name], point[y_name], size, shape, colour, point["is_on_front"])
        )
    axes = [
        value_axis(METRIC[name], max(p[name] for p in front["points"]), label(name))
        for name in (x_name, y_name)
    ]
    title = f"{axes[1].label[:1].upper()}{axes[1].label[1:]} against {axes[0].label}"
    note = "Filled markers are on the front by the means, hollow ones are not."
    if ring:
        note += f" Rings grow with {label(ring)}."
    svg = scatter("front", title, points, (axes[0], axes[1]))
    return Figure(title, svg, numbers, note, is_wide=True)
