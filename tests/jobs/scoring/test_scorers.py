"""Scorers by hand-worked cases."""

from __future__ import annotations

import math

import pytest

from jobs.scoring.scorers import (
    answer_index,
    bits_per_byte,
    contains,
    exact,
    multiple_choice,
    normalised,
    numeric,
    scorer,
)
from optim.errors import InputError


@pytest.mark.parametrize(
    ("function", "output", "target", "value"),
    [
        (exact, " Paris\n", "Paris", 1),
        (exact, "paris", "Paris", 0),
        (exact, "", "", 1),
        (normalised, "The  Eiffel tower!", "eiffel Tower", 1),
        (normalised, "ﬁne ＡＢＣ", "fine abc", 1),
        (normalised, "Straße", "STRASSE", 1),
        (normalised, "theory", "ory", 0),
        (contains, "It is PARIS, I think", "paris", 1),
        (contains, "It is Rome", "paris", 0),
        (numeric, "So 3 + 4 = 7.", "7", 1),
        (numeric, "that is $1,234,567.50 in all", "1234567.5", 1),
        (numeric, "x = -5", "5", 0),
        (numeric, "x = −5", "-5", 1),
        (numeric, "50%", "0.5", 1),
        (numeric, "50%", "50", 1),
        (numeric, "50", "0.5", 0),
        (numeric, "1.5e3", "1500", 1),
        (numeric, ".5", "0.50", 1),
        (numeric, "first 8, then 9", "8", 0),
        (numeric, "1,23,4", "4", 1),
        (numeric, "3.0000001", "3", 1),
        (numeric, "3.001", "3", 0),
        (numeric, "no idea", "3", 0),
        (numeric, "#### 42", "because 6*7\n#### 42", 1),
    ],
)
def test_value(function: object, output: str, target: str, value: float) -> None:
    assert callable(function)
    assert function(output, target) == value


def test_a_target_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="no number"):
        numeric("3", "three")


def test_regex() -> None:
    assert scorer(r"regex:answer is (\w+)")("so the answer is B.", "B") == 1
    assert scorer(r"regex:answer is (\w+)")("so the answer is C.", "B") == 0
    assert scorer(r"regex:answer is (\w+)")("no", "B") == 0
    assert scorer(r"regex:\d+")("in 1984", "1984") == 1
    assert scorer(r"regex:a(b)?")("a", "") == 0
    with pytest.raises(InputError, match="regular expression"):
        scorer("regex:(")


def test_a_users_function() -> None:
    assert scorer("operator:eq")("a", "a") == 1.0
    assert scorer("os.path:samefile")(".", ".") == 1.0


@pytest.mark.parametrize(
    "name",
    ["", "nonsense", "no_such_module:f", "operator:no_such_function", "math:pi", ":", "operator:"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError):
        scorer(name)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    assert bits_per_byte(1.0, 0) is None


def test_multiple_choice() -> None:
    nats, sizes = [4.0, 6.0, 9.0], [2, 6, 6]
    assert multiple_choice(nats, sizes, 1) == 1
    assert multiple_choice(nats, sizes, 0, per_byte=False) == 1
    assert multiple_choice(nats, sizes, 2) == 0


def test_answer_index() -> None:
    choices = ["yes", "no", "2"]
    assert answer_index(" no ", choices) == 1
    assert answer_index("1", choices) == 1
    assert answer_index("2", choices) == 2
    assert answer_index("b", choices) == 1
    assert answer_index("perhaps", choices) is None
    assert answer_index("7", choices) is None
    assert answer_index("", choices) is None
