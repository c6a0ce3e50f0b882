"""Scales, ticks and lettering of the page's plots."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.report.labels import bytes_axis, change_axis, log_axis, time_axis, value_axis
from jobs.report.render.svg import ROOM, Axis, Scale, ems, scale, shortened
from jobs.report.render.svg_plots import (
    Interval,
    Line,
    Spread,
    Sum,
    intervals,
    lines,
    spreads,
    sums,
)
from jobs.spec.metrics import METRICS

PLAIN = Axis(str)
values = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(st.lists(values, min_size=1, max_size=5), st.booleans())
def test_ticks_lie_on_the_axis_and_are_few(found: list[float], zero: bool) -> None:
    along = scale(found, 0, 100, zero=zero)
    assert along.low < along.high
    ticks = along.ticks(PLAIN)
    assert 1 <= len(ticks) <= 7
    slack = 1e-6 * (along.high - along.low)
    assert all(along.low - slack <= tick <= along.high + slack for tick in ticks)
    assert ticks == sorted(ticks)
    assert all(0 <= along(value) <= 100 for value in found)


def test_a_scale_is_linear_and_leaves_out_what_is_no_number() -> None:
    along = scale([math.nan, 2.0, math.inf, 4.0], 0, 100)
    assert (along.low, along.high) == pytest.approx((1.9, 4.1))
    assert along(3.0) == 50
    assert scale([], 0, 1).low < 0 < scale([], 0, 1).high


@pytest.mark.parametrize(
    ("axis", "high", "expected"),
    [
        (bytes_axis(3 * 2**20), 3 * 2**20, ["0", "1 MiB", "2 MiB", "3 MiB"]),
        (bytes_axis(500), 500, ["0", "100 B", "200 B", "300 B", "400 B", "500 B"]),
        (time_axis(0.02), 0.02, ["0", "5 ms", "10 ms", "15 ms", "20 ms"]),
        (time_axis(100.0), 100.0, ["0", "20 s", "40 s", "60 s", "80 s", "100 s"]),
        (change_axis(METRICS[1], ""), 0.2, ["0", "+5 %", "+10 %", "+15 %", "+20 %"]),
    ],
)
def test_ticks_are_written_in_round_units(axis: Axis, high: float, expected: list[str]) -> None:
    shown = [axis.show(tick) for tick in Scale(0, high, 0, 1).ticks(axis, 5)]
    assert shown == expected


def test_ticks_of_logs_are_round_percents() -> None:
    axis = log_axis("change")
    ticks = Scale(math.log(0.6), math.log(1.1), 0, 1).ticks(axis)
    assert [axis.show(tick) for tick in ticks] == ["−40 %", "−30 %", "−20 %", "−10 %", "0", "+10 %"]
    assert [math.exp(tick) for tick in ticks] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.1])


def test_memory_and_time_have_their_own_axes() -> None:
    units = {m.name: value_axis(m, 1e6).unit for m in METRICS}
    assert units["kv_committed_peak_bytes"] == 2**10
    assert units["e2e_s"] == 1
    assert units["completion_tokens"] == 1


@given(st.text(max_size=120), st.floats(3, ROOM))
def test_what_is_shortened_has_room(text: str, room: float) -> None:
    short = shortened(text, room)
    assert ems(short) <= room or len(short) <= 3
    if ems(text) <= room:
        assert short == text


def test_a_shortened_name_keeps_both_ends() -> None:
    short = shortened("first" + "-middle" * 20 + "-last")
    assert short.startswith("first-middle")
    assert short.endswith("-last")
    assert "…" in short


def test_plots_of_nothing_and_of_one_value_are_drawn() -> None:
    axis = Axis("{:g}".format)
    one = [Interval("a", 0.0)]
    for drawn in (
        intervals("a", "t", [], axis),
        intervals("a", "t", one, axis, (-0.1, 0.1)),
        sums("a", "t", [Sum("a", [], 0.0)], axis, []),
        spreads("a", "t", [Spread("a", [5.0] * 101, 5.0)], axis),
        lines("a", "t", [Line("held", [0.5], [7.0])], (1.0, 7.0), (axis, axis)),
        lines("a", "t", [Line("held", [0.5, 1.0], [None, None])], (0.0, 0.0), (axis, axis)),
    ):
        assert drawn.startswith("<svg")
        assert "nan" not in drawn
        assert "inf" not in drawn
