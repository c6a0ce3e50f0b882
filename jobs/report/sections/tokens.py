"""Where a difference in tokens comes from, on the page: encoding and length."""

from __future__ import annotations

from typing import Any

from jobs.analysis.token_split import CENSORED_ABOVE
from jobs.formatting import NOTHING
from jobs.report.document import Cell, Figure, Part, Prose, Row, Section, table
from jobs.report.labels import change, finite, log_axis, share_text
from jobs.report.render.svg_plots import Sum, sums
from jobs.report.sections.effects import effect_of

Data = dict[str, Any]

_EXPLAINED = (
    "Encoding: the same text takes more or fewer tokens in another vocabulary. Length: another "
    "text, counted by the baseline's tokenizer. On the log scale both add up to the whole change."
)
_METRICS = {
    "total": "completion_tokens",
    "encoding": "tokens_per_base_token",
    "length": "base_completion_tokens",
    "prompt": "prompt_tokens",
}
_KEYS = (("encoding", "encoding: same text, other vocabulary"), ("length", "length: other text"))


def tokens(data: Data) -> Section:
    """The account of every comparison, A/A pairs left out."""
    comparisons = [c for c in data["comparisons"] if not c["is_duplicate"]]
    known = [c for c in comparisons if _logs(c["tokens"]) is not None]
    parts: list[Part] = []
    if known:
        parts.append(Prose(_EXPLAINED, "quiet"))
        parts.append(_figure(known))
    else:
        nothing = "No completions of two configurations can be compared, so no tokens are split."
        parts.append(Prose(nothing, "nothing"))
    if any(c["tokens"]["is_censored"] for c in comparisons):
        parts.append(Prose(_CENSORED, "quiet"))
    if comparisons:
        parts.append(table("Texts and prompts", _COLUMNS, map(_texts, comparisons)))
    return Section("tokens", "Tokens: encoding and length", parts)


_CENSORED = (
    f"Where the budget ends more than {CENSORED_ABOVE * 100:g} % of completions, on either side, "
    "the length effect is a bound and not a value: marked ✂ below."
)
_COLUMNS = ("Configuration", "Prompt tokens", "Identical texts", "First difference (median)",
            "of the middle half", "Ended by the budget", "the reference's")  # fmt: skip


def _logs(account: Data) -> tuple[float, float] | None:
    """Encoding and length on the log scale, of effects that can be drawn."""
    found = []
    for name in ("encoding", "length"):
        effect = account[name]
        log = 0.0 if effect and effect["identical"] else effect and effect["log_estimate"]
        if log is None or finite(log) is None:
            return None
        found.append(float(log))
    return found[0], found[1]


def _figure(comparisons: list[Data]) -> Figure:
    title = "Completion tokens, split"
    rows: list[Row] = []
    drawn = []
    for comparison in comparisons:
        account = comparison["tokens"]
        encoding, length = _logs(account) or (0.0, 0.0)
        parts = [("encoding", encoding), ("length", length)]
        drawn.append(Sum(comparison["configuration"], parts, encoding + length))
        shown = [_effect_text(comparison, name) for name in ("total", "encoding", "length")]
        shares = [share_text(account[f"{name}_share"]) for name in ("encoding", "length")]
        both = NOTHING if NOTHING in shares else f"{shares[0]} + {shares[1]}"
        rows.append([Cell(comparison["configuration"], "key"), *shown, both])
    svg = sums("tokens-split", title, drawn, log_axis("change in completion tokens"), _KEYS)
    columns = ("Configuration", "All of it", "Encoding", "Length", "Encoding + length, shares")
    return Figure(title, svg, table("Completion tokens: numbers", columns, rows))


def _effect_text(comparison: Data, part: str) -> str:
    effect = comparison["tokens"][part]
    if effect is None or effect["estimate"] is None:
        return NOTHING
    own = effect_of(comparison, _METRICS[part])
    is_equal = own is not None and own["is_equal"]
    return change({**effect, "metric": "completion_tokens", "is_equal": is_equal})


def _texts(comparison: Data) -> list[Cell | str]:
    account = comparison["tokens"]
    found = account["divergence"]
    compared, identical = found["num_compared"], found["num_identical"]
    stops = account["length_stops"]
    median, quartiles = found["median_chars"], found["quartile_chars"]
    return [
        Cell(comparison["configuration"], "key"),
        _effect_text(comparison, "prompt"),
        f"{identical:,} of {compared:,}" if compared else NOTHING,
        NOTHING if median is None else f"character {median + 1:,.0f}",
        NOTHING if quartiles is None else " to ".join(f"{q + 1:,.0f}" for q in quartiles),
        Cell(share_text(stops[1]), "num", "✂" if account["is_censored"] else ""),
        share_text(stops[0]),
    ]
