"""A part of an explanation: a heading and what is said under it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    heading: str
    lines: tuple[str, ...]
