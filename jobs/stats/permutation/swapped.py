"""Statistics of one data set after swaps of its clusters' sides, from sums over those swapped.

Totals, squares and products of clusters are sums over clusters, so what a swap changes in any of
them is the sum over the clusters that it swaps: a draw costs a few additions, and every θ uses the
same draws. Three kinds of totals are told apart, as the less a kind needs, the faster it is:

- `difference`: a mean difference, sum(b - a) / sum(n);
- `ratio`: the log of a ratio of totals, whose two sides are divided by the same;
- `rate`: the log of a ratio of ratios, (b / d) / (a / c).

Each gives the statistic with θ put on the reference's amounts (a e^θ, or a + θ n), and its
linearised variance G / (G - 1) sum(u^2), u being what a cluster adds to the statistic: Cochran,
Sampling Techniques, 3rd ed., 1977, chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from jobs.stats.intervals import Floats

Kind = Literal["difference", "ratio", "rate"]
Theta = float | Floats
_BITS = 8
# Clusters and swaps up to which random swaps are one matrix that is kept and multiplied by.
_MOST_MULTIPLIED, _MOST_KEPT = 160, 10_000
_MOST_EVER = 17
"""Clusters beyond which swaps are drawn however many are wanted: every one of them would take
gigabytes."""
ROUNDING = 1e-10
"""Statistics that differ by less differ by rounding only: they are ties, and ties count."""
_NOTHING = 1e-14
"""Share of its terms below which a variance is what rounding leaves of nothing."""


def kind_of(totals: Floats, is_log: bool) -> Kind:
    """Of (4, clusters): the reference's amounts, what divides them, and the same of the other."""
    if not is_log:
        return "difference"
    return "ratio" if np.array_equal(totals[1], totals[3]) else "rate"


def products(totals: Floats, kind: Kind) -> Floats:
    """(sums, clusters): what has to be summed over the swapped clusters."""
    a, c, b, d = totals
    if kind == "difference":
        x = b - a
        return np.stack([x, c, x * c, c * c])
    if kind == "ratio":
        return np.stack([a, b, a * a, b * b])
    return np.stack([a, c, b, d, a * a, c * c, b * b, d * d, a * c, b * d, a * d, b * c])


@dataclass(frozen=True)
class SetTotals:
    """One data set's totals, with what is the same for every swap."""

    totals: Floats
    """(4, clusters): the reference's amounts, what divides them, and the same of the other side."""
    kind: Kind
    products: Floats
    whole: Floats
    """Sums of the products over all clusters: (sums, 1)."""
    crossed: tuple[float, float]
    """Of the two sides' amounts, and of what divides them: a swap changes neither."""
    squares: float
    """Of the differences."""

    @property
    def size(self) -> int:
        return int(self.totals.shape[1])


def set_totals(totals: Floats, is_log: bool) -> SetTotals:
    kind = kind_of(totals, is_log)
    own = products(totals, kind)
    a, c, b, d = totals
    x = b - a
    crossed = float(a @ b), float(c @ d)
    return SetTotals(totals, kind, own, own.sum(axis=1)[:, None], crossed, float(x @ x))


def moments(given: SetTotals, swapped: Floats, theta: Theta) -> tuple[Floats, Floats]:
    """The statistic and its variance after each swap; `swapped` is (sums, swaps)."""
    with np.errstate(all="ignore"):
        middle, variance = _BY_KIND[given.kind](given, swapped, theta)
    return middle, variance * (given.size / (given.size - 1) if given.size > 1 else math.nan)


def _difference(given: SetTotals, swapped: Floats, theta: Theta) -> tuple[Floats, Floats]:
    """Of y = b - a - θn, turned to -y where swapped: R = sum(±y) / N and u = (±y - R n) / N."""
    whole = given.whole
    left = whole - 2 * swapped  # sums of the ±
    middle = (left[0] - theta * left[1]) / whole[1]
    squares = given.squares - 2 * theta * whole[2] + theta**2 * whole[3]
    crossed = left[2] - theta * left[3]
    spread = squares - 2 * middle * crossed + middle**2 * whole[3]
    spread = np.where(spread <= _NOTHING * (squares + middle**2 * whole[3]), 0.0, spread)
    return middle, spread / whole[1] ** 2


def _ratio(given: SetTotals, swapped: Floats, theta: Theta) -> tuple[Floats, Floats]:
    """u = b / B - a / A, A and B being the sides' totals after the swap."""
    scale, whole = np.exp(theta), given.whole
    a, b, aa, bb = swapped
    n1, n0 = whole[1] - b + scale * a, scale * (whole[0] - a) + b
    squares1 = whole[3] - bb + scale**2 * aa
    squares0 = scale**2 * (whole[2] - aa) + bb
    squares = squares1 / n1**2 + squares0 / n0**2
    spread = squares - 2 * scale * given.crossed[0] / (n1 * n0)
    return np.log(n1 / n0), np.where(spread <= _NOTHING * squares, 0.0, spread)


