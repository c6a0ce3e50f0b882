"""The numbers that only the page has: distributions, memory over time, the front, and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_results import make_results

from cluster.plan import Cell
from cluster.results.results import Results
from jobs.queries.distributions import NUM_BINS, distributions, memory_over_time
from jobs.queries.sql import connect
from jobs.report.page_data import MOST_CHARS, NUM_SAMPLES, samples
from jobs.report.tradeoff import front

SMALL: dict[str, Any] = {"num_datasets": 1, "num_prompts": 16}


def spoil(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """One row that failed and one of a cold engine, whose time says nothing."""
    if (cell.kind, cell.configuration, cell.shard) == ("generations", "fast", 0):
        rows[0] |= {"error": "no", "completion_tokens": 10**6, "e2e_s": 1e6}
        rows[1] |= {"warmup": True, "e2e_s": 1e6}


def test_distributions_are_numpys(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", edit=spoil, **SMALL)
    rows = [r for r in results.read("generations").to_pylist() if r["configuration"] == "fast"]
    whole = [r for r in rows if r["error"] is None]
    values = {
        "completion_tokens": [r["completion_tokens"] for r in whole],
        "e2e_s": [r["e2e_s"] for r in whole if not r["warmup"]],
        "e2e_s_per_byte": [r["e2e_s"] / r["completion_bytes"] for r in whole if not r["warmup"]],
    }
    found = distributions(connect(results))
    for metric, expected in values.items():
        one = found[metric]["fast"]
        assert one["n"] == len(expected)
        mean = np.mean(expected)
        if metric == "e2e_s_per_byte":  # the ratio of totals, as wherever it is named
            timed = [r for r in whole if not r["warmup"]]
            mean = sum(values["e2e_s"]) / sum(r["completion_bytes"] for r in timed)
        assert one["mean"] == pytest.approx(mean)
        assert one["quantiles"] == pytest.approx(np.quantile(expected, np.linspace(0, 1, 101)))
    assert found["kv_committed_peak_bytes"]["fast"]["quantiles"] == [9000] * 101


def test_memory_is_binned_by_when_cells_began(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        facts |= {
            "started_at": f"2026-01-02T03:0{cell.shard}:00+00:00",
            "wall_s": 2.0,
            "kv_committed_byte_s": 100.0 * (cell.shard + 1),
            "kv_used_byte_s": None,
        }

    found = memory_over_time(connect(make_results(tmp_path / "out", edit=edit, **SMALL)))
    assert found["span_s"] == 7 * 60
    assert found["bin_s"] == pytest.approx(7 * 60 / (NUM_BINS - 1))
    series = found["series"]["fast"]
    assert series["t_s"] == pytest.approx([60 * i for i in range(8)], abs=found["bin_s"])
    # Two seeds of a shard began at once: their byte-seconds over their seconds.
    assert series["committed_mean"] == pytest.approx([50.0 * (i + 1) for i in range(8)])
    assert series["committed_peak"] == [9000] * 8
    assert series["used_mean"] == [None] * 8


def edit_quality(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """`short` is worse in everything, `fast` in nothing: only it is on the front."""
    if cell.configuration == "short":
        for row in rows:
            if "e2e_s" in row:
                row["e2e_s"] *= 3
        facts["kv_committed_peak_bytes"] = 20000


def test_what_is_worse_in_all_is_never_on_the_front(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", edit=edit_quality)
    found = front(connect(results), results.plan())
    assert found["objectives"] == ["bits_per_byte", "e2e_s_per_byte", "kv_committed_peak_bytes"]
    assert found["num_units"] == 16
    points = {p["configuration"]: p for p in found["points"]}
    assert list(points) == ["baseline", "fast", "short"], "the repeat is no rival"
    assert [p["probability"] for p in points.values()] == [0.0, 1.0, 0.0]
    assert [p["is_on_front"] for p in points.values()] == [False, True, False]
    assert points["baseline"]["bits_per_byte"] == pytest.approx(1.0)
    assert points["short"]["bits_per_byte"] == pytest.approx(2.0)
    assert points["fast"]["kv_committed_peak_bytes"] == 9000


def test_an_objective_that_one_lacks_is_left_out(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows:
            if cell.configuration == "fast" and "nats" in row:
                row["nats"] = float("nan")

    results = make_results(tmp_path / "out", edit=edit, **SMALL)
    assert front(connect(results), results.plan())["objectives"] == [
        "e2e_s_per_byte", "kv_committed_peak_bytes",
    ]  # fmt: skip


def sampled(results: Results) -> list[dict[str, Any]]:
    return samples(connect(results), results.plan())


def test_samples_are_few_fixed_and_those_that_differ(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        for row in rows:
            if "completion_text" in row:
                other = cell.configuration == "short" and row["prompt_id"] in ("p003", "p007")
                row["completion_text"] = "x" * 2000 + ("b" if other else "a")

    results = make_results(tmp_path / "out", edit=edit)
    found = sampled(results)
    assert len(found) == NUM_SAMPLES
    assert found == sampled(results)
    assert {s["dataset"] for s in found} == {"set0", "set1"}
    assert {s["prompt_id"] for s in found[:4]} == {"p003", "p007"}
    texts = {t["configuration"]: t for t in found[0]["texts"]}
    assert texts["short"]["differs_at"] == 2000
    assert len(texts["short"]["text"]) == MOST_CHARS
    assert texts["short"]["num_chars"] == 2001
    assert texts["fast"]["differs_at"] is None
    assert texts["fast"]["is_compared"]
    assert not texts["baseline"]["is_compared"]
    assert found[0]["prompt"] == f"question {int(found[0]['prompt_id'][1:])}"
