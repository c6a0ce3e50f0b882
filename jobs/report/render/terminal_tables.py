"""The tables of verdicts and of what each factor does, as a terminal shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.formatting import NOTHING, percent_text, plural, relative_bounds
from jobs.spec.metrics import BY_NAME

_STYLES = {"supported": "green", "refuted": "red", "undecided": "yellow", "not applicable": "dim"}


def print_claims(claims: list[dict[str, Any]], out: Console) -> None:
    """One row per claim and comparison, of `report_data`; a claim's own words once."""
    table = Table(
        title="Claims", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("claim", overflow="fold", ratio=3)
    table.add_column("answer", no_wrap=True)
    table.add_column("comparison", overflow="fold", ratio=3)
    table.add_column("evidence", overflow="fold", ratio=4)
    before = None
    for row in claims:
        if before not in (None, row["claim"]):
            table.add_section()
        table.add_row(
            Text(row["text"] if row["claim"] != before else ""),
            Text(row["answer"], style=_STYLES[row["answer"]]),
            Text(f"{row['configuration']} against {row['vs']}" if row["vs"] else NOTHING),
            Text(row["evidence"]),
        )
        before = row["claim"]
    out.print(table)


def any_refuted(claims: list[dict[str, Any]]) -> bool:
    return any(row["answer"] == "refuted" for row in claims)


STYLES = {
    "better": "green",
    "worse": "red",
    "equivalent": "cyan",
    "exactly equal": "cyan",
    "mixed": "magenta",
    "inconclusive": "yellow",
    "withheld": "yellow",
}
# So that the tables of several comparisons line up below one another.
_LABEL_WIDTH, _CHANGE_WIDTH = 24, 24


def verdict_tables(data: dict[str, Any]) -> Iterator[Table]:
    """One table per comparison, with a row per primary metric; of equal widths."""
    by_pair = groupby(data["verdicts"], lambda row: (row["configuration"], row["vs"]))
    for (name, vs), rows in by_pair:
        table = Table(
            title=Text(f"Verdicts: {name} against {vs}", style="bold not italic"),
            title_justify="left", box=box.SIMPLE, show_header=False, pad_edge=False,
        )  # fmt: skip
        table.add_column("metric", no_wrap=True, min_width=_LABEL_WIDTH)
        table.add_column("change", justify="right", no_wrap=True, min_width=_CHANGE_WIDTH)
        table.add_column("verdict", overflow="fold")
        for row in rows:
            label = BY_NAME[row["metric"]].label.removeprefix("· ")
            word = Text(verdict_phrase(row), style=STYLES.get(row["verdict"], ""))
            table.add_row(Text(label), change_text(row), word)
        yield table


def change_text(row: dict[str, Any]) -> str:
    """The estimate with its interval."""
    if row["identical"]:
        return "0"
    relative = BY_NAME[row["metric"]].is_relative
    return relative_bounds(row["estimate"], row["low"], row["high"], relative=relative)


def verdict_phrase(row: dict[str, Any]) -> str:
    """The verdict, with δ where it says how equal, and what would settle it where it is open."""
    word = row["verdict"]
    if word == "equivalent":
        return f"equivalent within ±{margin_text(row)}"
    if word == "inconclusive":
        ways = []
        if row["more_prompts"]:
            ways.append(plural(row["more_prompts"], "more prompt"))
        if row["more_seeds"]:
            ways.append(plural(row["more_seeds"], "more seed"))
        if ways:
            chance = f"{row['settling_probability'] * 100:.0f} %"
            return f"inconclusive: {' or '.join(ways)} would settle it with a chance of {chance}"
    if word in ("inconclusive", "mixed", "withheld") and row["verdict_reason"]:
        return f"{word}: {row['verdict_reason']}"
    if word in ("better", "worse") and not BY_NAME[row["metric"]].is_relative:
        share = row["estimate"] / row["reference_mean"] if row["reference_mean"] else None
        return f"{word}, {percent_text(share)}" if share is not None else word
    return str(word)


def margin_text(row: dict[str, Any]) -> str:
    if BY_NAME[row["metric"]].is_relative:
        return f"{row['margin'] * 100:g} %"
    return f"{row['margin']:g}"


def verdict_notes(data: dict[str, Any]) -> Iterator[str]:
    """How the verdicts were come by, and what speaks against them."""
    alpha, level = data["judgement"]["alpha"], data["level"]
    primary = [BY_NAME[name].label for name in data["judgement"]["primary"]]
    now = f"judged at {level * 100:.2g} %" if level < alpha else "judged together"
    if data["set_level"]:
        now += f", {data['set_level'] * 100:.2g} % of it for data sets that differ"
    yield (
        f"Primary verdicts ({', '.join(primary)}; all comparisons together) are {now} (Holm): a "
        f"difference where there is none is among them with a chance of {alpha * 100:g} % at most, "
        "and so is equality where there is none. Others are exploratory. Intervals are each at "
        "95 %."
    )
    for look in data["looks"]:
        yield (
            f"Look {look['number']}, at {look['level'] * 100:.2g} %, decided "
            f"{plural(len(look['settled']), 'primary verdict')}, which stay; for the "
            f"{len(look['open'])} that it left open, {plural(look['num_rows'], 'completion')} "
            "were added."
        )
    if not data["looks"] and level < alpha:
        yield (
            f"{(alpha - level) * 100:.2g} % of error are kept for later looks at what is open "
            "(`optrial settle`)."
        )
    for alarm in data["alarms"]:
        yield alarm_text(alarm)
    for comparison in data["comparisons"]:
        for line in comparison["warnings"]:
            yield f"{comparison['configuration']}: {line}."


def alarm_text(alarm: dict[str, Any]) -> str:
    if alarm.get("reason") is not None:
        return f"Alarm: {alarm['configuration']}: {alarm['reason']}."
    label = BY_NAME[alarm["metric"]].label
    return f"Alarm: {alarm['configuration']} differs from itself in {label} (p {alarm['p']:.2g})."


def attribution_table(data: dict[str, Any]) -> Table | None:
    """Main effects and two-way interactions of every primary metric; None without a factorial."""
    attribution = data["attribution"]
    found = [
        m for m in attribution["metrics"]
        if m["metric"] in data["judgement"]["primary"] and m["contrasts"]
    ]  # fmt: skip
    if attribution["reason"] is not None or not found:
        return None
    table = Table(
        title="What each factor does, over all combinations of the others (joint intervals)",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("factor", no_wrap=True)
    for each in found:
        table.add_column(BY_NAME[each["metric"]].label, justify="right")
    factors = [c["factors"] for c in found[0]["contrasts"] if len(c["factors"]) <= 2]
    for names in factors:
        cells = [contrast_cell(each, names) for each in found]
        table.add_row(Text(" × ".join(names)), *cells)
    return table


def attribution_notes(data: dict[str, Any]) -> Iterator[str]:
    """What a reader of the table of factors has to know."""
    withheld = {row["metric"] for row in data["verdicts"] if row["verdict"] == "withheld"}
    labels = [BY_NAME[m["metric"]].label for m in data["attribution"]["metrics"]
              if m["metric"] in withheld and m["contrasts"]]  # fmt: skip
    if labels:
        yield (
            f"{', '.join(labels)}: some verdicts above are withheld, so what factors seem to do to "
            "it is no more than a description."
        )


def contrast_cell(metric: dict[str, Any], names: list[str] | tuple[str, ...]) -> Text:
    """A contrast with its interval; dim where the interval includes nothing."""
    contrast = next(c for c in metric["contrasts"] if tuple(c["factors"]) == tuple(names))
    values = [contrast["estimate"], contrast["low"], contrast["high"]]
    is_log = metric["relative"]
    shown = [math.expm1(v) if is_log and v is not None else v for v in values]
    if shown[0] == 0:
        return Text("0", style="dim")
    text = relative_bounds(*shown, relative=metric["relative"])
    quiet = shown[1] is None or shown[1] <= 0 <= (shown[2] or 0)
    return Text(text, style="dim" if quiet else "")
