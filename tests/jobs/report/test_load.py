"""How full batches were: counted by the engine, kept with the cell, said where it is low."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console
from trial_results import Edit, configurations, make_results

from cluster.engine.completion import Request
from cluster.engine.engine import Engine
from cluster.engine.prefixes import PrefixStore
from cluster.engine.sampling import SamplingParams
from cluster.plan import Cell
from cluster.results.results import Results
from jobs.analysis.guards.load import Load, load_pair, loads, slot_steps
from jobs.queries.sql import connect
from jobs.queries.summary import summary_rows
from jobs.report.notes.load import load_notes
from jobs.report.render.markdown import markdown
from jobs.report.render.terminal import print_report
from jobs.report.report_data import report_data


def requests(lengths: list[int]) -> list[Request]:
    """Prompts whose completions have these lengths: the tiny model never ends by itself."""
    return [
        Request(str(i), f"prompt {i}", SamplingParams(max_new_tokens=length))
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "num_slots", "held"),
    [
        ([5, 5, 5], 4, (12, 16)),  # three of four slots in each of four steps
        ([5, 5, 5, 5, 5], 4, (20, 32)),  # one is left for four more
        ([9, 3, 3, 3, 3], 2, (16, 16)),  # the short ones refill one slot
        ([1, 1, 1], 2, (0, 0)),  # a prefill gives the only token
        ([1, 4], 1, (3, 3)),
    ],
)
def test_slots_are_counted_as_the_engine_fills_them(
    lengths: list[int], num_slots: int, held: tuple[int, int]
) -> None:
    assert slot_steps(lengths, num_slots) == held
    engine = Engine(tiny_models.model("llama"), batch_size=num_slots)
    made = [len(c.ids) for c in engine.generate(requests(lengths))]
    assert sorted(made) == sorted(lengths)
    stats = engine.stats
    assert (stats.num_slot_steps, stats.num_steps * num_slots) == held


def test_a_prompt_that_is_filled_in_by_chunks_holds_its_slot() -> None:
    engine = Engine(tiny_models.model("llama"), batch_size=2, prefill_chunk=4)
    [one, other] = requests([9, 3])
    long = Request("1", "x" * 16, other.params)  # four chunks, a step of the other after each
    list(engine.generate([one, long]))
    # The first one's prompt has two chunks, and steps begin once it is through.
    assert engine.stats.num_steps == 8
    assert engine.stats.num_slot_steps == 8 + 3 + 2


def test_shared_prompts_are_counted_alike() -> None:
    engine = Engine(tiny_models.model("llama"), batch_size=4, prefixes=PrefixStore())
    params = SamplingParams(max_new_tokens=5)
    list(engine.generate([Request("p", "same", params, seed) for seed in range(3)]))
    assert (engine.stats.num_slot_steps, engine.stats.num_steps) == (12, 4)


# --- what a report says of it ---------------------------------------------------------------------

SHARES = {"baseline": 0.5, "again": 0.5, "fast": 0.625, "short": 0.95}


def with_shares(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if cell.kind == "generations":
        # Twice the steps in the first shard, where slots were emptier: they weigh twice.
        first = cell.shard == 0
        share = SHARES[cell.configuration] - (0.1 if first else 0)
        facts |= {"num_steps": 20 if first else 10, "mean_occupied_share": share}


def mean_of(name: str) -> float:
    return (2 * (SHARES[name] - 0.1) + 3 * SHARES[name]) / 5


def small(folder: Path, edit: Edit, names: tuple[str, ...] = ("baseline", "fast")) -> Results:
    arms = [c for c in configurations() if c.name in names]
    return make_results(folder / "out", edit=edit, arms=arms, num_prompts=12, num_shards=4)


def notes_of(results: Results) -> list[str]:
    connection = connect(results)
    return load_notes(connection, results.plan(), loads(connection))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small(tmp_path_factory.mktemp("load"), with_shares, tuple(SHARES))


@pytest.fixture(scope="module")
def data(results: Results) -> dict[str, Any]:
    return report_data(results)


def test_a_configuration_s_share_weighs_steps(results: Results, data: dict[str, Any]) -> None:
    found = loads(connect(results))
    assert set(found) == set(SHARES)
    for name, load in found.items():
        assert load == Load(pytest.approx(mean_of(name)), 3, 3, 16, 0)  # type: ignore[arg-type]
    for each in data["configurations"]:
        assert each["mean_occupied_share"] == pytest.approx(mean_of(each["configuration"]))


def test_the_summary_has_it_of_cells(results: Results) -> None:
    rows = [r for r in summary_rows(connect(results)) if r["metric"] == "mean_occupied_share"]
    [row] = [r for r in rows if r["configuration"] == "fast" and r["dataset"] == "*"]
    assert (row["of"], row["n"]) == ("cell", 16)
    assert row["mean"] == pytest.approx(mean_of("fast"))
    assert (row["min"], row["max"]) == (pytest.approx(0.525), pytest.approx(0.625))


def test_low_shares_and_sides_that_differ_are_said(results: Results, data: dict[str, Any]) -> None:
    low, apart = notes_of(results)
    assert low == (
        "Slots were 52 % occupied on average (baseline 46 %, fast 58 %): shards of 3 prompts "
        "cannot fill batches of 8. Larger shards fill them better: more prompts, or fewer `shards` "
        "(`optrial plan` says how many the verdicts need)."
    )
    assert apart == (
        "Load differs, so throughput compares loads as well: short 91 % of its slots occupied, "
        "baseline 46 %; fast 58 % of its slots occupied, baseline 46 %."
    )
    assert {low, apart} < set(data["notes"])
    assert "baseline 46 %, fast 58 %" in markdown(data)
    out = io.StringIO()
    print_report(data, Console(file=out, width=100))
    assert "(baseline 46 %, fast 58 %): shards of 3 prompts" in " ".join(out.getvalue().split())


def test_full_and_equal_batches_get_no_word(tmp_path: Path) -> None:
    def full(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations":
            share = 0.8 if cell.configuration == "fast" else 0.84
            facts |= {"num_steps": 10, "mean_occupied_share": share}

    assert notes_of(small(tmp_path, full)) == []


def test_cells_without_it_are_left_out_and_counted(tmp_path: Path) -> None:
    def later(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations":
            facts["num_steps"] = 10
            if cell.seed == 2:
                facts["mean_occupied_share"] = 0.25 if cell.configuration == "fast" else 0.5

    low, apart = notes_of(small(tmp_path, later))
    assert "baseline 50 %, fast 25 %" in low
    assert low.endswith("This is of 16 of 32 cells: the others were run before it was recorded.")
    assert "fast 25 % of its slots occupied, baseline 50 %" in apart


def test_trials_without_it_say_nothing_of_it(tmp_path: Path) -> None:
    results = small(tmp_path, lambda cell, rows, facts: None)
    assert notes_of(results) == []
    connection = connect(results)
    assert loads(connection) == {}
    assert load_pair(connection, "fast", "baseline") is None
    assert "mean_occupied_share" not in {r["metric"] for r in summary_rows(connection)}


def test_calls_of_several_cells_count_once(tmp_path: Path) -> None:
    def joint(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations":
            # Of the first data set calls of two seeds; of the other one each.
            is_joint = cell.dataset == "set0"
            facts |= {"joint_cells": 2 if is_joint else 1, "num_steps": 10}
            facts["mean_occupied_share"] = 0.2 if is_joint else 0.5

    found = loads(connect(small(tmp_path, joint)))
    assert found["fast"] == Load(pytest.approx(0.4), 3, 6, 16, 0)  # type: ignore[arg-type]
