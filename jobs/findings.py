"""All that a report says, as JSON-serialisable numbers: what `optrial report --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import duckdb

from cluster.plan import Plan
from cluster.results import Results
from jobs.answers import answer, headline_answer, statement
from jobs.comparison import Comparison, MetricEffect, compare
from jobs.memory_notes import memory_notes
from jobs.metrics import METRICS, Metric, describe
from jobs.query import connect
from jobs.score import BITS_PER_BYTE, score_statistics
from jobs.sparsity_notes import sparsity_notes
from jobs.vocabulary_notes import vocabulary_notes
from optim.errors import InputError


def report_data(results: Results) -> dict[str, Any]:
    """The trial, each configuration's figures, scores, and every comparison.

    A/A pairs come first. Relative effects are fractions, times seconds, memory bytes.
    """
    plan = results.plan()
    connection = connect(results)
    try:
        found = comparisons(connection, plan)
        data = {
            "answer": headline_answer(found),
            "trial": _trial(connection, results, plan),
            "configurations": _configurations(connection, plan),
            "comparisons": [_comparison_data(c) for c in found],
        }
        notes = [
            *memory_notes(connection),
            *vocabulary_notes(connection, plan),
            *sparsity_notes(connection),
        ]
    finally:
        connection.close()
    data["scores"], score_notes = _scores(results, plan)
    data["notes"] = notes + score_notes
    return data


def comparisons(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[Comparison]:
    """Every configuration that has a reference, the duplicates first."""
    found = [compare(connection, c, plan) for c in plan.configurations if c.vs is not None]
    return sorted(found, key=lambda c: not c.is_duplicate)


def effect_rows(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One flat row per comparison, metric and statistic."""
    return [
        {"configuration": c.configuration, "vs": c.vs, **_effect_data(effect)}
        for c in found
        for effect in c.effects
    ]


def _trial(connection: duckdb.DuckDBPyConnection, results: Results, plan: Plan) -> dict[str, Any]:
    planned = {cell.key for block in plan.blocks() for cell in block.cells}
    rows, errors = _one(
        connection, "SELECT count(*), count(*) FILTER (error IS NOT NULL) FROM generations"
    )
    devices = connection.execute(
        "SELECT DISTINCT device FROM cells WHERE device IS NOT NULL ORDER BY device"
    ).fetchall()
    return {
        "run_id": plan.run_id,
        "model": plan.model.path,
        "devices": [device for (device,) in devices],
        "datasets": [dataset.name for dataset in plan.datasets],
        "num_prompts": sum(dataset.num_prompts for dataset in plan.datasets),
        "num_seeds": len(plan.seeds),
        "num_configurations": len(plan.configurations),
        "rows": rows,
        "num_errors": errors,
        "cells_planned": len(planned),
        "cells_done": len(planned & results.committed_keys()),
    }


def _configurations(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[dict[str, Any]]:
    counts = {
        row[0]: row[1:]
        for row in connection.execute(
            "SELECT configuration, count(*), count(*) FILTER (error IS NOT NULL), "
            "count(*) FILTER (finish_reason = 'length') FROM generations GROUP BY configuration"
        ).fetchall()
    }
    described: dict[Metric, Any] = {
        metric: describe(connection, metric) for metric in METRICS if metric.is_described
    }
    found = []
    for configuration in plan.configurations:
        rows, errors, lengths = counts.get(configuration.name, (0, 0, 0))
        metrics = {
            metric.name: values[configuration.name]
            for metric, values in described.items()
            if configuration.name in values
        }
        found.append(
            {
                "configuration": configuration.name,
                "vs": configuration.vs,
                "duplicate_of": configuration.duplicate_of,
                "rows": rows,
                "num_errors": errors,
                "num_length": lengths,
                "metrics": metrics,
            }
        )
    return found


def _comparison_data(comparison: Comparison) -> dict[str, Any]:
    return {
        "configuration": comparison.configuration,
        "vs": comparison.vs,
        "is_duplicate": comparison.is_duplicate,
        "caches": comparison.caches,
        "texts": asdict(comparison.texts),
        "effects": [_effect_data(effect) for effect in comparison.effects],
        "answer": answer(comparison),
    }


def _effect_data(found: MetricEffect) -> dict[str, Any]:
    return {
        "metric": found.metric.name,
        "statistic": found.statistic,
        "reference_mean": found.reference_mean,
        "mean": found.mean,
        **asdict(found.effect),
        "statement": statement(found),
    }


def _scores(results: Results, plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """Scores by the datasets' scorers; bits per byte stands among the metrics already."""
    names = {name for d in plan.datasets if d.has_targets for name in d.scorers}
    if not names - {BITS_PER_BYTE}:
        return [], []
    try:
        statistics = score_statistics(results)
    except InputError as error:
        # A scorer that cannot be imported here must not cost the rest of the report.
        return [], [f"there are no scores: {error}"]
    rows = [row for row in statistics if row["scorer"] != BITS_PER_BYTE]
    return [
        {
            **row,
            "mean": asdict(row["mean"]),
            "difference": asdict(row["difference"]) if row["difference"] else None,
        }
        for row in rows
    ], []


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None  # An aggregate without GROUP BY always has one row.
    return row
