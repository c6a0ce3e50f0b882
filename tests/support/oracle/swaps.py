"""The swap test by its definition: exchange the two sides of clusters, and compute all again.

A data set is an array (4, clusters): what the reference's clusters have and what it is divided by,
then the same of the other side. Nothing is summed ahead of a swap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Swapped = npt.NDArray[np.bool_]
MOST_ENUMERATED = 14
ALPHA = 0.05
"""Of intervals."""
_STEPS = np.array([*np.arange(0.25, 6, 0.25), *np.geomspace(6, 30, 12)])
"""At which ends are looked for, in standard errors."""
TIE = 1e-10
"""Statistics that differ by less are equal."""


@cache
def every_swap(size: int) -> Swapped:
    """(1 + swaps, clusters), none first. The last cluster stays: to swap all others and not it is
    the same as to swap it alone, with the sides named the other way round."""
    chosen = np.zeros((2 ** (size - 1), size), dtype=bool)
    for number in range(1, 2 ** (size - 1)):
        chosen[number, :-1] = [number >> bit & 1 for bit in range(size - 1)]
    return chosen


@cache
def random_swaps(size: int, num: int) -> Swapped:
    """(1 + swaps, clusters), none first."""
    chosen = np.random.default_rng(20_260_101).random((1 + num, size)) < 0.5
    chosen[0] = False
    return chosen


@cache
def no_swap(size: int) -> Swapped:
    return np.zeros((1, size), dtype=bool)


@dataclass(frozen=True, eq=False)
class Swaps:
    """What can be asked of the swaps of one comparison's clusters."""

    sets: Sequence[Floats]
    is_log: bool
    """The effect is the log of a ratio of totals, or of rates; else a difference of means."""

    @property
    def num_clusters(self) -> int:
        return sum(each.shape[1] for each in self.sets)

    @property
    def is_enumerated(self) -> bool:
        return self.num_clusters <= MOST_ENUMERATED

    @cached_property
    def is_studentised(self) -> bool:
        """Several data sets, or a rate whose two sides are divided by other totals."""
        _, c, _, d = self.sets[0]
        return len(self.sets) > 1 or (self.is_log and not np.array_equal(c, d))

    def by_set(self) -> list[float]:
        return [float(effect[0]) for effect, _ in self._each(0.0, no_swap(self.num_clusters))]

    def estimate(self) -> float:
        """Data sets count alike."""
        return math.fsum(self.by_set()) / len(self.sets)

    def error(self) -> float:
        """The stratified linearised standard error, as seen."""
        return float(self._mean(0.0, no_swap(self.num_clusters))[1][0])

    # --- the tests -------------------------------------------------------------------------------

    def p(self, theta: float = 0.0, num: int = 5_000, tie: float = TIE) -> float:
        """Two-sided p that the effect is theta."""
        found = np.abs(self._statistic(theta, self._choices(num)))
        return float(_at_least(found, float(found[0]), tie).mean())

    def tost_p(self, margin: float, num: int = 5_000) -> float:
        """The larger of two one-sided p, that the effect is margin or more, or -margin or less.

        Every swap counts, and the one of the other clusters, which turns the sign.
        """
        found = []
        for theta, sign in ((margin, -1.0), (-margin, 1.0)):
            own = sign * self._statistic(theta, self._choices(num))
            found.append(float(_at_least(np.concatenate([own, -own]), float(own[0])).mean()))
        return max(found)

    def interaction_p(self, num: int = 5_000) -> float | None:
        """p that all data sets have one effect, by Cochran's Q with the mean effect taken out."""
        if len(self.sets) < 2:
            return None
        found = _cochran_q(self._each(self.estimate(), self._choices(num)))
        return float(_at_least(found, float(found[0])).mean())

    def is_end(self, sign: float, theta: float, room: float) -> bool:
        """Whether the last theta whose p is above 5 % is this one, give or take: the interval is
        the hull of all of them."""
        farther = theta + sign * np.array([room, *(self.error() * _STEPS)])
        return self._is_kept(theta - sign * room) and not any(map(self._is_kept, farther))

    def end(self, sign: float) -> float:
        """The same by bisection, from the last of several steps that is kept; may be infinite."""
        middle, unit = self.estimate(), sign * (self.error() or 1e-6)
        places = [0.0, *_STEPS]
        kept = [self._is_kept(middle + place * unit) for place in places]
        if kept[-1]:
            return math.copysign(math.inf, sign)
        last = max((i for i, is_kept in enumerate(kept) if is_kept), default=0)
        inside, outside = places[last], places[last + 1]
        while outside - inside > 1e-10 * outside:
            half = (inside + outside) / 2
            if self._is_kept(middle + half * unit):
                inside = half
            else:
                outside = half
        return float(middle + inside * unit)

    def is_unbounded(self, sign: float) -> bool:
        """Whether p is above 5 % so far out that there is no end."""
        return self._is_kept(self.estimate() + sign * _STEPS[-1] * (self.error() or 1e-6))

    def _is_kept(self, theta: float) -> bool:
        # Of totals an interval ends where a swap ties; what ties beside it would move the end.
        return self.p(theta, tie=TIE if self.is_studentised else 1e-13) > ALPHA + 1e-12

    # --- what they are made of -------------------------------------------------------------------

    def _choices(self, num: int) -> Swapped:
        """None first, which counts as one of the swaps."""
        if self.is_enumerated:
            return every_swap(self.num_clusters)
        return random_swaps(self.num_clusters, num)

    def _statistic(self, theta: float, chosen: Swapped) -> Floats:
        effect, error = self._mean(theta, chosen)
        if not self.is_studentised:
            return effect
        # Without any spread it is as extreme as can be, or nothing where the effect is nothing.
        effect = np.where(np.abs(effect) <= 1e-13, 0.0, effect)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((error > 0) | (effect != 0), effect / error, 0.0)

    def _mean(self, theta: float, chosen: Swapped) -> tuple[Floats, Floats]:
        found = self._each(theta, chosen)
        effect = np.mean([one for one, _ in found], axis=0)
        variance = np.sum([one for _, one in found], axis=0) / len(found) ** 2
        return effect, np.sqrt(variance)

    def _each(self, theta: float, chosen: Swapped) -> list[tuple[Floats, Floats]]:
        """Of each data set, its effect and that one's variance after each swap."""
        found, start = [], 0
        for given in self.sets:
            own = chosen[:, start : start + given.shape[1]]
            start += given.shape[1]
            a, c, b, d = given
            a = a * math.exp(theta) if self.is_log else a + theta * c
            under = (c, d) if np.array_equal(c, d) else _exchanged(c, d, own)
            statistic = _log_ratio if self.is_log else _difference
            found.append(statistic(*_exchanged(a, b, own), *under))
        return found


