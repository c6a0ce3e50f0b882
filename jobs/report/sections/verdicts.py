"""What the page says first: verdicts at a glance and in full, then answers in plain words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from jobs.formatting import NOTHING, p_text, plural
from jobs.report.document import Cell, Definitions, Group, Part, Prose, Section, Table, table
from jobs.report.labels import METRIC, change, estimate_text, label, names_in, verdict_cell
from jobs.report.render.terminal_tables import margin_text, verdict_notes
from jobs.report.sentences import NO_VERDICT, shortcomings

Data = dict[str, Any]


def verdicts(data: Data) -> Section:
    """The primary family."""
    rows = data["verdicts"]
    parts: list[Part] = [Prose(line, "warning") for line in shortcomings(data["trial"])]
    if not rows:
        return Section("verdicts", "Verdicts", [*parts, Prose(NO_VERDICT, "nothing")])
    parts.append(Prose(_counted(rows), "lede"))
    parts.append(_glance(data, rows))
    parts.append(_in_full(rows))
    parts += [Prose(line, "quiet") for line in verdict_notes(data)]
    if data.get("claims"):
        parts.append(_claims(data["claims"]))
    return Section("verdicts", "Verdicts", parts)


_ANSWERS = {"supported": "better", "refuted": "worse"}


def _claims(claims: list[Data]) -> Table:
    """What somebody promised, and what this trial says of it."""
    rows = [
        [
            Cell(each["text"], "words"),
            replace(verdict_cell(_ANSWERS.get(each["answer"])), text=each["answer"]),
            Cell(f"{each['configuration']} against {each['vs']}" if each["vs"] else NOTHING, "key"),
            Cell(each["evidence"], "words"),
        ]
        for each in claims
    ]
    return table("Claims", ("Claim", "Answer", "Comparison", "Evidence"), rows, fold=False)


def answers(data: Data) -> Section:
    """Each comparison in a sentence or two, and what has to be known of it."""
    references = {c["vs"] for c in data["comparisons"]}
    entries = [(_pair(c, len(references) == 1), _without_names(c)) for c in data["comparisons"]]
    parts: list[Part] = []
    if len(references) == 1:
        parts.append(Prose(f"All against {next(iter(references))}.", "lede"))
    if entries:
        parts.append(Definitions(entries))
    else:
        parts.append(Prose("There is nothing to compare yet.", "nothing"))
    parts += [Prose(note, "quiet") for note in data["notes"]]
    return Section("answers", "Answers in plain words", parts)


def exploratory(data: Data) -> Table | None:
    """All metrics that are not primary; the rate of false discoveries is kept over them."""
    groups = []
    for comparison in data["comparisons"]:
        rows = [
            _row(row, is_primary=False)
            for row in comparison["effects"]
            if row["family"] == "exploratory" and row["estimate"] is not None
        ]
        if rows:
            groups.append(Group(_pair(comparison), rows))
    if not groups:
        return None
    columns = ("Metric", "Verdict", "Change, 95 % interval", "δ", "p", "p of ±δ or more")
    return Table("All other metrics (exploratory)", columns, groups, is_folded=True)


def _counted(rows: list[Data]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    order = ("better", "worse", "higher", "lower", "equivalent", "exactly equal",
             "mixed", "inconclusive", "withheld")  # fmt: skip
    listed = [f"{counts[word]} {word}" for word in order if counts[word]]
    return f"{plural(len(rows), 'primary verdict')}: {', '.join(listed)}."


def _glance(data: Data, rows: list[Data]) -> Table:
    """Configurations by primary metrics."""
    found = {(row["configuration"], row["metric"]): row for row in rows}
    metrics = [m for m in names_in(data) if any(row["metric"] == m for row in rows)]
    made = []
    for name in dict.fromkeys(row["configuration"] for row in rows):
        cells = [Cell(name, "key")]
        for metric in metrics:
            row = found.get((name, metric))
            if row is None:
                cells.append(Cell(NOTHING, "quiet"))
            else:
                note = "" if row["identical"] else estimate_text(METRIC[metric], row["estimate"])
                cells.append(verdict_cell(row["verdict"], note))
        made.append(cells)
    references = list(dict.fromkeys(row["vs"] for row in rows))
    against = f", each against {references[0]}" if len(references) == 1 else ""
    columns = ["Configuration", *(label(metric) for metric in metrics)]
    return table(f"Verdicts at a glance{against}", columns, made, fold=False)


def _in_full(rows: list[Data]) -> Table:
    is_known = len({row["vs"] for row in rows}) == 1
    groups = [
        Group(
            name if is_known else f"{name} against {vs}",
            [
                _row(row, is_primary=True)
                for row in rows
                if (row["configuration"], row["vs"]) == (name, vs)
            ],
        )
        for name, vs in dict.fromkeys((row["configuration"], row["vs"]) for row in rows)
    ]
    columns = ("Metric", "Verdict", "Change, 95 % interval", "δ", "p", "p of ±δ or more",
               "What would settle it")  # fmt: skip
    return Table("Verdicts in full", columns, groups)


def _row(row: Data, *, is_primary: bool) -> list[Cell]:
    metric = METRIC[row["metric"]]
    reason = row["verdict_reason"] or ""
    cells = [
        Cell(label(row["metric"]), "key"),
        verdict_cell(
            row["verdict"], reason if row["verdict"] in ("withheld", "mixed", None) else ""
        ),
        Cell(change(row), "num"),
        Cell(f"±{margin_text(row)}" if row["margin"] is not None else NOTHING, "num"),
        Cell(p_text(row["p_adjusted"]), "num"),
        Cell(p_text(row["equivalence_p_adjusted"]), "num"),
    ]
    if is_primary:
        smallest = ""
        if row["mde"] is not None and row["verdict"] == "inconclusive":
            smallest = f"sees ±{estimate_text(metric, row['mde']).removeprefix('+')} or more now"
        cells.append(
            Cell(
                _settling(row), "settling quiet" if _is_settled(row) else "settling", note=smallest
            )
        )
    return cells


def _is_settled(row: Data) -> bool:
    return row["verdict"] not in ("inconclusive", "withheld")


def _settling(row: Data) -> str:
    if _is_settled(row):
        return f"settled at look {row['look']}" if row["look"] else "settled"
    if row["verdict"] == "withheld":
        return "more data would not: see the reason"
    ways = []
    if row["more_prompts"]:
        ways.append(plural(row["more_prompts"], "more prompt"))
    if row["more_seeds"]:
        ways.append(plural(row["more_seeds"], "more seed"))
    return " or ".join(ways) or row["verdict_reason"] or "not known"


def _pair(comparison: Data, is_known: bool = False) -> str:
    """What is compared; with what is left out where it is known."""
    if comparison["is_duplicate"]:
        start = f"{comparison['configuration']}: "
        return start + ("the same" if is_known else comparison["vs"]) + " run a second time"
    name = str(comparison["configuration"])
    return name if is_known else f"{name} against {comparison['vs']}"


def _without_names(comparison: Data) -> str:
    """The answer without the names that stand above it."""
    name, vs = comparison["configuration"], comparison["vs"]
    text = comparison["answer"]
    for start in (f"{name} against {vs}: ", f"{name} ({vs} run a second time): "):
        text = text.removeprefix(start)
    return str(text[:1].upper() + text[1:])