def _rate(given: SetTotals, swapped: Floats, theta: Theta) -> tuple[Floats, Floats]:
    """u = n1 / N1 - t1 / T1 - n0 / N0 + t0 / T0: a quadratic form of the products' sums."""
    scale = np.exp(theta)
    a, c, b, d, aa, cc, bb, dd, ac, bd, ad, bc = swapped
    A, C, B, D, AA, CC, BB, DD, AC, BD, AD, BC = given.whole
    # Side 1 holds what was not swapped of b, and what was swapped of a; θ is on a.
    n1, t1 = B - b + scale * a, D - d + c
    n0, t0 = scale * (A - a) + b, C - c + d
    n1n1, n0n0 = BB - bb + scale**2 * aa, scale**2 * (AA - aa) + bb
    t1t1, t0t0 = DD - dd + cc, CC - cc + dd
    n1t1, n0t0 = BD - bd + scale * ac, scale * (AC - ac) + bd
    n1t0, n0t1 = BC - bc + scale * ad, scale * (AD - ad) + bc
    n1n0, t1t0 = scale * given.crossed[0], given.crossed[1]
    i, j, k, m = 1 / n1, 1 / t1, 1 / n0, 1 / t0
    squares = i * i * n1n1 + j * j * t1t1 + k * k * n0n0 + m * m * t0t0
    crossed = -i * j * n1t1 - k * m * n0t0 + i * m * n1t0 + j * k * n0t1 - i * k * n1n0
    spread = squares + 2 * (crossed - j * m * t1t0)
    middle = np.log(n1 * t0 / (t1 * n0))
    return middle, np.where(spread <= _NOTHING * squares, 0.0, spread)


_BY_KIND = {"difference": _difference, "ratio": _ratio, "rate": _rate}


def swapped_sums(columns: Sequence[Floats], num_swaps: int, most_enumerated: int) -> list[Floats]:
    """Of each set's (sums, clusters), the sums over the swapped clusters: (sums, swaps).

    Every swap but none where clusters are few, else `num_swaps` at random, alike each time.
    """
    sizes = [each.shape[1] for each in columns]
    is_every = sum(sizes) <= most_enumerated
    is_every |= sum(sizes) <= _MOST_EVER and 2 ** (sum(sizes) - 1) - 1 <= num_swaps
    if is_every or (sum(sizes) <= _MOST_MULTIPLIED and num_swaps <= _MOST_KEPT):
        is_swapped = _every_swap(sum(sizes)) if is_every else _random_swaps(sum(sizes), num_swaps)
        places = np.cumsum([0, *sizes])
        return [
            own @ is_swapped[start:end]
            for own, start, end in zip(columns, places, places[1:], strict=False)
        ]
    rng = np.random.default_rng(0)
    return [_random_sums(own, num_swaps, rng) for own in columns]


@lru_cache(maxsize=4)
def _random_swaps(size: int, num_swaps: int) -> Floats:
    """(size, swaps) of 0 and 1: kept, as all effects of one trial have much the same clusters."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, (size, num_swaps), dtype=np.uint8).astype(np.float64)


@lru_cache(maxsize=2)
def _every_swap(size: int) -> Floats:
    """(size, 2^(size - 1) - 1): all but none, the first cluster keeping its sides.

    To swap the others instead is the same with the sides named the other way round.
    """
    numbers = np.arange(1, 2 ** (size - 1), dtype=np.int64)
    bits = numbers >> np.arange(size - 1)[:, None] & 1
    return np.concatenate([np.zeros((1, len(numbers))), bits.astype(np.float64)])


def _random_sums(columns: Floats, num_swaps: int, rng: np.random.Generator) -> Floats:
    """Sums over random halves: a random byte looks up the sum of eight clusters at a time."""
    width, size = columns.shape
    num_groups = math.ceil(size / _BITS)
    padded = np.zeros((width, num_groups * _BITS))
    padded[:, :size] = columns
    tables = padded.reshape(width, num_groups, _BITS) @ _patterns()
    sums = np.zeros((width, num_swaps))
    for group in range(num_groups):
        chosen = rng.integers(0, 2**_BITS, num_swaps, dtype=np.uint8)
        for row in range(width):
            sums[row] += tables[row, group][chosen]
    return sums


@lru_cache(maxsize=1)
def _patterns() -> npt.NDArray[np.float64]:
    """Every choice of eight: (8, 256) of 0 and 1."""
    bits = np.arange(2**_BITS) >> np.arange(_BITS)[:, None] & 1
    return np.asarray(bits, dtype=np.float64)
