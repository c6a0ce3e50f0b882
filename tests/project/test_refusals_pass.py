"""What a store says of itself is not taken for what a file holds.

`InputError` is a `ValueError`, so that `except ValueError` around a read of a store would say of a
bucket that does not answer that the file is no JSON, or take it for absent.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("jobs", "cluster", "optim") for path in ROOT.glob(f"{folder}/**/*.py")]
READS = {"read", "read_end", "entries", "entry", "list", "exists", "size"}


def names_of(handler: ast.ExceptHandler) -> set[str]:
    return (
        {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else set()
    )


def reads_a_store(body: list[ast.stmt]) -> bool:
    calls = (n.func for part in body for n in ast.walk(part) if isinstance(n, ast.Call))
    return any(
        isinstance(call, ast.Attribute)
        and call.attr in READS
        and "store" in ast.unparse(call.value)
        for call in calls
    )


def swallowed(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Try) or not reads_a_store(node.body):
            continue
        for handler in node.handlers:
            names = names_of(handler)
            if "InputError" in names:
                break
            if "ValueError" in names:
                yield handler.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_read_of_a_store_hides_its_refusal(path: Path) -> None:
    assert list(swallowed(path.read_text())) == []


def test_the_check_sees_what_it_is_for() -> None:
    body = "try:\n    json.loads(self.store.read(name))\n"
    assert list(swallowed(f"{body}except (OSError, ValueError):\n    pass\n")) == [3]
    first = "except InputError:\n    raise\n"
    assert list(swallowed(f"{body}{first}except ValueError:\n    pass\n")) == []
