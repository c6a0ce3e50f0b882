"""The page in headless Chromium: nothing is complained of, nothing is asked for, and it fits."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import REQUIRED, Chromium, find_chromium
from factorial_results import factorial_results
from PIL import Image
from test_page import SECTIONS
from trial_results import make_results

from cluster.plan import Cell, Configuration, digest
from jobs.report.render.html import write_page

WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
WIDTHS = [1280, 390, 360]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
OUTSIDE_OF_CARDS = """
    [...document.querySelectorAll('svg.plot text')].filter(text => {
        const own = text.getBoundingClientRect();
        const card = text.closest('figure').getBoundingClientRect();
        return own.left < card.left || own.right > card.right;
    }).map(text => text.closest('svg').querySelector('title').textContent + text.textContent)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None and not os.environ.get(REQUIRED):
        pytest.skip("needs chromium: apt-get install chromium")
    assert program is not None, f"{REQUIRED} is set and there is no chromium"
    with Chromium(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    target = folder / "report.html"
    write_page(factorial_results(folder / "out"), target)
    return target


def pixels(browser: Chromium) -> np.ndarray:
    """The window as rows of grey levels."""
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"))


def test_a_complaint_and_a_request_would_be_seen(browser: Chromium, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content=width=device-width><title>bad</title>"
        "<img src='http://example.invalid/a.png'>"
        "<script>console.error('seen')</script><div style='width:900px'>wide</div>"
    )
    browser.events.clear()
    browser.show(bad, 390)
    assert any("seen" in line for line in browser.complaints())
    assert "http://example.invalid/a.png" in browser.requests()
    assert browser.evaluate("document.documentElement.scrollWidth") > 900
    browser.events.clear()


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_it_opens_without_complaint_and_asks_for_nothing(
    browser: Chromium, page: Path, width: int, scheme: str
) -> None:
    browser.events.clear()
    browser.show(page, width, scheme=scheme)
    browser.evaluate(OPEN_ALL)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("is_open", [False, True], ids=["folded", "opened"])
def test_it_is_as_wide_as_the_window(
    browser: Chromium, page: Path, width: int, is_open: bool
) -> None:
    browser.show(page, width)
    if is_open:
        browser.evaluate(OPEN_ALL)
    assert_fits(browser, width)


def assert_fits(browser: Chromium, width: int) -> None:
    """Nothing is wider than the window but what is in a box that scrolls."""
    widths = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [width, width]
    outside = browser.evaluate(
        """
        [...document.querySelectorAll('section *')].filter(e =>
            !e.closest('.scroll') && !e.closest('svg') && !e.closest('.hidden') &&
            e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))
        """
    )
    assert outside == []


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_every_section_is_drawn(browser: Chromium, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme=scheme)
    found = browser.evaluate(
        "[...document.querySelectorAll('section')].map(e => [e.id, e.offsetHeight])"
    )
    assert [name for name, _ in found] == SECTIONS
    assert all(height > 80 for _, height in found)
    for name in SECTIONS:
        browser.evaluate(
            f"document.documentElement.style.scrollBehavior = 'auto';"
            f"document.getElementById('{name}').scrollIntoView()"
        )
        seen = pixels(browser)
        ground = np.bincount(seen.ravel()).argmax()
        assert seen.shape[1] == width
        assert (ground > 200) == (scheme == "light"), name
        assert 0.003 < np.mean(np.abs(seen.astype(int) - ground) > 60) < 0.6, name


@pytest.mark.parametrize("width", WIDTHS)
def test_words_of_plots_stay_in_them(browser: Chromium, page: Path, width: int) -> None:
    browser.show(page, width)
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate(OUTSIDE_OF_CARDS) == []


def test_long_names_and_texts_fit(browser: Chromium, tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows:
            row["completion_text"] = "y" * 900 + cell.configuration[:1]

    names = "W" * 100, "m" * 100
    arms = [Configuration(name=names[0]), Configuration(name=names[1], vs=names[0])]
    arms = [arm.model_copy(update={"fingerprint": digest(arm.name)}) for arm in arms]
    results = make_results(
        tmp_path / "out", arms=arms, edit=edit, num_datasets=1, num_prompts=8, num_shards=2
    )
    write_page(results, tmp_path / "report.html")
    for width in WIDTHS:
        browser.show(tmp_path / "report.html", width)
        browser.evaluate(OPEN_ALL)
        assert_fits(browser, width)
        assert browser.evaluate(OUTSIDE_OF_CARDS) == []


def test_it_is_used_by_keyboard(browser: Chromium, page: Path) -> None:
    browser.show(page, 1280)
    for name in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=name, key="Tab", code="Tab",
                     windowsVirtualKeyCode=9)  # fmt: skip
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
