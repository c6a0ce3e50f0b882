"""Quantiles of both sides of one data set, after swaps of its clusters' sides.

Rows are counted from the largest down. Of a falling row of values (levels) it is known how many
rows of each side and cluster lie at or above each, and a swap moves a cluster's counts from one
side to the other: so the counts after any number of swaps are one product of matrices, and a side's
quantile is where its count reaches the quantile's rank. Only the tail is looked at.

Quantiles interpolate between neighbouring values (type 7 of Hyndman and Fan, The American
Statistician 50, 1996), as those of `tables/summary.parquet` do; those of bins interpolate within
one, as if its rows were spread evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jobs.stats.intervals import Floats

Counts = npt.NDArray[np.float32]
SMALLEST = 1e-9
"""What is smaller counts as 0 in bins, whose values need a logarithm."""
_COARSE, _FEW_LEVELS = 16, 256


@dataclass(frozen=True)
class Levels:
    """Falling values, with the rows at or above each; θ is on the reference's values."""

    values: Floats
    """(levels,)"""
    other: Counts
    """(levels,): rows of the other side."""
    total: Counts
    """(levels,): rows of both."""
    apart: Counts
    """(levels, clusters): rows of the reference less those of the other side."""

    def part(self, chosen: slice) -> Levels:
        return Levels(
            self.values[chosen], self.other[chosen], self.total[chosen], self.apart[chosen]
        )

    def counts(self, swaps: Counts) -> tuple[Counts, Counts]:
        """(levels, swaps): rows of the other side and of the reference after each swap."""
        other = self.apart @ swaps
        other += self.other[:, None]
        return other, self.total[:, None] - other


