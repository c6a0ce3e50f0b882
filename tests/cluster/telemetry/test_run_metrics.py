"""Metrics: what Prometheus reads from a node is what the run came to, and nothing breaks a run."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from program import Run

from cluster.results.results import Results
from cluster.telemetry import ray_metrics as run_metrics
from cluster.telemetry.progress import Progress
from cluster.telemetry.ray_metrics import (
    MEASURES,
    RUN_MEASURES,
    WORKER_MEASURES,
    RunMetrics,
    WorkerMetrics,
)

DASHBOARD = Path(run_metrics.__file__).parents[1] / "deploy" / "grafana.json"


def scraped(**labels: str) -> dict[str, float]:
    """Metric -> value, of those with these labels, on all nodes."""
    found: dict[str, float] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            name, _, rest = line.partition("{")
            if name.startswith("ray_optrial_") and all(
                f'{key}="{value}"' in rest for key, value in labels.items()
            ):
                found[name] = float(rest.rpartition(" ")[2])
    return found


def until_scraped(is_right: Callable[[dict[str, float]], bool], **labels: str) -> dict[str, float]:
    """What is exported, as soon as it is right; nodes export it every few seconds."""
    deadline = time.monotonic() + 120
    while True:
        found = scraped(**labels)
        if is_right(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


@pytest.mark.usefixtures("ray_cluster")
def test_a_runs_numbers_are_scraped(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": f"prompt {i}"} for i in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": None}]))
    spec = {
        "max_row_errors": 0.2,
        "model": str(tiny_model_folder),
        "datasets": [{"path": str(prompts), "shards": 3}],
        "configurations": [{"name": "baseline"}],
        "seeds": 2,
        "generation": {"max_new_tokens": 5},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(spec))
    code, _, err = run("evaluate", path)
    assert code == 0, err
    results = Results(str(tmp_path / "out"))
    table = results.read("generations").to_pylist()
    tokens = sum(row["completion_tokens"] or 0 for row in table)
    expected = {
        "ray_optrial_cells_planned": 12,
        "ray_optrial_cells_committed": 12,
        "ray_optrial_rows_total": 36,
        "ray_optrial_error_rows_total": 4,
        "ray_optrial_completion_tokens_total": tokens,
        "ray_optrial_quarantined": 0,
    }
    found = until_scraped(
        lambda found: all(found.get(name) == value for name, value in expected.items()),
        run_id=results.plan().run_id,
    )
    assert found["ray_optrial_driver_rss_bytes"] > 50e6
    assert found["ray_optrial_tokens_per_second"] > 0
    known = {measure.exported for measure in MEASURES}
    assert set(found) <= known


@pytest.mark.usefixtures("ray_cluster")
def test_a_workers_numbers_are_scraped() -> None:
    @ray.remote
    class Actor:
        def __init__(self) -> None:
            self.metrics = WorkerMetrics("run-w", "worker-5")

        def commit(self, rows: int) -> None:
            receipt = {"rows": rows, "num_errors": 1, "completion_tokens": 10 * rows, "wall_s": 0.5}
            self.metrics.committed(receipt, {"kv_committed_peak_bytes": 4096})

    actor = Actor.remote()  # type: ignore[attr-defined]
    ray.get([actor.commit.remote(rows) for rows in (2, 3)])
    expected = {
        "ray_optrial_worker_cells_total": 2,
        "ray_optrial_worker_rows_total": 5,
        "ray_optrial_worker_error_rows_total": 2,
        "ray_optrial_worker_tokens_total": 50,
        "ray_optrial_worker_busy_seconds_total": 1.0,
        "ray_optrial_worker_kv_peak_bytes": 4096,
    }
    found = until_scraped(
        lambda found: all(found.get(name) == value for name, value in expected.items()),
        run_id="run-w",
        worker="worker-5",
    )
    assert found["ray_optrial_worker_rss_bytes"] > 1e6
    ray.kill(actor)


def progress(**changes: Any) -> Progress:
    given = {"cells_total": 10, "cells_done": 4, "rows": 7, "errors": 0, "completion_tokens": 70,
             "retries": 0, "quarantined": 0, "elapsed_s": 2.0}  # fmt: skip
    return Progress(**(given | changes))


class Recorded:
    """Ray's metrics, which remember what they were given."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self.name, self.values = name, made.setdefault(name, [])

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def set(self, value: float) -> None:
        self.values.append(value)

    def inc(self, value: float) -> None:
        assert value > 0
        self.values.append(value)


made: dict[str, list[float]] = {}


def test_counters_grow_by_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.metrics.Counter", Recorded)
    monkeypatch.setattr("ray.util.metrics.Gauge", Recorded)
    metrics = RunMetrics("r")
    for rows in (7, 7, 9):
        metrics.update(progress(rows=rows, num_workers=3))
    assert made["optrial_rows"] == [7, 2]
    assert made["optrial_error_rows"] == []
    assert made["optrial_cells_planned"] == [10, 10, 10]
    assert made["optrial_tokens_per_second"][-1] == 35.0
    assert made["optrial_workers_alive"] == [3, 3, 3]
    assert set(made) == {measure.name for measure in RUN_MEASURES}


def test_without_ray_there_is_one_warning_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    metrics = RunMetrics("r")
    with caplog.at_level(logging.WARNING, "optrial"):
        for _ in range(3):
            metrics.update(progress())
    assert [record.message for record in caplog.records] == ["metrics are not exported"]


def test_what_fails_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no agent")

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.metrics.Gauge", fails)
    metrics = WorkerMetrics("r", "worker-0")
    with caplog.at_level(logging.WARNING, "optrial"):
        for _ in range(3):
            metrics.committed({"rows": 1, "num_errors": 0, "completion_tokens": 1, "wall_s": 1.0})
    assert len(caplog.records) == 1


def test_the_dashboard_shows_what_is_exported_and_nothing_else() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    variables = [each["query"] for each in dashboard["templating"]["list"] if "query" in each]
    named = {
        name
        for text in [*expressions, *map(str, variables)]
        for name in re.findall(r"ray_optrial_\w+", text)
    }
    assert named == {measure.exported for measure in MEASURES}
    assert all('run_id=~"$run_id"' in expression for expression in expressions)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(measure.meaning for measure in WORKER_MEASURES)