def _exchanged(one: Floats, other: Floats, chosen: Swapped) -> tuple[Floats, Floats]:
    """(swaps, clusters) of both sides."""
    return np.where(chosen, other, one), np.where(chosen, one, other)


def _log_ratio(a: Floats, b: Floats, c: Floats, d: Floats) -> tuple[Floats, Floats]:
    """log((B / D) / (A / C)) of (swaps, clusters), and its variance by linearisation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        A, B, C, D = (each.sum(axis=-1, keepdims=True) for each in (a, b, c, d))
        effect = np.log(B / A) + np.log(C / D)
        added = b / B - a / A
        if c is not d and not np.array_equal(c, d):
            added = added + (c / C - d / D)
    return effect[..., 0], _variance(added, 1.0)


def _difference(a: Floats, b: Floats, n: Floats, _: Floats) -> tuple[Floats, Floats]:
    """sum(b - a) / sum(n), and its variance by linearisation."""
    size = n.sum()
    effect = (b - a).sum(axis=1) / size
    added = (b - a - effect[:, None] * n) / size
    return effect, _variance(added, float(np.abs(a[0]).sum() + np.abs(b[0]).sum()) / size)


def _variance(added: Floats, scale: float) -> Floats:
    """G / (G - 1) times the sum of squares of what each cluster adds to the effect."""
    size = added.shape[1]
    if size < 2:
        return np.full(len(added), math.nan)
    found = np.einsum("ij,ij->i", added, added) * (size / (size - 1))
    found[found <= (1e-14 * scale) ** 2] = 0.0  # what rounding leaves of nothing
    return np.asarray(found)


def _cochran_q(found: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Sum over data sets of squared distances from their mean over variances.

    Sets without any spread are as far apart as can be, unless their effects are equal.
    """
    effects, variances = (np.array(each) for each in zip(*found, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = 1 / variances
        mean = (weights * effects).sum(axis=0) / weights.sum(axis=0)
        q = (weights * (effects - mean) ** 2).sum(axis=0)
    is_point = (variances == 0).any(axis=0)
    if is_point.any():
        q[is_point] = [
            _q_of_points(one, other)
            for one, other in zip(effects[:, is_point].T, variances[:, is_point].T, strict=True)
        ]
    return np.asarray(q)


def _q_of_points(effects: Floats, variances: Floats) -> float:
    """Q as the variances that are 0 tend to it: those sets alone decide the mean."""
    certain = effects[variances == 0]
    if np.ptp(certain) > 1e-13:
        return math.inf
    others = variances > 0
    return float((np.square(effects[others] - certain[0]) / variances[others]).sum())


def _at_least(values: Floats, least: float, tie: float = TIE) -> npt.NDArray[np.bool_]:
    room = 0.0 if math.isinf(least) else tie * max(1.0, abs(least))
    return np.asarray(values >= least - room)
