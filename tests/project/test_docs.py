"""The reference pages say what the code says."""

from __future__ import annotations

from docs.generate import HERE, PAGES


def test_generated_pages_are_up_to_date() -> None:
    for name, page in PAGES.items():
        written = (HERE / name).read_text(encoding="utf-8")
        assert written == page(), f"docs/{name} is stale: run `make docs`"
