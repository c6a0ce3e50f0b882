"""Numbers and effects as people read them."""

from __future__ import annotations

import math

from jobs.stats.permutation.effect import Effect

NOTHING = "–"


def number_text(value: float | None, *, sign: bool = False) -> str:
    """Four significant digits at most, thousands separated; what is tiny as a power of ten."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:{'+' if sign else ''}.1e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:{'+' if sign else ''},.{min(digits, 4)}f}"


def duration_text(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    return f"{number_text(seconds)} s" if seconds >= 1 else f"{number_text(seconds * 1e3)} ms"


def bytes_text(size: float | None) -> str:
    """In binary units."""
    if size is None or not math.isfinite(size):
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{number_text(size)} {unit}"


def percent_text(fraction: float | None) -> str:
    """A relative change in percent, always with its sign unless it is exactly 0."""
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    if fraction == 0:
        return "0 %"
    percent = round(fraction * 100, 6)
    digits = 2 if abs(percent) < 10 else 1 if abs(percent) < 1000 else 0
    return f"{percent:+,.{digits}f} %"


def in_pairs(effect: Effect) -> str:
    """Where a change of 0 was seen, which is not everywhere that it might be."""
    return f"in {plural(effect.num_units, 'pair')}"


def interval_text(
    effect: Effect, *, relative: bool = False, sign: bool = True, is_equal: bool = False
) -> str:
    """`[low, high]`, or nothing; of equal pairs their number, or `exactly equal` if it is known."""
    if effect.identical:
        return "exactly equal" if is_equal else in_pairs(effect)
    if effect.low is None or effect.high is None:
        return NOTHING
    if relative:
        low, high = (percent_text(bound).removesuffix(" %") for bound in (effect.low, effect.high))
        return f"[{low}, {high}] %"
    low, high = number_text(effect.low, sign=sign), number_text(effect.high, sign=sign)
    return f"[{low}, {high}]"


def relative_bounds(
    estimate: float | None, low: float | None, high: float | None, *, relative: bool
) -> str:
    """`estimate [low, high]`, in percent where it is relative."""
    shown = percent_text(estimate) if relative else number_text(estimate, sign=True)
    if low is None or high is None:
        return shown
    bounds = [percent_text(b).removesuffix(" %") if relative else number_text(b, sign=True)
              for b in (low, high)]  # fmt: skip
    return f"{shown} [{bounds[0]}, {bounds[1]}]" + (" %" if relative else "")


def p_text(p: float | None) -> str:
    """With as many digits as anybody reads."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
