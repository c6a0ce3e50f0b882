"""Every effect, interval, p and verdict of a report, recomputed from Parquet by other code.

`oracle` knows the definitions and nothing of the product: numpy, pyarrow and the standard library.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle.agreement import Agreement, agreement
from oracle.bounded import Bounds
from oracle.swaps import Swaps
from oracle.trial import Trial
from planted_trials import (
    judged_again,
    plant_added,
    plant_seeds_exchanged,
    plant_steady_and_opposite,
    planted,
)
from stored_trial import restored

from cluster.results.results import Results
from jobs.report.report_data import report_data
from jobs.stats.permutation.bounded import limits_of
from jobs.stats.permutation.effects import ratio_effect

ORACLE = Path(__file__).parents[1] / "support" / "oracle"
DEMO = Path(__file__).parents[1] / "data" / "demo-trial"
ALLOWED = {
    "__future__", "collections", "dataclasses", "functools", "json", "math", "numpy", "oracle",
    "pathlib", "pyarrow", "typing",
}  # fmt: skip

NUM_EFFECTS = 26
"""Of a comparison; one more where a row failed."""


def agreed(results: Results) -> tuple[Agreement, dict[str, Any]]:
    report = report_data(results)
    return agreement(Trial(Path(results.output)), report), report


def words(report: dict[str, Any]) -> Counter[str]:
    rows = [row for each in report["comparisons"] for row in each["effects"]]
    return Counter(row["verdict"] for row in rows if row["verdict"] is not None)


def test_the_oracle_shares_no_code() -> None:
    files = sorted(ORACLE.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= ALLOWED, file.name


def test_the_demo(tmp_path: Path) -> None:
    """The demo as it ran, without the names of the machine."""
    restored(DEMO, tmp_path / "out")
    results = Results(str(tmp_path / "out"))
    found, report = agreed(results)
    assert found.faults == []
    compared = [c for c in results.plan().configurations if c.vs is not None]
    assert found.num_effects == NUM_EFFECTS * len(compared)
    assert len(found.words_near) <= found.num_words / 20
    assert words(report).keys() >= {"better", "inconclusive", "exactly equal"}


def test_one_data_set_whose_swaps_are_all_tried(tmp_path: Path) -> None:
    names = [
        "fast", "long", "dominant", "nothing-of-one", "missing", "one-failure", "failures", "cut",
        "apart",
    ]  # fmt: skip
    found, report = agreed(planted(tmp_path / "out", names, num_datasets=1, num_prompts=8))
    assert found.faults == []
    assert (found.num_effects, found.words_near) == (NUM_EFFECTS * 9 + 2, [])
    assert found.num_exact > 150
    assert words(report).keys() >= {
        "better", "worse", "lower", "higher", "equivalent", "exactly equal", "inconclusive",
        "withheld",
    }  # fmt: skip


def test_two_data_sets_whose_swaps_are_all_tried(tmp_path: Path) -> None:
    names = ["short", "half"]
    found, report = agreed(
        planted(tmp_path / "out", names, num_prompts=6, num_shards=6, seeds=(1,))
    )
    assert found.faults == []
    assert (found.num_effects, found.words_near) == (NUM_EFFECTS * 2, [])
    assert found.num_exact > 15
    assert words(report).keys() >= {"better", "lower"}


def test_two_data_sets_whose_swaps_are_drawn(tmp_path: Path) -> None:
    names = ["opposite", "dominant", "nothing-of-one", "missing"]
    found, report = agreed(planted(tmp_path / "out", names, num_prompts=10, seeds=(1,)))
    assert found.faults == []
    assert found.num_effects == NUM_EFFECTS * 4
    assert len(found.words_near) <= 2
    assert words(report).keys() >= {"mixed", "withheld", "inconclusive"}


def test_a_configuration_that_differs_from_itself(tmp_path: Path) -> None:
    names = ["again-slower", "fast"]
    found, report = agreed(planted(tmp_path / "out", names, num_prompts=8, seeds=(1,)))
    assert found.faults == []
    assert {alarm["metric"] for alarm in report["alarms"]} >= {"e2e_s", "completion_bytes_per_s"}
    assert words(report)["withheld"] > 5


def test_a_second_look_at_groups_of_prompts_and_prompts_that_were_added(tmp_path: Path) -> None:
    results = planted(
        tmp_path / "out", ["short", "long"], edit=plant_added, num_prompts=16, num_shards=4
    )
    judged_again(results)
    found, report = agreed(results)
    assert found.faults == []
    assert report["level"] == pytest.approx(0.1 * 0.8 * 0.2)
    short = {row["metric"]: row for row in reversed(report["comparisons"][0]["effects"])}
    assert short["completion_tokens"]["look"] == 1
    assert short["completion_tokens"]["verdict"] == "better"
    assert short["completion_bytes"]["num_clusters"] == 2 * (5 + 4)
    assert short["e2e_s"]["by_set"] is None


# --- what is left out of which number ------------------------------------------------------------

ONE_SEED: dict[str, Any] = {"seeds": (1,)}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "cold": ("time per byte divides what warm rows took by their own bytes", {}),
    "partly-missing": ("a rate divides what is there by the time of the same cells", {}),
    "not-a-number": ("units that cannot be used are no shards for an interval", ONE_SEED),
    "no-round": ("cells of results from before leases can have run apart", ONE_SEED),
    "seeds-exchanged": (
        "times are equal where rows are, and not where their means are alone",
        {"edit": plant_seeds_exchanged},
    ),
    "steady-and-opposite": (
        "data sets without any spread differ where their effects do",
        {"edit": plant_steady_and_opposite, "num_datasets": 2} | ONE_SEED,
    ),
    "fast": ("too few shards are not tested",
             {"num_prompts": 5, "num_shards": 5} | ONE_SEED),
    "dominant": ("an end is where p is, also behind a gap",
                 {"num_datasets": 2, "num_prompts": 6, "num_shards": 6}),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules_by_which_numbers_are_left_out(tmp_path: Path, name: str) -> None:
    options = {"num_datasets": 1, "num_prompts": 8, **RULES[name][1]}
    assert agreed(planted(tmp_path / "out", [name], **options))[0].faults == []


def sets_of(*pairs: tuple[list[float], list[float]]) -> tuple[Any, Swaps]:
    """The product's effect and the oracle's swaps of data sets' totals."""
    effect = ratio_effect(
        [x for a, _ in pairs for x in a],
        [x for _, b in pairs for x in b],
        strata=[i for i, (a, _) in enumerate(pairs) for _ in a],
    )
    totals = [np.array([a, np.ones(len(a)), b, np.ones(len(a))]) for a, b in pairs]
    return effect, Swaps(totals, is_log=True)


