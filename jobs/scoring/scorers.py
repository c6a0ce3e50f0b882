"""How well an output answers: pure functions `(output, target) -> float`, 1 is right and 0 wrong.

Scores are derived when results are read, so a new scorer costs no model time. The two that a model
gives, `bits_per_byte` and `multiple_choice`, take likelihoods instead of outputs.
"""

from __future__ import annotations

import importlib
import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

from optim.errors import InputError

Scorer = Callable[[str, str], float]


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# An optional sign; digits with or without thousands separators; decimals; exponent; percent.
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+)?%?"
)
NUMERIC_TOLERANCE = 1e-6
"""Relative, and absolute near zero."""


def exact(output: str, target: str) -> float:
    """1 where output equals target, whitespace at either end apart."""
    return float(output.strip() == target.strip())


def normalised(output: str, target: str) -> float:
    """1 where both are equal after Unicode NFKC, case folding, and without punctuation, English
    articles and repeated white space (the normalisation of SQuAD, Rajpurkar et al. 2016)."""
    return float(_normal(output) == _normal(target))


def contains(output: str, target: str) -> float:
    """1 where the target occurs in the output, both Unicode NFKC and case-folded."""
    return float(_folded(target).strip() in _folded(output))


def numeric(output: str, target: str) -> float:
    """1 where the last number in the output equals the last one in the target.

    Thousands separators, signs, decimals, exponents and a percent sign are understood; 50% equals
    both 0.5 and 50, because answers name percentages either way. A target without a number is an
    error of the data, not a wrong answer.
    """
    wanted, found = _last_number(target), _last_number(output)
    if wanted is None:
        raise ValueError(f"the target has no number: {target[:40]!r}")
    if found is None:
        return 0.0
    readings = [(x, y) for x in _readings(found) for y in _readings(wanted)]
    return float(
        any(math.isclose(x, y, rel_tol=NUMERIC_TOLERANCE, abs_tol=1e-9) for x, y in readings)
    )


def regex(pattern: str) -> Scorer:
    """1 where the first group of `pattern` (or all of it) in the output equals the target.

    Found anywhere in the output, first match; white space at either end apart.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"not a regular expression: {error}", field=f"regex:{pattern}") from error

    def score(output: str, target: str) -> float:
        match = compiled.search(output)
        if match is None:
            return 0.0
        found = match.group(1) if compiled.groups else match.group(0)
        return float(found is not None and found.strip() == target.strip())

    return score


def bits_per_byte(nats: float, num_bytes: int) -> float | None:
    """-log2 p(target | prompt) / UTF-8 bytes: lower is better, comparable across vocabularies."""
    return nats / math.log(2) / num_bytes if num_bytes > 0 else None


def multiple_choice(
    nats: Sequence[float], num_bytes: Sequence[int], answer: int, *, per_byte: bool = True
) -> float:
    """1 where the choice that the model finds likeliest is the answer's index.

    `per_byte` divides by UTF-8 bytes, so that long choices are not at a disadvantage (lm-eval's
    `acc_bytes`; without it, `acc`). The first of equals wins.
    """
    costs = [
        cost / max(1, size) if per_byte else cost
        for cost, size in zip(nats, num_bytes, strict=True)
    ]
    return float(min(range(len(costs)), key=costs.__getitem__) == answer)


def answer_index(target: str, choices: Sequence[str]) -> int | None:
    """Which choice a target means: by its text, else by its index from 0, else by its letter."""
    text = target.strip()
    for index, choice in enumerate(choices):
        if choice.strip() == text:
            return index
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    if len(text) == 1 and 0 <= ord(text.upper()) - ord("A") < len(choices):
        return ord(text.upper()) - ord("A")
    return None


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "normalised": normalised,
    "contains": contains,
    "numeric": numeric,
}


def scorer(name: str) -> Scorer:
    """The scorer of a name: a built-in one, `regex:PATTERN`, or `package.module:function`.

    A module is imported only here, so only where somebody named it.
    """
    if name in SCORERS:
        return SCORERS[name]
    if name.startswith("regex:"):
        return regex(name.removeprefix("regex:"))
    if ":" in name:
        return _imported(name)
    raise InputError(
        f"there is no scorer {name!r}",
        field="scorers",
        mend=f"Use {', '.join(SCORERS)}, regex:PATTERN or package.module:function",
    )


def _imported(name: str) -> Scorer:
    module_name, _, function_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # A user's module may fail in any way while it is imported.
        raise InputError(
            f"cannot import {name!r}: {type(error).__name__}: {error}", field="scorers"
        ) from error
    if not callable(found):
        raise InputError(f"{name!r} is not a function", field="scorers")

    def score(output: str, target: str) -> float:
        return float(found(output, target))

    return score


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", _folded(text).translate(_PUNCTUATION)).split())


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _readings(number: str) -> tuple[float, ...]:
    value = float(number.rstrip("%").replace(",", "").replace("\u2212", "-"))
    return (value, value / 100) if number.endswith("%") else (value,)
