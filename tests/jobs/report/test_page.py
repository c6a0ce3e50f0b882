"""The HTML page: its sections, that text stays text, that it loads nothing, and what it weighs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from factorial_results import factorial_results
from html_tree import Node, parse
from program import Run
from trial_results import make_results

from cluster.plan import Cell, Configuration, digest
from cluster.results.results import Results
from jobs.report.page_data import page_data
from jobs.report.render import html as page
from jobs.report.render.html import breakable, render, worded, write_page

SECTIONS = [
    "verdicts", "answers", "effects", "attribution", "distributions", "trade-off", "tokens",
    "memory", "samples", "checks", "provenance",
]  # fmt: skip
NASTY = "</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}"
NASTY_NAME = "\"><img src=x onerror=alert('1')><b>"
SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 8, "num_shards": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return factorial_results(tmp_path_factory.mktemp("page") / "out")


@pytest.fixture(scope="module")
def data(results: Results) -> dict[str, Any]:
    found = page_data(results)
    json.dumps(found, allow_nan=False)
    return found


@pytest.fixture(scope="module")
def html(data: dict[str, Any]) -> str:
    return render(data)


@pytest.fixture(scope="module")
def tree(html: str) -> Node:
    return parse(html)


def made(results: Results) -> Node:
    return parse(render(page_data(results)))


def rows_of(table: Node) -> list[list[str]]:
    return [[cell.words for cell in row.all("th", "td")] for row in table.all("tr")]


def test_sections_are_there_in_order_and_linked(tree: Node) -> None:
    assert [node.attributes["id"] for node in tree.all("section")] == SECTIONS
    links = [node.attributes["href"] for node in tree.all("nav")[0].all("a")]
    assert links == [f"#{name}" for name in SECTIONS]
    assert all(node.attributes["href"].startswith("#") for node in tree.all("a"))
    ids = [node.attributes["id"] for node in tree if "id" in node.attributes]
    assert len(ids) == len(set(ids))


def test_verdicts_are_those_of_the_report(data: dict[str, Any], tree: Node) -> None:
    glance, full = tree.by_id("verdicts").all("table")
    words = [node.words for node in full.of_class("verdict")]
    assert len(words) == len(data["verdicts"])
    for row, shown in zip(data["verdicts"], words, strict=True):
        assert row["verdict"] in shown
    for heading in ("Verdict", "Change, 95 % interval", "δ", "p", "What would settle it"):
        assert heading in rows_of(full)[0]
    assert rows_of(glance)[1][0] == "old.on"
    assert any("✓ better" in cell for row in rows_of(glance) for cell in row)


def test_attribution_names_factors_interactions_and_shares(tree: Node) -> None:
    section = tree.by_id("attribution")
    assert "vocabulary (old → new)" in section.words
    assert "vocabulary × sparse" in section.words
    shapley = next(t for t in section.all("table") if "Shapley" in rows_of(t)[0][2])
    shares = [row for row in rows_of(shapley) if row[0] == "completion tokens"]
    assert [row[1] for row in shares] == ["vocabulary", "sparse"]
    assert [row[3] for row in shares] == ["100 %", "0 %"]


def test_provenance_says_how_it_was_sampled_and_judged(tree: Node) -> None:
    section = tree.by_id("provenance")
    found = {n.all("dt")[0].words: n.all("dd")[0].words for n in section.all("div") if n.all("dt")}
    assert "temperature 0.0" in found["Sampling"]
    assert found["Seeds"] == "1, 2"
    assert found["Primary metrics"].startswith("completion tokens, time per byte")
    assert found["Error rate α"].startswith("5 %")
    assert "cluster swaps" in found["Intervals"]
    assert '"analysis"' in section.all("pre")[0].text


def test_tokens_are_split_as_planted(tree: Node) -> None:
    table = tree.by_id("tokens").all("table")[0]
    new = next(row for row in rows_of(table) if row[0] == "new.off")
    total, encoding, length = (float(cell.split(" %")[0]) / 100 for cell in new[1:4])
    assert encoding == pytest.approx(-0.2, abs=0.02)
    assert length == pytest.approx(-0.05, abs=0.02)
    assert math.log1p(total) == pytest.approx(math.log1p(encoding) + math.log1p(length), abs=2e-3)


def test_every_plot_is_described_and_has_its_numbers(tree: Node) -> None:
    plots = tree.all("svg")
    assert len(plots) > 15
    for figure in tree.all("figure"):
        [plot] = figure.all("svg")
        assert plot.attributes["role"] == "img"
        title, described = plot.all("title")[0], plot.all("desc")[0]
        ids = f"{title.attributes['id']} {described.attributes['id']}"
        assert plot.attributes["aria-labelledby"] == ids
        assert title.text
        assert described.text
        [table] = figure.all("table")
        assert len(table.all("tr")) > 1
    assert sum(len(figure.all("svg")) for figure in tree.all("figure")) == len(plots)


def test_it_can_be_read_without_seeing(tree: Node) -> None:
    assert tree.all("html")[0].attributes["lang"] == "en"
    assert len(tree.all("h1")) == 1
    levels = [int(node.tag[1]) for node in tree.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert tree.of_class("skip")[0].attributes["href"] == "#verdicts"
    for section in tree.all("section"):
        assert tree.by_id(section.attributes["aria-labelledby"]).tag == "h2"
    for table in tree.all("table"):
        assert table.all("caption")[0].words
        assert all(cell.attributes.get("scope") for cell in table.all("th"))
    for box in tree.of_class("scroll"):
        assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")
        assert box.attributes["aria-label"]


def test_it_loads_nothing_and_its_policy_allows_nothing(tree: Node, html: str) -> None:
    for node in tree:
        assert node.tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "style", "xlink:href", "action"} & set(node.attributes)
        assert not [name for name in node.attributes if name.startswith("on")]
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", html)
    [style] = tree.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    digest_ = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    policy = next(n for n in tree.all("meta") if n.attributes.get("http-equiv"))
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest_}'; base-uri 'none'; form-action 'none'"
    )


def nasty(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for i, row in enumerate(rows):
        if cell.kind == "generations":
            row["completion_text"] = NASTY + cell.configuration
            if i == 0:
                row |= {"error": NASTY, "completion_text": None}
    facts["device"] = NASTY


def test_texts_and_names_stay_text(tmp_path: Path) -> None:
    arms = [Configuration(name="baseline"), Configuration(name=NASTY_NAME, vs="baseline")]
    arms = [arm.model_copy(update={"fingerprint": digest(arm.name)}) for arm in arms]
    found = make_results(tmp_path / "out", arms=arms, edit=nasty, **SMALL)
    data = page_data(found)
    data["trial"]["model"] = NASTY
    for sample in data["samples"]:
        sample["prompt"] = sample["target"] = NASTY
    data["notes"].append(NASTY)
    tree = parse(render(data))
    assert [node.attributes["id"] for node in tree.all("section")] == SECTIONS
    assert not tree.all("script", "img", "b")
    assert not [name for node in tree for name in node.attributes if name.startswith("on")]
    for name in ("verdicts", "effects", "distributions", "memory"):
        assert NASTY_NAME in tree.by_id(name).text.replace("\n", "")
    assert NASTY in tree.by_id("samples").text
    assert NASTY in tree.by_id("provenance").text
    assert tree.all("title")[0].text.startswith(f"Trial of {NASTY}")


def test_the_first_difference_is_marked(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations":
            for row in rows:
                row["completion_text"] = "alike until "
                row["completion_text"] += "here" if cell.configuration == "short" else "the end"

    tree = made(make_results(tmp_path / "out", edit=edit, **SMALL))
    sample = tree.by_id("samples").all("article")[0]
    shown = {node.all("h4")[0].text: node for node in sample.all("li")}
    assert shown["short"].of_class("alike")[0].text == "alike until "
    assert shown["short"].all("mark")[0].text == "here"
    assert "differs from baseline from character 13 on" in shown["short"].words
    assert not shown["fast"].all("mark")
    assert "the same text as baseline" in shown["fast"].words
    assert shown["baseline"].all("pre")[0].text == "alike until the end"


def test_an_alarm_stands_out(data: dict[str, Any]) -> None:
    alarms = [{"configuration": "repeat", "metric": "e2e_s", "p": 0.001}]
    tree = parse(render({**data, "alarms": alarms}))
    [warning] = tree.by_id("checks").of_class("warning")
    assert "repeat differs from itself in time per completion" in warning.words
    assert "repeat differs from itself" in tree.by_id("verdicts").words


def test_the_command_writes_it_whole(
    results: Results, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    code, out, err = run("report", results.output, "--html", target)
    assert (code, out, err) == (0, "", "")
    before = target.read_text()
    assert before.startswith("<!doctype html>")
    monkeypatch.setattr(page, "page_data", lambda *_: {})
    with pytest.raises(KeyError):
        write_page(results, target)
    assert target.read_text() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", ["missing/report.html", "."])
def test_where_it_cannot_be_written_is_one_clear_error(
    results: Results, tmp_path: Path, run: Run, place: str
) -> None:
    code, _, err = run("report", results.output, "--html", tmp_path / place)
    assert code == 2
    assert "error:" in err
    assert "Traceback" not in err


def test_long_names_break_and_numbers_do_not() -> None:
    assert breakable("a-long.name_of/many.parts") == (
        "a-<wbr>long.<wbr>name_<wbr>of/<wbr>many.<wbr>parts"
    )
    assert breakable("-0.90 % [-2.16, +0.37] %") == "-0.90 % [-2.16, +0.37] %"
    assert worded("a `b <c>` d ` e") == "a <code>b &lt;c&gt;</code> d ` e"
    assert breakable("<b>&a.very-long-name</b>").startswith("&lt;b&gt;&amp;a.<wbr>very-")


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(tree: Node, scheme: int) -> None:
    style = tree.all("style")[0].text
    blocks = re.findall(r":root\s*\{(.*?)\}", style, re.S)
    colours = dict(re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6})", blocks[scheme]))
    words = ("ink", "soft", "link", "better", "worse", "same", "open", "other")
    for ground in ("ground", "panel"):
        for name in words:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["mark-ink"], colours["mark"]) >= 4.5
    assert contrast(colours["soft"], colours["tint"]) >= 4.5
    drawn = (
        "neutral",
        "zero",
        "encoding",
        "length",
        "total",
        "median",
        *(f"c{i}" for i in range(7)),
    )
    for name in drawn:
        assert contrast(colours[name], colours["panel"]) >= 3, name