def test_an_interval_holds_0_where_p_is_above_5_percent() -> None:
    one = [20.0, 25.0, 30.0, 35.0], [21.0, 25.0, 29.0, 35.0]
    other = [20.0, 25.0, 30.0, 35.0], [14.0, 16.0, 20.0, 23.0]
    effect, swaps = sets_of(one, other)
    assert effect.p == swaps.p() == 0.125
    assert effect.high == pytest.approx(math.expm1(swaps.end(1.0)))
    assert effect.low <= 0 <= effect.high


def test_the_least_p_of_the_same_change_everywhere() -> None:
    sizes = [7.0, 9.0, 13.0, 10.0]
    effect, swaps = sets_of(*[(sizes, [0.9 * size for size in sizes])] * 2)
    assert effect.p == swaps.p() == 2.0**-7


def shares_of(plus: int, minus: int, size: int, num_rows: float = 1.0) -> np.ndarray[Any, Any]:
    """A data set's totals: who is right, of so many prompts of so many rows each."""
    a, b = np.zeros((2, size))
    b[:plus] = a[plus : plus + minus] = 1
    rows = np.full(size, num_rows)
    return np.stack([a, rows, b, rows])


@pytest.mark.parametrize(
    "sets",
    [
        [shares_of(0, 0, 40)], [shares_of(0, 3, 150)], [shares_of(2, 1, 60)],
        [shares_of(9, 5, 24)], [shares_of(0, 24, 24)], [shares_of(3, 1, 40, 3.0)],
        [shares_of(0, 2, 30), shares_of(1, 0, 90)], [shares_of(0, 0, 30), shares_of(0, 0, 90)],
    ],
)  # fmt: skip
def test_what_bounds_show_of_rare_effects(sets: list[np.ndarray[Any, Any]]) -> None:
    limits = limits_of(sets, [1 / len(sets)] * len(sets))
    bounds = Bounds(sets)
    for theta in (0.005, 0.02, 0.1, 0.4):
        assert limits.p_below(theta) == pytest.approx(bounds.p(theta, 1.0), rel=2e-3, abs=1e-9)
        assert limits.p_above(-theta) == pytest.approx(bounds.p(-theta, -1.0), rel=2e-3, abs=1e-9)
    ends = limits.interval(0.05)
    assert ends == pytest.approx((bounds.end(-1.0), bounds.end(1.0)), abs=1e-4)
