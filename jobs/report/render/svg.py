"""Inline SVG with scales and axes: enough for the page's plots, without any library.

Drawings are `WIDTH` units wide, so that 12 units of type stay legible on a phone. Colours are CSS
variables of the page, which follow its colour scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

WIDTH = 400
ROOM = 27.5
"""Ems that a line of a drawing has, at the size of type that phones get."""
_NARROWS, _WIDES = frozenset(" .,:;'|!()[]/-ijlftr1"), frozenset("MWm@%—") | frozenset("GOQNDHUw")
_NARROW, _USUAL, _WIDE = 0.36, 0.6, 0.95
NUM_COLOURS = 7
_SHAPES = ("circle", "square", "diamond", "up", "down", "cross", "plus")

Show = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """How the values along an axis are written."""

    show: Show
    label: str = ""
    unit: float = 1.0
    """Ticks are round multiples of it: a mebibyte, a millisecond."""
    is_log: bool = False
    """Values are logs of ratios, and ticks round fractions of change."""


@dataclass(frozen=True)
class Scale:
    """From values to units of a drawing, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, axis: Axis, count: int = 5) -> list[float]:
        """Values within the domain that an axis writes in few digits, about `count` of them."""
        if axis.is_log:
            found = _round_between(math.expm1(self.low), math.expm1(self.high), count)
            return [math.log1p(value) for value in found]
        low, high = self.low / axis.unit, self.high / axis.unit
        return [value * axis.unit for value in _round_between(low, high, count)]


def _round_between(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def scale(values: Sequence[float], start: float, end: float, *, zero: bool = False) -> Scale:
    """A scale that spans the finite values with some room; and zero, where it is asked for."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    keep_low, keep_high = zero and low == 0, zero and high == 0
    if keep_low and keep_high:
        return Scale(0.0, 1.0, start, end)
    return Scale(low if keep_low else low - room, high if keep_high else high + room, start, end)


class Drawing:
    """One SVG with a title and a description for those who cannot see it."""

    def __init__(self, name: str, title: str, description: str, height: float) -> None:
        self.name = name
        self.root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {WIDTH} {height:g}",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-desc",
                "class": "plot",
            },
        )
        for tag, text in (("title", title), ("desc", description)):
            ElementTree.SubElement(self.root, tag, {"id": f"{name}-{tag}"}).text = text

    def add(self, tag: str, style: str = "", text: str | None = None, **values: object) -> None:
        attributes = {key.rstrip("_").replace("_", "-"): _shown(v) for key, v in values.items()}
        if style:
            attributes["class"] = style
        ElementTree.SubElement(self.root, tag, attributes).text = text

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def box(self, x1: float, x2: float, y: float, height: float, style: str) -> None:
        self.add("rect", style, x=min(x1, x2), y=y, width=abs(x2 - x1), height=height)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self.add("text", style, shortened(text), x=x, y=y, text_anchor=anchor)

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        steps = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.add("polyline", style, points=steps)

    def marker(self, x: float, y: float, shape: str, style: str, size: float = 5) -> None:
        """A shape about (x, y): circle, square, diamond, up, down, cross or plus."""
        if shape == "circle":
            self.add("circle", style, cx=x, cy=y, r=size)
            return
        corners = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in _CORNERS[shape])
        self.add("polygon", style, points=corners)

    def x_axis(self, along: Scale, y: float, top: float, axis: Axis) -> None:
        """Ticks with grid lines from `top` down to `y`, and what is measured below."""
        for tick in along.ticks(axis):
            x = along(tick)
            self.line(x, top, x, y, "grid")
            self.text(x, y + 15, axis.show(tick), "tick", "middle")
        if axis.label:
            middle = (along.start + along.end) / 2
            self.text(middle, y + 32, axis.label, "axis", "middle")

    def y_axis(self, along: Scale, x: float, right: float, axis: Axis) -> None:
        for tick in along.ticks(axis):
            y = along(tick)
            self.line(x, y, right, y, "grid")
            self.text(x - 4, y + 4, axis.show(tick), "tick", "end")

    def markup(self) -> Markup:
        # ElementTree has escaped all texts and attributes.
        return Markup(ElementTree.tostring(self.root, encoding="unicode"))


def ems(text: str) -> float:
    """About how wide a text is in a sans serif face, in its own size; rather more than less."""
    return sum(_NARROW if c in _NARROWS else _WIDE if c in _WIDES else _USUAL for c in text)


def shortened(text: str, room: float = ROOM) -> str:
    """Cut in the middle where a drawing has no room; tables have the whole name."""
    if ems(text) <= room:
        return text
    size = len(text)
    while size > 2 and ems(text[: size // 2]) + ems(text[-(size // 2) :]) > room - _WIDE:
        size -= 1
    return f"{text[: size // 2]}…{text[-(size // 2) :]}"


def look(place: int) -> tuple[str, str]:
    """The shape and the colour class of the configuration at a place in the plan."""
    shape = _SHAPES[(place + place // NUM_COLOURS) % len(_SHAPES)]
    return shape, f"c{place % NUM_COLOURS}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_ARM = 0.35
_PLUS = [
    (-_ARM, -1.1), (_ARM, -1.1), (_ARM, -_ARM), (1.1, -_ARM), (1.1, _ARM), (_ARM, _ARM),
    (_ARM, 1.1), (-_ARM, 1.1), (-_ARM, _ARM), (-1.1, _ARM), (-1.1, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    "up": [(0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
    "down": [(0, 1.1), (1.1, -0.9), (-1.1, -0.9)],
    "plus": _PLUS,
    "cross": [(0.75 * (x - y), 0.75 * (x + y)) for x, y in _PLUS],
}
