"""The report: planted effects are found, and no state of a trial breaks it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from trial_results import FASTER, FEWER, configurations, make_results

from cluster.plan import Cell, Configuration, OptimizationSettings
from cluster.results.results import Results, write_prompts
from jobs.analysis.comparison import MAIN_STATISTICS
from jobs.analysis.tables import EFFECTS, EFFECTS_FILE, write_effects
from jobs.report.render.terminal import report
from jobs.report.report_data import report_data
from optim.names import names, stage_of
from optim.registry import BUILT_IN, kind_of


def printed(results: Results, width: int = 100) -> str:
    out = io.StringIO()
    report(results, Console(file=out, width=width))
    return out.getvalue()


def effects_of(data: dict[str, Any], configuration: str) -> dict[str, Any]:
    comparison = next(c for c in data["comparisons"] if c["configuration"] == configuration)
    return {e["metric"]: e for e in comparison["effects"] if e["statistic"] in MAIN_STATISTICS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def data(results: Results) -> dict[str, Any]:
    found = report_data(results)
    json.dumps(found, allow_nan=False)
    return found


def test_planted_effects_are_found(data: dict[str, Any]) -> None:
    fast, short = effects_of(data, "fast"), effects_of(data, "short")
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert fast[metric]["low"] <= FASTER - 1 <= fast[metric]["high"]
        assert fast[metric]["high"] < 0
        assert fast[metric]["num_clusters"] == 16
    rate = fast["completion_bytes_per_s"]
    assert rate["low"] <= 1 / FASTER - 1 <= rate["high"]
    assert fast["completion_tokens"]["identical"]
    assert fast["kv_committed_peak_bytes"]["estimate"] == pytest.approx(-0.1)
    assert short["completion_tokens"]["estimate"] == pytest.approx(FEWER - 1, abs=0.01)
    assert short["bits_per_byte"]["estimate"] == pytest.approx(1)
    again = effects_of(data, "again")
    assert again["completion_tokens"]["identical"]
    assert again["e2e_s"]["low"] < again["e2e_s"]["high"]


def test_the_duplicate_comes_first_and_texts_are_counted(data: dict[str, Any]) -> None:
    found = [(c["configuration"], c["texts"]["differing"]) for c in data["comparisons"]]
    assert found == [("again", 0), ("fast", 0), ("short", 96)]
    assert data["comparisons"][0]["is_duplicate"]
    assert all(c["texts"]["compared"] == 96 for c in data["comparisons"])


def test_means_are_numpys(results: Results, data: dict[str, Any]) -> None:
    rows = results.read("generations").to_pylist()
    values = [r["e2e_s"] for r in rows if r["configuration"] == "fast"]
    fast = next(c for c in data["configurations"] if c["configuration"] == "fast")
    found = fast["metrics"]["e2e_s"]
    assert found["p50_low"] < found["p50"] < found["p50_high"]
    assert found["p95_high"] is None, "48 prompts bound no 95th percentile from above"
    assert {name: found[name] for name in ("n", "mean", "p50", "p95")} == pytest.approx(
        {
            "n": 96,
            "mean": np.mean(values),
            "p50": np.median(values),
            "p95": np.percentile(values, 95),
        }
    )


def test_the_effect_is_the_data_sets_mean_of_ratios_of_totals(
    results: Results, data: dict[str, Any]
) -> None:
    totals: dict[tuple[str, str], float] = {}
    for row in results.read("generations").to_pylist():
        key = row["configuration"], row["dataset"]
        totals[key] = totals.get(key, 0.0) + row["e2e_s"]
    logs = [math.log(totals["short", d] / totals["baseline", d]) for d in ("set0", "set1")]
    estimate = effects_of(data, "short")["e2e_s"]["estimate"]
    assert estimate == pytest.approx(math.expm1(sum(logs) / 2))


def test_the_text(results: Results) -> None:
    text = printed(results)
    first = text.partition("\n\n")[0]
    assert text.startswith("Did anything change? Bits per byte of targets worse: short +1.000;")
    assert "texts differ in short" in first
    assert "demo on cpu" in text
    assert "0 of 96 texts differ: tokens are exactly the same" in " ".join(text.split())
    assert "the same configuration twice" in text
    assert "includes 0" in text
    assert "…" not in text, "nothing is cut off at 100 columns"
    assert all(len(line) <= 100 for line in text.splitlines())


def test_seeds_that_one_side_lacks_enter_neither_mean(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        if cell.kind == "generations" and cell.seed == 2:
            for row in rows:
                row["completion_tokens"] *= 100
            return cell.configuration != "again"
        return True

    results = make_results(tmp_path / "out", edit=edit, arms=configurations()[:2])
    data = report_data(results)
    assert effects_of(data, "again")["completion_tokens"]["identical"]
    assert data["trial"]["cells_done"] < data["trial"]["cells_planned"]
    assert f"{data['trial']['cells_done']} of {data['trial']['cells_planned']}" in printed(results)


def test_too_few_shards_withhold_time_and_not_tokens(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", num_shards=3)
    fast, short = (effects_of(report_data(results), name) for name in ("fast", "short"))
    assert fast["e2e_s"]["estimate"] == pytest.approx(FASTER - 1, abs=0.02)
    assert fast["e2e_s"]["low"] is None
    assert "3 shards per dataset, and 8 are needed" in fast["e2e_s"]["reason"]
    assert short["completion_tokens"]["low"] is not None
    assert "3 shards per dataset" in " ".join(printed(results).split())


def test_clusters_of_the_dataset_are_used_for_tokens(tmp_path: Path) -> None:
    results = make_results(tmp_path / "out", num_datasets=1)
    prompts = [p | {"cluster": f"c{p['row'] % 6}"} for p in results.prompts().to_pylist()]
    write_prompts(results.store, prompts)
    short = effects_of(report_data(results), "short")
    assert short["completion_tokens"]["num_clusters"] == 6
    assert short["e2e_s"]["num_clusters"] == 8


def test_a_duplicate_that_differs_is_said(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.configuration == "again" and cell.kind == "generations" and cell.shard == 0:
            rows[0]["completion_text"] = "another"

    results = make_results(tmp_path / "out", edit=edit, num_datasets=1, seeds=(1,))
    assert "1 of 24 texts differ, although nothing was changed" in " ".join(
        printed(results).split()
    )


def all_errors(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    if cell.kind == "generations":
        metrics = [name for name in rows[0] if name.endswith(("_s", "tokens", "bytes", "text"))]
        for row in rows:
            row |= dict.fromkeys(metrics, None) | {"error": "no", "finish_reason": "error"}
        facts |= dict.fromkeys(("completion_tokens", "completion_bytes", "wall_s"), 0)


def all_cold(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for row in rows:
        if cell.kind == "generations":
            row["warmup"] = True


def no_facts(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    for name in list(facts):
        if name not in ("key", "kind", "configuration", "dataset", "shard", "seed"):
            del facts[name]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"edit": lambda *_: False}, "There are no rows yet"),
        ({"edit": all_errors}, "Every row has an error"),
        ({"edit": all_cold}, "verdicts open"),
        ({"edit": no_facts}, "Did anything change?"),
        ({"edit": lambda cell, *_: cell.kind == "likelihoods"}, "There are no rows yet"),
        ({"seeds": (1,)}, "1 seed "),
        ({"arms": configurations()[:1]}, "One configuration alone"),
        ({"num_prompts": 1, "num_shards": 1}, "Did anything change?"),
        ({"scorers": ("no_such_module:f",)}, "there are no scores"),
        ({"edit": lambda cell, *_: cell.configuration != "baseline"}, "nothing to compare yet"),
    ],
)
def test_no_state_of_a_trial_breaks_the_report(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    small = {"num_datasets": 1, "num_prompts": 8, "num_shards": 2}
    results = make_results(tmp_path / "out", **{**small, **options})
    json.dumps(report_data(results), allow_nan=False)
    assert expected in " ".join(printed(results).split())
    write_effects(results)


def test_effects_table(results: Results) -> None:
    write_effects(results)
    table = pq.read_table(results.store.path(EFFECTS_FILE))
    assert table.column_names == [c.name for c in EFFECTS]
    assert all((field.metadata or {}).get(b"meaning") for field in table.schema)
    found = {(r["configuration"], r["metric"], r["statistic"]): r for r in table.to_pylist()}
    row = found["fast", "e2e_s", "geometric mean"]
    assert row["low"] <= FASTER - 1 <= row["high"]
    assert row["vs"] == "baseline"


def test_a_memory_difference_names_its_rival(tmp_path: Path) -> None:
    arms = [
        Configuration(name="baseline", cache="static"),
        Configuration(
            name="fast", vs="baseline", optimizations=(OptimizationSettings(name="vattention"),)
        ),
    ]
    arms = [arm.model_copy(update={"fingerprint": arm.name}) for arm in arms]
    results = make_results(tmp_path / "out", arms=arms)
    said = " ".join(printed(results).split())
    assert "KV memory held at the peak (vattention against a static cache) better, -10.0 %" in said
    [comparison] = report_data(results)["comparisons"]
    assert list(comparison["caches"]) == ["vattention", "static"]


def test_memory_that_needs_a_word_gets_one(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        if cell.kind == "generations" and cell.configuration == "fast":
            rows[0] |= {"prefill_shared": "copied", "num_preemptions": 2}
            rows[1] |= {"prefill_shared": "mapped"}
            facts |= {"kv_books_bytes": 4096, "kv_system_bytes": 8192}
        elif cell.configuration == "short":
            facts |= {"kv_books_bytes": 4096, "kv_system_bytes": 4096}

    results = make_results(tmp_path / "out", edit=edit)
    notes = report_data(results)["notes"]
    [shared, short, audit] = [note for note in notes if not note.startswith("False alarms")]
    cells = 2 * 8 * 2
    assert shared.startswith(f"Prompts were shared: {2 * cells} of 384 rows")
    assert f"({cells} by copying it)" in shared
    assert short.startswith(f"KV memory was short: {cells} rows had to be begun again")
    assert f"KV memory of fast cannot be trusted: in {cells} cells" in audit
    assert "up to 4 KiB" in audit.replace("4.000 KiB", "4 KiB")


def test_what_failed_is_no_memory_saved(tmp_path: Path) -> None:
    def edit(cell: Cell, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        facts["num_errors"] = 0
        if cell.kind == "generations" and cell.configuration == "fast" and cell.shard != 3:
            facts |= {"num_errors": 2, "kv_committed_peak_bytes": 0}

    data = report_data(make_results(tmp_path / "out", edit=edit))
    fast = effects_of(data, "fast")["kv_committed_peak_bytes"]
    assert fast["estimate"] == pytest.approx(-0.1)
    assert fast["num_units"] == 2


def test_names_and_stages_are_known_without_loading_what_they_name() -> None:
    assert names() == sorted(BUILT_IN)
    assert {name: stage_of(name) for name in names()} == {
        name: kind_of(name).stage for name in BUILT_IN
    }
    assert stage_of("unknown") is None
    loaded = "sorted({'torch', 'transformers'} & {*sys.modules})"
    probe = f"import sys, jobs.report.render.terminal, jobs.report.explain; print({loaded})"
    said = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120
    )
    assert said.stdout.strip() == "[]", "to read a report takes no torch"
