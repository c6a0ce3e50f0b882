"""`optrial report --markdown`: the report as text that forges and editors render."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.analysis.comparison import MAIN_STATISTICS
from jobs.analysis.tails import TAILS
from jobs.formatting import NOTHING, number_text, p_text
from jobs.report.labels import (
    METRIC,
    change,
    contrast_text,
    is_nothing,
    label,
    score_change,
    share_text,
)
from jobs.report.render.report_file import write_whole
from jobs.report.render.set_table import HEADING, set_columns, set_rows
from jobs.report.render.terminal_tables import margin_text, verdict_notes, verdict_phrase
from jobs.report.sentences import NO_VERDICT, headline, shortcomings
from jobs.spec.metrics import METRICS

Data = dict[str, Any]


def write_markdown(data: Data, path: str | os.PathLike[str]) -> None:
    """Write it, whole or not at all. InputError where `path` cannot be written."""
    write_whole(markdown(data), Path(path))


def markdown(data: Data) -> str:
    """Verdicts, answers, attribution, effects, configurations and notes of `report_data`."""
    parts = [f"# Trial of {_plain(data['trial']['model'])}", _facts(data["trial"])]
    for heading, made in (
        ("Verdicts", _verdicts(data)),
        ("Claims", _claims(data.get("claims", []))),
        ("Answers", _answers(data)),
        ("What each factor does", _attribution(data)),
        ("Effects", _effects(data)),
        (HEADING, _sets(data)),
        ("Scores", _scores(data["scores"])),
        ("Each configuration", _configurations(data["configurations"])),
        ("Notes", _bullets(data["notes"])),
    ):
        found = list(made)
        if found:
            parts += [f"## {heading}", *found]
    return "\n\n".join(parts) + "\n"


def _facts(trial: Data) -> str:
    return " · ".join(map(_plain, [*headline(trial), f"run {trial['run_id']}"]))


def _verdicts(data: Data) -> Iterator[str]:
    yield from _bullets(shortcomings(data["trial"]))
    if not data["verdicts"]:
        yield NO_VERDICT
        return
    rows = [
        [
            row["configuration"],
            row["vs"],
            label(row["metric"]),
            change(row),
            verdict_phrase(row),
            f"±{margin_text(row)}",
            p_text(row["p_adjusted"]),
        ]
        for row in data["verdicts"]
    ]
    columns = ("configuration", "against", "metric", "change, 95 % interval", "verdict", "δ", "p")
    yield _table(columns, rows, words=(0, 1, 2, 4))
    yield from _bullets(verdict_notes(data))


def _claims(claims: Sequence[Data]) -> Iterator[str]:
    if claims:
        rows = [
            [
                each["text"],
                each["answer"],
                f"{each['configuration']} against {each['vs']}" if each["vs"] else NOTHING,
                each["evidence"],
            ]
            for each in claims
        ]
        yield _table(("claim", "answer", "comparison", "evidence"), rows, words=(0, 1, 2, 3))


def _answers(data: Data) -> Iterator[str]:
    yield _plain(data["answer"])
    yield from _bullets(comparison["answer"] for comparison in data["comparisons"])


def _attribution(data: Data) -> Iterator[str]:
    found = data["attribution"]
    if found["reason"] is not None:
        yield _plain(f"Nothing can be attributed: {found['reason']}.")
        return
    factors = [f"{name} ({off} → {on})" for name, (off, on) in found["factors"].items()]
    yield _plain(f"Factors: {', '.join(factors)}. Main effects, interactions (×), and what is due "
                 "to each factor of the change from all off to all on (Shapley).")  # fmt: skip
    rows = []
    for metric in found["metrics"]:
        name, relative = label(metric["metric"]), metric["relative"]
        if not metric["contrasts"]:
            rows.append([name, NOTHING, metric["reason"] or NOTHING, NOTHING, NOTHING])
        for contrast in metric["contrasts"]:
            text = contrast_text(contrast, relative=relative)
            rows.append([name, " × ".join(contrast["factors"]), text, p_text(contrast["p"]), ""])
        for share in metric["shares"]:
            part = "0 %" if is_nothing(share["estimate"]) else share_text(share["share"])
            text = contrast_text(share, relative=relative)
            rows.append([name, f"due to {share['factor']}", text, p_text(share["p"]), part])
    columns = ("metric", "factor", "change, 95 % interval", "p", "share")
    yield _table(columns, rows, words=(0, 1))


def _sets(data: Data) -> Iterator[str]:
    rows = set_rows(data)
    if rows:
        yield _table(set_columns(data), rows, words=(0, 1))


def _effects(data: Data) -> Iterator[str]:
    for comparison in data["comparisons"]:
        rows = [
            [
                _named(row),
                METRIC[row["metric"]].show(row["reference_mean"]),
                METRIC[row["metric"]].show(row["mean"]),
                change(row),
                row["verdict"] or row["reason"] or "",
            ]
            for row in comparison["effects"]
            if row["statistic"] in MAIN_STATISTICS | set(TAILS) and row["estimate"] is not None
            if METRIC[row["metric"]].is_worth_a_line(row["reference_mean"], row["mean"])
        ]
        if rows:
            twice = ": the same configuration twice" if comparison["is_duplicate"] else ""
            names = f"{comparison['configuration']} against {comparison['vs']}{twice}"
            yield f"### {_plain(names)}"
            columns = ("metric", "reference", "mean", "change, 95 % interval", "")
            yield _table(columns, rows, words=(0, 4))


def _named(row: Data) -> str:
    label = METRIC[row["metric"]].label
    return f"{label}, {row['statistic']}" if row["statistic"] in TAILS else label


def _scores(scores: list[Data]) -> Iterator[str]:
    rows = []
    for row in sorted(scores, key=lambda row: (row["scorer"], row["dataset"])):
        own, difference = row["mean"], row["difference"]
        cells = [row["scorer"], row["dataset"], row["configuration"], f"{own['num_units']:,}"]
        cells.append(number_text(own["estimate"]))
        cells.append(score_change(row) if difference else "reference")
        rows.append(cells)
    if rows:
        columns = ("scorer", "dataset", "configuration", "prompts", "mean", "difference")
        yield _table(columns, rows, words=(0, 1, 2))


def _configurations(configurations: list[Data]) -> Iterator[str]:
    rows = [
        [c["configuration"], "rows (errors)", f"{c['rows']:,} ({c['num_errors']:,})", "", "", ""]
        for c in configurations
    ]
    for metric in METRICS:
        means = [c["metrics"].get(metric.name, {}).get("mean") for c in configurations]
        for c in configurations if metric.is_worth_a_line(*means) else ():
            values = c["metrics"].get(metric.name)
            if values is not None:
                shown = [metric.show(values[name]) for name in ("mean", "p50", "p95")]
                rows.append([c["configuration"], label(metric.name), f"{values['n']:,}", *shown])
    columns = ("configuration", "metric", "n", "mean", "median", "p95")
    yield _table(columns, rows, words=(0, 1))


def _bullets(lines: Iterable[str]) -> Iterator[str]:
    found = [f"- {_plain(line)}" for line in lines]
    if found:
        yield "\n".join(found)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int]) -> str:
    """`words` are the places of columns of words; numbers stand at the right."""
    rule = [":--" if i in words else "--:" for i in range(len(columns))]
    lines = [columns, rule, *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SPECIAL = {ord(c): f"\\{c}" for c in "\\`*_[]#|~$"} | {
    ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("\n"): " ", ord("\r"): " ",
}  # fmt: skip


def _plain(text: object) -> str:
    """As it is to be read: nothing in it is markup, and it keeps to its line."""
    return str(text).translate(_SPECIAL)
