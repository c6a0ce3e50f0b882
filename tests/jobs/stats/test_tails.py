"""Effects on the slowest rows: p95 and p99, by swapping clusters and taking quantiles anew."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from test_verdicts import in_rounds
from trial_results import FASTER, Edit, configurations, make_results

import jobs.analysis.tails
from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.comparison import MetricEffect, compare
from jobs.analysis.tables import EFFECTS_FILE, rows_of_report, write_effects
from jobs.analysis.tails import tail_effects
from jobs.queries.sql import connect
from jobs.report.document import Fold, Table
from jobs.report.render.markdown import markdown
from jobs.report.render.terminal import print_report
from jobs.report.report_data import report_data
from jobs.report.sections.effects import effects
from jobs.stats.levels import Rows, binned
from jobs.stats.permutation.effect import IDENTICAL
from jobs.stats.permutation.effects import ratio_effect
from jobs.stats.permutation.tails import (
    MOST_SWAPS,
    TailTest,
    fewest_rows,
    swaps_of,
    tail_effect,
    tail_test,
)


def drawn(
    seed: int, num_clusters: int = 8, num_rows: int = 20, *, noise: float = 0.03, change: float = 0
) -> Rows:
    """Pairs alike in the length of their answers, whose clusters share noise on each side."""
    rng = np.random.default_rng(seed)
    shape = num_clusters, num_rows
    base = rng.lognormal(0, 0.4, shape)
    a, b = (
        base * rng.lognormal(0, noise, (num_clusters, 1)) * rng.lognormal(0, 0.1, shape)
        for _ in range(2)
    )
    clusters = np.repeat(np.arange(num_clusters), num_rows)
    return Rows(a.ravel(), b.ravel() * math.exp(change), clusters, num_clusters)


def by_hand(rows: Rows, q: float, theta: float) -> float:
    """The p of θ, with each swap's quantiles by numpy."""

    def statistic(swap: Any) -> float:
        is_swapped = swap[rows.clusters] > 0
        scaled = rows.reference * math.exp(theta)
        one = np.where(is_swapped, scaled, rows.other)
        two = np.where(is_swapped, rows.other, scaled)
        return abs(math.log(np.quantile(one, q) / np.quantile(two, q)))

    seen = statistic(np.zeros(rows.num_clusters))
    sizes = [statistic(swap) for swap in swaps_of(rows.num_clusters).T]
    return (sum(size >= seen - 1e-10 for size in sizes) + 1) / (len(sizes) + 1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_p_and_interval_are_those_of_quantiles_taken_anew(seed: int) -> None:
    rows = drawn(seed)
    test = tail_test([rows], 0.95)
    assert test.name == "cluster swaps"
    p = by_hand(rows, 0.95, 0.0)
    assert test.p == pytest.approx(p)
    low, high = test.interval()
    step = 0.01 * (high - low)
    for end, outwards in ((low, -1), (high, 1)):
        assert by_hand(rows, 0.95, end - outwards * step) > 0.05
        assert by_hand(rows, 0.95, end + outwards * step) <= 0.05
    assert (low <= 0 <= high) == (p > 0.05)


def test_many_swaps_are_drawn_and_stop_early() -> None:
    assert swaps_of(11).shape == (11, 2**10 - 1)
    assert swaps_of(24).shape == (24, MOST_SWAPS)
    rows = drawn(5, num_clusters=16)
    p = tail_test([rows], 0.95).p
    assert p > 0.3
    assert 101 / p - 1 == pytest.approx(round(101 / p - 1)), "a hundred extreme ones are enough"
    assert p == pytest.approx(by_hand(rows, 0.95, 0.0), abs=0.1)
    sure = tail_test([drawn(5, num_clusters=16, change=0.3)], 0.95)
    assert sure.p == 1 / (MOST_SWAPS + 1)


def test_identical_times_are_exactly_the_same() -> None:
    rows = drawn(1)
    same = Rows(rows.reference, rows.reference, rows.clusters, rows.num_clusters)
    for sets in ({"a": same}, {"a": same, "b": same}, {"a": binned(same, 0.005)}):
        effect = tail_effect(sets, 0.95).effect
        assert (effect.estimate, effect.low, effect.high) == (0.0, 0.0, 0.0)
        assert effect.identical
        assert effect.method == IDENTICAL


def test_the_same_change_everywhere_is_a_point() -> None:
    rows = drawn(1)
    slower = Rows(rows.reference, 1.2 * rows.reference, rows.clusters, rows.num_clusters)
    for sets in ({"a": slower}, {"a": slower, "b": slower}):
        effect = tail_effect(sets, 0.95).effect
        assert (effect.estimate, effect.low, effect.high) == pytest.approx((0.2, 0.2, 0.2))
        assert effect.p is not None
        assert effect.p <= 0.05


def test_a_slower_tail_is_found_that_the_mean_hides() -> None:
    rows = drawn(3, num_clusters=12, num_rows=100, noise=0.02)
    beyond = rows.other >= np.quantile(rows.other, 0.945)
    # What the slowest rows add is taken from all others, so that totals are the same.
    slow = np.where(beyond, 1.2 * rows.other, rows.other)
    slow[~beyond] *= (rows.other.sum() - slow[beyond].sum()) / slow[~beyond].sum()
    changed = Rows(rows.reference, slow, rows.clusters, rows.num_clusters)
    tail = tail_effect({"a": changed}, 0.95)
    mean = ratio_effect(rows.reference, slow, rows.clusters.tolist())
    assert mean.includes_zero
    assert tail.effect.low is not None
    assert 0 < tail.effect.low < 0.2 < (tail.effect.high or 0)
    assert tail.effect.p is not None
    assert tail.effect.p <= 0.05
    assert tail.reference == pytest.approx(np.quantile(rows.reference, 0.95))
    assert tail.other == pytest.approx(np.quantile(slow, 0.95))


@pytest.mark.parametrize("num_sets", [1, 2])
def test_false_alarms_are_5_percent(num_sets: int) -> None:
    """Of rows whose clusters share noise; 30 of 300 is beyond chance at 1 in 10,000."""
    found = [
        tail_test([drawn(1000 * i + k, noise=0.1) for k in range(num_sets)], 0.95).p <= 0.05
        for i in range(300)
    ]
    assert 3 <= sum(found) <= 30


def test_data_sets_that_differ_keep_their_error_rate_and_their_power() -> None:
    """At -18 % and +30 % a plain swap would take the difference for noise, and find nothing."""
    pairs = [
        [drawn(500 * i + k, num_rows=30, noise=0.05, change=change) for k, change in enumerate(by)]
        for i in range(100)
        for by in [(math.log(0.82), math.log(1.3))]
    ]
    truth = (math.log(0.82) + math.log(1.3)) / 2
    # 5 of 100 are expected; 14 is beyond chance at 1 in 1,000.
    assert sum(by_theta(sets, truth) <= 0.05 for sets in pairs) <= 14
    widths = np.array([[width(made(tuple(sets), 0.95)) for made in (TailTest, Plain)]
                       for sets in pairs[:8]])  # fmt: skip
    assert widths[:, 0].sum() < 0.75 * widths[:, 1].sum()
    effect = tail_effect(dict(zip("ab", pairs[0], strict=True)), 0.95).effect
    assert effect.method == "studentised cluster swaps"
    assert effect.by_set == pytest.approx({"a": -0.18, "b": 0.30}, abs=0.15)


class Plain(TailTest):
    """Without an error that is made anew."""

    is_studentised = False


def width(test: TailTest) -> float:
    low, high = test.interval()
    return high - low


def by_theta(sets: list[Rows], theta: float) -> float:
    """The p of θ."""
    return TailTest(tuple(shifted(each, math.exp(theta)) for each in sets), 0.95).p


def shifted(rows: Rows, by: float) -> Rows:
    return Rows(rows.reference, rows.other / by, rows.clusters, rows.num_clusters)


def test_bins_agree_with_rows_within_their_width() -> None:
    sets = {"a": drawn(1, 10, 400, change=0.1), "b": drawn(2, 10, 400, change=0.05)}
    for q in (0.95, 0.99):
        exact = tail_effect(sets, q).effect
        effect = tail_effect({n: binned(rows, 0.005) for n, rows in sets.items()}, q).effect
        assert effect.method == "studentised cluster swaps, bins of 0.5 %"
        for name in ("estimate", "low", "high"):
            assert getattr(effect, name) == pytest.approx(getattr(exact, name), abs=0.005)
        assert effect.num_units == exact.num_units == 8000


def test_many_rows_are_swapped_in_fine_bins() -> None:
    rows = drawn(1, 10, 3000)
    test = tail_test([rows], 0.95)
    assert test.name == "cluster swaps, bins of 0.1 %"
    exact = TailTest((rows,), 0.95)
    assert test.interval() == pytest.approx(exact.interval(), abs=0.003)


def test_more_clusters_than_are_swapped_are_joined() -> None:
    rows = drawn(1, 700, 4)
    [joined] = tail_test([rows], 0.95).sets
    assert joined.num_clusters == 256
    assert joined.sizes.sum() == joined.size == 2800
    bins = binned(rows, 0.001)
    assert bins.joined(256).sizes.tolist() == joined.sizes.tolist()


def tails_of(results: Results, name: str = "fast") -> dict[tuple[str, str], dict[str, Any]]:
    plan, connection = results.plan(), connect(results)
    try:
        found = compare(connection, plan.configuration(name), plan)
        return {(e.metric.name, e.statistic): _written(e) for e in tail_effects(connection, found)}
    finally:
        connection.close()


def _written(found: MetricEffect) -> dict[str, Any]:
    return found.effect.as_dict() | {"reference_mean": found.reference_mean, "mean": found.mean}


def make(folder: Path, edit: Edit | None, **options: Any) -> Results:
    """Enough rows for a p95 in few cells."""
    arms = [c for c in configurations() if c.name in ("baseline", "fast")]
    return make_results(folder, edit=edit, **{"arms": arms, "seeds": [1], "num_prompts": 120}
                        | options)  # fmt: skip


def spread(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Times that differ from row to row, alike under all configurations."""
    for i, row in enumerate(rows if cell.kind == "generations" else ()):
        draw = np.random.default_rng([cell.start + i, cell.seed or 0]).lognormal(0, 0.3)
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            row[name] *= draw


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make(tmp_path_factory.mktemp("tails") / "out", spread)


def test_a_report_says_how_the_slowest_rows_changed(results: Results) -> None:
    data = report_data(results)
    [comparison] = data["comparisons"]
    found = {(e["metric"], e["statistic"]): e for e in comparison["effects"]}
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        row, far = found[metric, "p95"], found[metric, "p99"]
        assert row["low"] <= FASTER - 1 <= row["high"] < 0
        assert row["mean"] / row["reference_mean"] == pytest.approx(1 + row["estimate"])
        assert (row["num_units"], row["num_clusters"]) == (240, 16)
        assert (row["verdict"], row["family"]) == (None, None)
        assert far["low"] is None
        assert far["reason"] == "120 rows per dataset, and 500 are needed for an interval of p99"
    out = io.StringIO()
    print_report(data, Console(file=out, width=200))
    assert "are needed for an interval of" not in out.getvalue()
    text = markdown(data)
    assert "time to first token, p95" in text
    assert text.count("500 are needed for an interval of p99") == 3
    [folded] = [part for part in effects(data).parts if isinstance(part, Fold)]
    [shown] = [p for p in folded.parts if isinstance(p, Table) and "slowest" in p.caption]
    assert shown.num_rows == 6
    write_effects(results, rows_of_report(data))
    table = pq.read_table(results.store.path(EFFECTS_FILE)).to_pylist()
    [written] = [r for r in table if (r["metric"], r["statistic"]) == ("e2e_s", "p95")]
    assert written["low"] == found["e2e_s", "p95"]["low"]


def test_few_rows_or_shards_give_the_number_that_is_needed(tmp_path: Path) -> None:
    assert (fewest_rows(0.95), fewest_rows(0.99)) == (100, 500)
    row = tails_of(make(tmp_path / "out", None, num_shards=4, num_prompts=48))["e2e_s", "p95"]
    assert row["estimate"] == pytest.approx(-0.1, abs=0.05)
    assert (row["low"], row["p"]) == (None, None)
    assert row["reason"] == (
        "48 rows per dataset, and 100 are needed for an interval of p95; "
        "4 shards per dataset, and 8 are needed for an interval"
    )


@pytest.fixture(scope="module")
def leases(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make(tmp_path_factory.mktemp("leases") / "out", in_rounds(8, 0.01))


def test_in_leases_rounds_are_swapped_in_all_data_sets_at_once(
    leases: Results, tmp_path: Path
) -> None:
    row = tails_of(leases)["ttft_s", "p95"]
    assert row["num_clusters"] == 8
    assert row["method"] == "cluster swaps"
    assert row["p"] == 2**-7, "every round was faster, and 127 swaps are all there are"
    assert row["estimate"] == pytest.approx(FASTER - 1, abs=0.02)
    assert row["low"] <= row["estimate"] <= row["high"] < 0
    few = make(tmp_path / "few", in_rounds(3, 0.01), num_datasets=1)
    reason = tails_of(few)["ttft_s", "p95"]["reason"]
    assert reason == "3 rounds of leases, and 6 are needed for an interval: `workers.rounds`"


@pytest.mark.parametrize("name", ["results", "leases"])
def test_counts_in_bins_are_those_of_the_rows(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs.analysis.tails, "tail_effect", kept(given))
    exact = tails_of(request.getfixturevalue(name))
    monkeypatch.setattr(jobs.analysis.tails, "MOST_ROWS", 0)
    counted = tails_of(request.getfixturevalue(name))
    assert len(given) == 12
    for sets, in_bins in zip(given[:6], given[6:], strict=True):
        assert list(sets) == list(in_bins) == ["set0", "set1"]
        for each, sample in sets.items():
            wanted = binned(sample, 0.005)
            assert in_bins[each].first == wanted.first
            assert (in_bins[each].num == wanted.num).all()
    for key, row in counted.items():
        for field in ("num_units", "num_clusters", "num_left_out", "reason", "identical"):
            assert row[field] == exact[key][field]
        # Each side's quantile is known to half a per cent.
        assert row["estimate"] == pytest.approx(exact[key]["estimate"], abs=0.01)


def kept(given: list[dict[str, Any]]) -> Callable[..., Any]:
    """`tail_effect`, which keeps what it is given."""

    def found(sets: dict[str, Any], *args: Any, **options: Any) -> Any:
        given.append(sets)
        return tail_effect(sets, *args, **options)

    return found


def test_rows_without_a_time_are_left_out(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows if cell.kind == "generations" else ():
            if cell.configuration == "fast" and row["prompt_id"] == "p000":
                row["tpot_s"] = None
            row["warmup"] = row["prompt_id"] == "p001"

    found = tails_of(make(tmp_path / "out", edit, num_datasets=1))
    assert (found["tpot_s", "p95"]["num_units"], found["tpot_s", "p95"]["num_left_out"]) == (118, 1)
    assert (found["e2e_s", "p95"]["num_units"], found["e2e_s", "p95"]["num_left_out"]) == (119, 0)


def test_one_cluster_says_nothing_and_raises_nothing() -> None:
    effect = tail_effect({"a": drawn(1, 1, 200)}, 0.95).effect
    assert (effect.low, effect.high, effect.p) == (None, None, 1.0)
    assert effect.reason is not None
    assert tail_effect({}, 0.95).effect.reason == "there are no pairs"