@dataclass(frozen=True, eq=False)
class Rows:
    """The pairs of one data set, none of whose numbers is negative or missing."""

    reference: Floats
    """(pairs,)"""
    other: Floats
    """(pairs,)"""
    clusters: npt.NDArray[np.int64]
    """(pairs,): each pair's, from 0 on."""
    num_clusters: int

    @property
    def size(self) -> int:
        return len(self.reference)

    @property
    def is_identical(self) -> bool:
        return bool(np.array_equal(self.reference, self.other))

    @property
    def sizes(self) -> Floats:
        """(clusters,): pairs of each."""
        return np.bincount(self.clusters, minlength=self.num_clusters).astype(np.float64)

    def quantiles(self, q: float) -> tuple[float, float]:
        """Of the reference and of the other side."""
        return float(np.quantile(self.reference, q)), float(np.quantile(self.other, q))

    def joined(self, most: int) -> Rows:
        """With at most so many clusters, which are dealt to them in turn."""
        if self.num_clusters <= most:
            return self
        return replace(self, clusters=self.clusters % most, num_clusters=most)

    @cached_property
    def _falling(self) -> tuple[tuple[Floats, npt.NDArray[np.int64]], ...]:
        orders = (np.argsort(-side) for side in (self.reference, self.other))
        sides = zip((self.reference, self.other), orders, strict=True)
        return tuple((side[order], self.clusters[order]) for side, order in sides)

    def levels(self, theta: float, num_rows: int) -> Levels:
        """Of the `num_rows` largest of both sides; each is a level."""
        (a, own), (b, others) = ((v[:num_rows], c[:num_rows]) for v, c in self._falling)
        values = np.concatenate([a * math.exp(min(theta, 600.0)), b])
        order = np.argsort(-values, kind="stable")[:num_rows]
        is_other = order >= len(a)
        apart = np.zeros((len(order), self.num_clusters), dtype=np.float32)
        clusters = np.concatenate([own, others])[order]
        apart[np.arange(len(order)), clusters] = np.where(is_other, -1, 1)
        total = np.arange(1, len(order) + 1, dtype=np.float32)
        other = np.cumsum(is_other, dtype=np.float32)
        return Levels(values[order], other, total, np.cumsum(apart, axis=0))

    def after(self, levels: Levels, swaps: Counts, rank: float) -> tuple[Floats, Floats]:
        """The other side's and the reference's value of that rank, after each swap."""
        first = math.floor(rank + 1e-9)
        share = max(0.0, rank - first)
        near = _around(levels, swaps, first, first + 1)
        found = []
        for counts in near.counts(swaps):
            places = [_num_below(counts, r) for r in (first, first + (1 if share else 0))]
            upper, lower = (near.values[np.minimum(p, len(near.values) - 1)] for p in places)
            found.append(upper + share * (lower - upper))
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class Bins:
    """How many rows of one data set have their logarithm in each of equally wide bins."""

    width: float
    first: int
    """Bin i holds logarithms from (first + i) * width up to the next one's."""
    num: npt.NDArray[np.int64]
    """(2, bins, clusters): rows of the reference, and of the other side."""
    is_identical: bool = False
    """Whether each pair is known to be equal."""

    @property
    def num_clusters(self) -> int:
        return int(self.num.shape[2])

    @property
    def size(self) -> int:
        return int(self.num[0].sum())

    @property
    def sizes(self) -> Floats:
        return np.asarray(self.num[0].sum(axis=0), dtype=np.float64)

    def joined(self, most: int) -> Bins:
        if self.num_clusters <= most:
            return self
        padded = np.zeros((*self.num.shape[:2], -(-self.num_clusters // most) * most), np.int64)
        padded[:, :, : self.num_clusters] = self.num
        return replace(self, num=padded.reshape(*self.num.shape[:2], -1, most).sum(axis=2))

    @cached_property
    def _above(self) -> Counts:
        """(2, bins + 1, clusters): rows at or above the lower edge of each; nothing at the end."""
        above = np.cumsum(self.num[:, ::-1], axis=1)[:, ::-1]
        return np.concatenate([above, np.zeros_like(above[:, :1])], axis=1).astype(np.float32)

    def quantiles(self, q: float) -> tuple[float, float]:
        rank, unswapped = (self.size - 1) * (1 - q) + 1, np.zeros((self.num_clusters, 1))
        levels = self.levels(0.0, 2 * self.size)
        other, reference = (
            float(found[0]) if found[0] > SMALLEST * math.exp(2 * self.width) else 0.0
            for found in self.after(levels, unswapped.astype(np.float32), rank)
        )
        return reference, other

    def levels(self, theta: float, num_rows: int) -> Levels:
        """Edges of bins, from above all rows down to where there are `num_rows` of both sides."""
        shift, last = theta / self.width, self.num.shape[1]
        places = np.arange(last + max(0, math.ceil(shift)), min(0, math.floor(shift)) - 1, -1)
        whole = math.floor(shift)
        # The reference's rows are moved by a fraction of a bin: that much of one moves on.
        upper, lower = (self._above[0][np.clip(places - whole - i, 0, last)] for i in (0, 1))
        reference = upper + np.float32(shift - whole) * (lower - upper)
        other = self._above[1][np.clip(places, 0, last)]
        sums = other.sum(axis=1), (reference + other).sum(axis=1)
        values = np.exp((self.first + places) * self.width)
        enough = int(np.searchsorted(sums[1], num_rows)) + 1
        return Levels(values, *sums, reference - other).part(slice(0, enough))

    def after(self, levels: Levels, swaps: Counts, rank: float) -> tuple[Floats, Floats]:
        # Rows spread evenly have half a row above the first of them.
        wanted = rank - 0.5
        near = _around(levels, swaps, wanted, wanted)
        found = []
        for counts in near.counts(swaps):
            place = np.clip(_num_below(counts, wanted), 1, len(counts) - 1)
            columns = np.arange(counts.shape[1])
            above, below = counts[place - 1, columns], counts[place, columns]
            with np.errstate(all="ignore"):
                share = np.nan_to_num((wanted - above) / (below - above)).clip(0, 1)
            upper, lower = near.values[place - 1], near.values[place]
            found.append(np.asarray(upper + share * (lower - upper), dtype=np.float64))
        return found[0], found[1]


Sample = Rows | Bins


def binned(rows: Rows, width: float) -> Bins:
    """The same rows in bins."""
    sides = [
        np.floor(np.log(np.maximum(side, SMALLEST)) / width).astype(np.int64)
        for side in (rows.reference, rows.other)
    ]
    first = min(int(side.min()) for side in sides)
    num_bins = max(int(side.max()) for side in sides) - first + 1
    size = num_bins * rows.num_clusters
    num = [
        np.bincount((side - first) * rows.num_clusters + rows.clusters, minlength=size)
        for side in sides
    ]
    shaped = np.stack(num).reshape(2, num_bins, rows.num_clusters)
    return Bins(width, first, shaped, rows.is_identical)


def reaching(sample: Sample, theta: float, swaps: Counts, rank: float) -> Levels:
    """Levels down to where both sides have a value of that rank, and one more, after any swap."""
    wanted = math.floor(rank + 1e-9) + 1
    num_rows = 4 * wanted + 16
    while True:
        levels = sample.levels(theta, num_rows)
        last = levels.part(slice(-1, None)).counts(swaps)
        if num_rows >= 2 * sample.size or min(float(each.min()) for each in last) >= wanted:
            return levels
        num_rows *= 2


def with_none(swaps: Counts) -> Counts:
    """What swaps nothing, which is what was seen, before the swaps."""
    return np.concatenate([np.zeros((len(swaps), 1), dtype=np.float32), swaps], axis=1)


def _around(levels: Levels, swaps: Counts, least: float, most: float) -> Levels:
    """Only those levels between which the counts of some swap pass from `least` to `most`."""
    if len(levels.values) <= _FEW_LEVELS:
        # A side cannot have more rows than both.
        return levels.part(slice(max(0, int(np.searchsorted(levels.total, least)) - 1), None))
    coarse = levels.part(slice(None, None, _COARSE)).counts(swaps)
    start = min(int(_num_below(each, least).min()) for each in coarse)
    end = max(int(_num_below(each, most).max()) for each in coarse)
    return levels.part(slice(max(0, start - 1) * _COARSE, end * _COARSE + 1))


def _num_below(counts: Counts, rank: float) -> npt.NDArray[np.int32]:
    """(swaps,): levels at which a side has fewer rows than `rank`."""
    return np.asarray((counts < rank).sum(axis=0, dtype=np.int32))
