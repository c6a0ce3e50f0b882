"""Whether the measurements can be trusted, on the page: A/A pairs, their alarms, and drift."""

from __future__ import annotations

import math
from typing import Any

from jobs.formatting import p_text, percent_text, plural
from jobs.report.document import Cell, Figure, Part, Prose, Row, Section, Table, table
from jobs.report.labels import METRIC, change, finite, label, percent_tick
from jobs.report.render.svg import Axis
from jobs.report.render.svg_plots import Interval, intervals
from jobs.report.render.terminal_tables import alarm_text
from jobs.report.sections.effects import effect_of

Data = dict[str, Any]

_AXIS = Axis(percent_tick, "change where nothing was changed")


def checks(data: Data) -> Section:
    """Configurations run twice, and whether the machine changed meanwhile."""
    pairs = [c for c in data["comparisons"] if c["is_duplicate"]]
    parts: list[Part] = []
    if not pairs:
        nothing = (
            "No configuration was run twice, so nothing here shows what differences are there "
            "where nothing was changed."
        )
        parts.append(Prose(nothing, "nothing"))
    for alarm in data["alarms"]:
        withheld = "" if alarm["p"] is None else " What rests on it is withheld."
        parts.append(Prose(alarm_text(alarm) + withheld, "warning"))
    for place, pair in enumerate(pairs):
        parts += _pair(place, pair, data["alarms"])
    parts += [Prose(_rate(pair), "quiet") for pair in data["steadiness"]["false_alarms"]]
    parts += _drift(data["steadiness"])
    return Section("checks", "A/A pairs and drift", parts)


def _pair(place: int, pair: Data, alarms: list[Data]) -> list[Part]:
    name, vs = pair["configuration"], pair["vs"]
    compared, differing = pair["texts"]["compared"], pair["texts"]["differing"]
    if not compared:
        return [Prose(f"{name} repeats {vs}, and no text of both is there yet.", "nothing")]
    raised = [a for a in alarms if a["configuration"] == name]
    why, noun = pair["texts_reason"], "text"
    same = "all are the same" if not differing else f"{differing:,} differ"
    if why is not None:
        same, noun = f"none differs ({why})", "completed text"
    said = f"{name} repeats {vs}: of {plural(compared, noun)} {same}"
    if not raised and any(map(_is_tested, pair["effects"])):
        said += "; no time and no memory differs beyond chance"
    parts: list[Part] = [Prose(f"{said}.", "warning" if differing else "lede")]
    parts += [Prose(f"{line[:1].upper()}{line[1:]}.", "warning") for line in pair["warnings"]]
    figure = _figure(place, pair, {a["metric"] for a in raised})
    return [*parts, figure] if figure is not None else parts


def _is_tested(row: Data) -> bool:
    """Whether a time or memory of the pair could have raised an alarm."""
    metric = METRIC[row["metric"]]
    is_known = row["verdict_reason"] is None and (row["p"] is not None or row["is_equal"])
    return (metric.is_timed or metric.is_memory) and is_known


def _figure(place: int, pair: Data, raised: set[str]) -> Figure | None:
    rows: list[Row] = []
    drawn = []
    for metric in METRIC.values():
        effect = effect_of(pair, metric.name)
        if effect is None or not (metric.is_timed or metric.is_memory):
            continue
        word = "alarm" if metric.name in raised else ""
        shape, style = ("diamond", "worse") if word else ("circle", "neutral")
        low, high = finite(effect["low"]), finite(effect["high"])
        text = label(metric.name)
        drawn.append(Interval(text, effect["estimate"], low, high, word, shape, style))
        rows.append(
            [
                Cell(text, "key"),
                Cell(change(effect), "num", note=effect["reason"] or ""),
                p_text(effect["p"]),
                Cell(word or "no alarm", "" if word else "quiet"),
            ]
        )
    if not drawn:
        return None
    title = f"{pair['configuration']} against the same run before"
    svg = intervals(f"pair-{place}", title, drawn, _AXIS)
    columns = ("Metric", "Change, 95 % interval", "p, not adjusted", "Alarm")
    note = "An alarm is an adjusted p below 0.01 over all of these (Holm)."
    return Figure(title, svg, table(f"{title}: numbers", columns, rows), note)


def _rate(found: Data) -> str:
    rate, name = found["rate"], found["configuration"]
    if rate is None:
        return f"{name}: too few shards to say how often chance alone would look like an effect."
    return (
        f"Were the two sides of {name} named at random in every block, {rate * 100:.1f} % of "
        f"{found['num_relabellings']:,} such 95 % intervals of the time per completion would leave "
        "out 0; about 5 % should."
    )


def _drift(steadiness: Data) -> list[Part]:
    drift, place = steadiness["drift"], steadiness["place"]
    parts: list[Part] = []
    if drift is None:
        parts.append(Prose("Too few timed cells to say whether the machine drifted.", "nothing"))
    else:
        change = percent_text(math.expm1(drift["last_third"] - drift["first_third"]))
        parts.append(
            Prose(
                f"Drift: time per further token changed by {change} from the first third of the "
                f"run to the last (Kendall's rank test of no trend: p {p_text(drift['p'])}). "
                "Configurations of a block run back to back in random order, so drift meets all "
                "of them alike."
            )
        )
    if place is None:
        parts.append(Prose("Too few blocks to say whether the place in one matters.", "nothing"))
    else:
        test = "Kruskal and Wallis's test that all places are alike"
        parts.append(Prose(f"Place in the block ({test}: p {p_text(place['p'])}):"))
        parts.append(_places(place["medians"]))
    return parts


def _places(medians: Data) -> Table:
    found = sorted((int(place), log) for place, log in medians.items())
    rows: list[Row] = [
        [Cell(f"{place + 1}", "key"), percent_text(math.expm1(log))] for place, log in found
    ]
    caption = "Time per further token by place in the block, against the block's mean"
    return table(caption, ("Place", "Median"), rows, fold=False)
