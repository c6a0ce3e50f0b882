"""All that a report says, as JSON-serialisable numbers: what `optrial report --json` prints.

Relative effects are fractions, times seconds, memory bytes. A/A pairs come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import duckdb

from cluster.plan import Plan, origin
from cluster.results.results import Results
from jobs.analysis.claims import Checked, Claim, check_claims
from jobs.analysis.comparison import main_effects
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.guards.load import Load, loads
from jobs.analysis.guards.stability import steadiness, steadiness_data, steadiness_notes
from jobs.analysis.looks import TEST
from jobs.analysis.standing import standing, why_texts_are_not_equal
from jobs.analysis.tables import effect_data, verdict_rows
from jobs.analysis.tails import with_tails
from jobs.analysis.verdicts import Judged
from jobs.provenance.artifact_notes import noted
from jobs.provenance.history import code_data, history_notes
from jobs.queries.row_faults import error_notes
from jobs.queries.sql import connect
from jobs.report.notes.dominance import dominance_notes
from jobs.report.notes.load import load_notes
from jobs.report.notes.memory import memory_notes
from jobs.report.notes.sparsity import sparsity_notes
from jobs.report.notes.vocabulary import vocabulary_notes
from jobs.report.sentences import answer, headline_answer
from jobs.spec.metrics import METRICS, Metric, describe


def report_data(results: Results, claims: Sequence[Claim] | None = None) -> dict[str, Any]:
    """The trial, verdicts, attribution, each configuration's figures, scores and comparisons.

    And `claims` with their answers, where any are given.
    """
    plan = results.plan()
    connection = connect(results)
    try:
        found = with_tails(connection, read_findings(connection, plan))
        load = loads(connection)
        data = {
            "answer": headline_answer(found),
            "trial": _trial(connection, results, plan),
            "judgement": found.judgement.model_dump(mode="json"),
            "looks": [look.model_dump(mode="json") for look in found.looks],
            "level": found.judgement.level(len(found.looks) + 1),
            "set_level": _set_level(found),
            "test": TEST,
            "verdicts": verdict_rows(found, primary_only=True),
            "alarms": [asdict(alarm) for alarm in found.alarms],
            "attribution": attribution_data(found),
            "configurations": _configurations(connection, plan, load),
            "comparisons": [_comparison_data(found, judged) for judged in found.judged],
        }
        if claims is not None:
            data["claims"] = claims_data(check_claims(claims, found, connection))
        held = steadiness(connection, plan)
        data["steadiness"] = steadiness_data(held)
        notes = [
            *error_notes(connection),
            *dominance_notes(found),
            *steadiness_notes(held),
            *load_notes(connection, plan, load),
            *memory_notes(connection),
            *vocabulary_notes(connection, plan),
            *sparsity_notes(connection),
        ]
    finally:
        connection.close()
    data["scores"] = _scores(found)
    data["code"] = code_data(results)
    data["notes"] = [*history_notes(results), *noted(results), *notes, *found.scored.notes]
    return {key: _finite(value) for key, value in data.items()}


def _set_level(found: Findings) -> float:
    """The part of the level that is spent on whether data sets differ; 0 of a single one."""
    has_sets = len({origin(dataset.name) for dataset in found.plan.datasets}) > 1
    level = found.judgement.level(len(found.looks) + 1)
    return found.judgement.shared(level, has_sets=has_sets)[1]


def _finite(value: Any) -> Any:
    """The same with null for every number that is none, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def claims_data(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """One row per claim and comparison that it speaks of."""
    return [
        {
            "claim": each.claim.name,
            "text": each.claim.text,
            "source": each.claim.source,
            "metric": each.claim.metric,
            "answer": each.answer,
            "configuration": each.configuration,
            "vs": each.vs,
            "evidence": each.evidence,
        }
        for each in checked
    ]


def attribution_data(found: Findings) -> dict[str, Any]:
    """The factorial and what it shows of each metric, or why there is none."""
    design = found.design
    return {
        "factors": {name: list(levels) for name, levels in design.factors.items()},
        "configurations": {
            " + ".join(sorted(on)) or "none": name for on, name in design.cells.items()
        },
        "missing": [sorted(on) for on in design.missing],
        "left_out": list(design.left_out),
        "reason": design.reason,
        "metrics": [
            {
                "metric": each.metric.name,
                "relative": each.metric.is_relative,
                "reason": each.reason,
                "num_clusters": each.num_clusters,
                "contrasts": [asdict(contrast) for contrast in each.contrasts],
                "shares": [asdict(share) for share in each.shares],
            }
            for each in found.attributions
        ],
    }


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
        "weight_order": plan.weight_order,
        "rows": rows,
        "num_errors": errors,
        "cells_planned": len(planned),
        "cells_done": len(planned & results.committed_keys()),
    }


def _configurations(
    connection: duckdb.DuckDBPyConnection, plan: Plan, load: Mapping[str, Load]
) -> list[dict[str, Any]]:
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
                "mean_occupied_share": own.share if (own := load.get(configuration.name)) else None,
                "metrics": metrics,
            }
        )
    return found


def _comparison_data(found: Findings, judged: Judged) -> dict[str, Any]:
    comparison = judged.comparison
    return {
        "configuration": comparison.configuration,
        "vs": comparison.vs,
        "is_duplicate": comparison.is_duplicate,
        "caches": comparison.caches,
        "texts": asdict(comparison.texts),
        "texts_reason": why_texts_are_not_equal(found, judged),
        "tokens": asdict(found.accounts[comparison.configuration], dict_factory=_written),
        "warnings": list(judged.warnings),
        "effects": [
            effect_data(found, judged, effect) for effect in comparison.effects if effect.is_shown
        ],
        "answer": answer(found, judged),
    }


def _written(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dataclass as a dictionary; of an effect, what is written of it."""
    return {name: value for name, value in pairs if name != "test"}


def _scores(found: Findings) -> list[dict[str, Any]]:
    """Per configuration, data set and scorer; bits per byte stands among the metrics already."""
    equal = {
        (judged.comparison.configuration, effect.metric.name)
        for judged in found.judged
        for effect in main_effects(judged.comparison)
        if standing(found, judged, effect).is_equal
    }
    return [
        {
            **row,
            "is_equal": (row["configuration"], row["scorer"]) in equal,
            "mean": row["mean"].as_dict(),
            "difference": row["difference"].as_dict() if row["difference"] else None,
            "binary": asdict(row["binary"]) if row["binary"] else None,
        }
        for row in found.scored.statistics
    ]


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None  # An aggregate without GROUP BY always has one row.
    return row
