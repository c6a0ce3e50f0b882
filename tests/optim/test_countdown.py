"""Counts of what is done, and the time that the rest takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from optim.countdown import Countdown, Passage, duration


def clock(*moments: float) -> Callable[[], float]:
    return iter(moments).__next__


def test_each_step_says_where_it_stands_and_what_is_left() -> None:
    said: list[str] = []
    countdown = Countdown(3, said.append, clock=clock(100.0, 110.0, 130.0))
    for name in "abc":
        countdown.step(name)
    assert said == ["a (1 of 3)", "b (2 of 3), 20 s to go", "c (3 of 3), 15 s to go"]


def test_a_passage_is_said_now_and_then() -> None:
    said: list[str] = []
    passage = Passage(4 << 20, said.append, clock=clock(0.0, 1.0, 10.0, 12.0, 30.0))
    for mib in (0.5, 1, 2, 3):
        passage.report(int(mib * (1 << 20)), "measuring")
    assert said == [
        "measuring, 1.00 of 4.00 MiB, 30 s to go",
        "measuring, 3.00 of 4.00 MiB, 10 s to go",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (9000, "2.5 h")],
)
def test_durations_have_two_digits_or_so(seconds: float, text: str) -> None:
    assert duration(seconds) == text
