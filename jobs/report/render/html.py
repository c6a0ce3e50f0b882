"""`optrial report --html`: one page that holds all of a trial's answers and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cluster.results.results import Results
from jobs.report.document import Section
from jobs.report.page_data import page_data
from jobs.report.render.report_file import require_place, write_whole
from jobs.report.sections.checks import checks
from jobs.report.sections.distributions import distributions, memory
from jobs.report.sections.effects import effects
from jobs.report.sections.factors import attribution
from jobs.report.sections.provenance import origin
from jobs.report.sections.samples import texts
from jobs.report.sections.tokens import tokens
from jobs.report.sections.tradeoff import tradeoff
from jobs.report.sections.verdicts import answers, verdicts
from jobs.report.sentences import headline

SECTIONS = (
    verdicts, answers, effects, attribution, distributions, tradeoff, tokens, memory, texts,
    checks, origin,
)  # fmt: skip
"""In the order of the page; each makes a `Section` of `page_data`."""

_LONG_WORD = re.compile(r"\S{16,}")
_COMMAND = re.compile(r"`([^`]+)`")
_BREAK_AFTER = re.compile(r"(?<=[._/-])(?=[^._/-])")


def write_page(
    results: Results, path: str | os.PathLike[str], report: dict[str, Any] | None = None
) -> None:
    """Write the page, whole or not at all. InputError where `path` cannot be written.

    `report` is `report_data` of the results where that was read already.
    """
    target = Path(path)
    require_place(target)
    write_whole(render(page_data(results, report)), target)


def render(data: dict[str, Any]) -> str:
    """The page's HTML, of `page_data`."""
    environment = Environment(
        loader=PackageLoader("jobs.report.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "worded": worded}
    style = environment.get_template("page.css").render()
    sections: list[Section] = [make(data) for make in SECTIONS]
    facts = headline(data["trial"])
    return environment.get_template("page.html.j2").render(
        title=f"Trial of {data['trial']['model']}",
        facts=[*facts, f"run {data['trial']['run_id']}"],
        sections=sections,
        style=Markup(style),
        policy=policy(style),
        run_id=data["trial"]["run_id"],
        version=data["provenance"]["versions"].get("optrial", ""),
    )


def policy(style: str) -> str:
    """A Content-Security-Policy under which the page's own style is all that has any effect."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def breakable(text: object) -> Markup:
    """Escaped, with places where long names may break without a hyphen."""
    whole, found, end = str(text), [], 0
    for word in _LONG_WORD.finditer(whole):
        found.append(escape(whole[end : word.start()]))
        found.append(Markup("<wbr>").join(map(escape, _BREAK_AFTER.split(word[0]))))
        end = word.end()
    return Markup("").join([*found, escape(whole[end:])])


def worded(text: object) -> Markup:
    """A sentence, escaped; what stands in backticks as code."""
    pieces = _COMMAND.split(str(text))
    code = Markup("<code>{}</code>")
    return Markup("").join(
        code.format(breakable(piece)) if place % 2 else breakable(piece)
        for place, piece in enumerate(pieces)
    )
