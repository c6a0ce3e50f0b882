"""A reader of JSON lines in which one bad line costs one row, not the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jobs.spec.yaml_reader import describe


class Record(NamedTuple):
    """One row of a source: its values, or why it has none."""

    unit: str
    """`line` or `row`: what `number` counts."""
    number: int
    """From 1, in the file."""
    values: dict[str, Any] | None
    error: str | None = None

    @property
    def place(self) -> str:
        return f"{self.unit} {self.number}"


def read_lines(lines: Iterable[bytes]) -> Iterator[Record]:
    """One record per line that is not blank; `lines` is a file that is open for reading bytes.

    Only a line feed ends a line: JSON text may hold every other separator that Unicode knows.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _record(number, line)


def _record(number: int, line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        return _bad(number, str(error))
    except UnicodeDecodeError as error:
        return _bad(number, f"not UTF-8 (byte {error.start + 1}: {error.reason})")
    except json.JSONDecodeError as error:
        return _bad(number, f"not valid JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return _bad(number, "not valid JSON: nested too deeply")
    except ValueError as error:
        # A whole number with thousands of digits, which Python refuses to convert.
        return _bad(number, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return _bad(number, f"expected a JSON object, got {describe(value)}")
    return Record("line", number, value)


class _DuplicateKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two values of one key is meant, nobody can say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(f"the key `{next(k for k in keys if keys.count(k) > 1)}` is twice")
    return found


def _bad(number: int, problem: str) -> Record:
    return Record("line", number, None, f"line {number}: {problem}")
