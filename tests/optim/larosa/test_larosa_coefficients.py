"""Sharing a sparsity out among sites: the sum is met, and what is dear is spared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.countdown import Countdown
from optim.errors import InputError
from optim.larosa.allocation import (
    COEFFICIENTS,
    MOST,
    Allocated,
    Search,
    Shares,
    met,
    num_measures,
    num_published,
    spent,
    two_coefficients,
    uniform,
)
from optim.larosa.artifact import BreakEven, Level
from optim.larosa.sparse.break_even import default_max_rows, max_rows
from optim.larosa.sparse.sparse_model import at_sparsity

SIZES = [{"h1": 300, "h2": 100, "h3": 500, "h4": 250}] * 4


def cost(shares: Shares) -> float:
    """h4 is dear, h2 nearly free, and the first layer three times as dear as the others."""
    price = {"h1": 1.0, "h2": 0.05, "h3": 1.0, "h4": 4.0}
    return sum(
        (3 if index == 0 else 1) * price[site] * share**3
        for index, layer in enumerate(shares)
        for site, share in layer.items()
    )


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4, 0.5, 0.65, 0.8])
def test_the_search_meets_the_sparsity_and_beats_uniform(sparsity: float) -> None:
    found = Search(SIZES, cost).best(sparsity)
    assert spent(SIZES, found.shares) == pytest.approx(sparsity, abs=1e-6)
    assert found.cost is not None
    assert found.cost < cost(uniform(SIZES, sparsity))
    assert found.shape == "by site and layer"
    last = found.shares[-1]
    assert last["h2"] > last["h1"] > last["h4"]
    assert found.shares[0]["h3"] < last["h3"]
    assert max(max(layer.values()) for layer in found.shares) <= MOST


@pytest.mark.parametrize("allocated", ["layers", "sites"])
def test_how_often_is_measured_is_known_beforehand(allocated: Allocated) -> None:
    said: list[str] = []
    levels = (0.25, 0.4)
    countdown = Countdown(num_measures(SIZES, levels, allocated), said.append)
    search = Search(SIZES, cost, countdown)
    found = [search.best(level, allocated) for level in levels]
    assert len(said) == countdown.num_steps == countdown.num_begun
    assert f"({len(said)} of {len(said)})" in said[-1]
    assert all("layer" not in each for each in said) == (allocated == "sites")
    if allocated == "sites":
        assert {each.shape for each in found} == {"by site"}
        assert found[0].shares[0] == found[0].shares[-1]


def test_how_often_the_published_search_measures_is_known_too() -> None:
    said: list[str] = []
    levels = (0.25, 0.65)
    countdown = Countdown(num_published(SIZES, levels), said.append)
    for level in levels:
        Search(SIZES, cost, countdown).published(level)
    assert len(said) == countdown.num_steps


def test_where_all_is_alike_uniform_is_as_good() -> None:
    sizes = [{"h1": 100, "h2": 100, "h3": 100, "h4": 100}] * 3

    def even(shares: Shares) -> float:
        return sum(share**2 for layer in shares for share in layer.values())

    found = Search(sizes, even).best(0.5)
    assert all(share == pytest.approx(0.5, abs=0.02) for s in found.shares for share in s.values())


@pytest.mark.parametrize("front", COEFFICIENTS[1:])
@pytest.mark.parametrize("sparsity", [0.25, 0.4, 0.5])
def test_published_coefficients_meet_the_true_sparsity(front: float, sparsity: float) -> None:
    """The released code's 0.8 and 1.2 fall 6 to 8 % short of it."""
    shares = two_coefficients(SIZES, sparsity, front)
    assert shares is not None
    assert spent(SIZES, shares) == pytest.approx(sparsity)
    assert shares[0]["h1"] == shares[0]["h3"] == pytest.approx(front * sparsity)
    as_released = [{"h1": 0.8, "h3": 0.8, "h2": 1.2, "h4": 1.2}] * 4
    assert spent(SIZES, as_released) < 0.95


def test_what_cannot_be_dropped_is_not_asked_for() -> None:
    assert two_coefficients(SIZES, 0.65, 0.6) is None
    found = Search(SIZES, cost).published(0.65)
    assert spent(SIZES, found.shares) == pytest.approx(0.65)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.9), min_size=4, max_size=4),
    st.floats(0.05, 0.7),
)
def test_scaled_shares_meet_the_sparsity(raw: list[float], sparsity: float) -> None:
    shares = [dict(zip(SIZES[0], raw, strict=True))] * 4
    found = met(SIZES, shares, sparsity)
    assert max(max(layer.values()) for layer in found) <= MOST + 1e-12
    if all(share < MOST for layer in found for share in layer.values()):
        assert spent(SIZES, found) == pytest.approx(sparsity, abs=1e-6)


def levels(with_thresholds: bool = False) -> list[Level]:
    return [
        Level(
            sparsity=s,
            sites=[{"h1": s - 0.1, "h4": s + 0.1}],
            thresholds=[{"h1": 10 * s, "h4": s}] if with_thresholds else None,
        )
        for s in (0.25, 0.5)
    ]


def test_between_two_levels_lies_a_straight_line() -> None:
    shares, thresholds = at_sparsity(levels(), 0.4)
    assert thresholds is None
    assert shares == [{"h1": pytest.approx(0.3), "h4": pytest.approx(0.5)}]
    assert at_sparsity(levels(), 0.25)[0] == [
        {"h1": pytest.approx(0.15), "h4": pytest.approx(0.35)}
    ]
    assert at_sparsity(levels(), 0)[0] == [{"h1": 0, "h4": 0}]
    below, _ = at_sparsity(levels(), 0.125)
    assert below == [{"h1": pytest.approx(0.075), "h4": pytest.approx(0.175)}]
    above, _ = at_sparsity(levels(), 0.75)
    assert above == [{"h1": pytest.approx(0.7), "h4": pytest.approx(0.8)}]


def test_thresholds_end_where_they_were_calibrated() -> None:
    _, thresholds = at_sparsity(levels(with_thresholds=True), 0.375)
    assert thresholds == [{"h1": pytest.approx(3.75), "h4": pytest.approx(0.375)}]
    with pytest.raises(InputError, match="up to a sparsity of") as caught:
        at_sparsity(levels(with_thresholds=True), 0.6)
    assert "--levels 0.6" in str(caught.value)


def test_the_break_even_is_looked_up_and_never_timed() -> None:
    table = [
        BreakEven(place="cpu float32", inputs=8, outputs=4, share=share, max_rows=rows)
        for share, rows in ((0.25, 0), (0.4, 1), (0.5, 4))
    ]
    rule = max_rows(table, "cpu float32")
    for share, rows in ((0.1, 0), (0.39, 0), (0.4, 1), (0.45, 1), (0.5, 4), (0.9, 4)):
        assert rule(8, 4, share) == rows
    assert rule(16, 4, 0.5) == default_max_rows(0.5) == 1
    assert rule(16, 4, 0.1) == default_max_rows(0.1) == 0
    assert max_rows(table, "cuda float32")(8, 4, 0.5) == 1
    assert max_rows(table, "cpu bfloat16")(8, 4, 0.9) == 1
