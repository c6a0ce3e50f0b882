"""`tables/effects.parquet`: one row per comparison, metric and statistic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.results import Results
from cluster.schema import FLOAT, INT, TEXT, Column
from jobs.comparison import MAIN_STATISTICS, MetricEffect, main_effects
from jobs.findings import Findings, read_findings
from jobs.looks import TEST
from jobs.query import connect
from jobs.standing import standing, statement
from jobs.table_files import VERSION, write_rows
from jobs.tails import with_tails
from jobs.verdicts import Judged

EFFECTS_FILE = "tables/effects.parquet"

EFFECTS = [
    VERSION,
    Column("configuration", TEXT, "the configuration that is compared"),
    Column("vs", TEXT, "its reference"),
    Column("metric", TEXT, "as in the report, or the scorer's; times in seconds, memory in bytes"),
    Column(
        "statistic",
        TEXT,
        "ratio of totals, geometric mean, mean difference, p95 or p99 (quantiles of rows)",
    ),
    Column(
        "reference_mean",
        FLOAT,
        "the reference's mean over paired units; of p95 and p99 its quantile",
    ),
    Column("mean", FLOAT, "the configuration's"),
    Column("estimate", FLOAT, "relative change as a fraction; of a mean difference, the metric's"),
    Column("low", FLOAT, "lower bound of the 95 % interval; null where there is none"),
    Column("high", FLOAT, "upper bound"),
    Column(
        "num_units", INT, "paired prompts; shards for memory and throughput, rows for p95 and p99"
    ),
    Column("num_clusters", INT, "independent groups of units that the interval rests on"),
    Column("method", TEXT, "the test that p and the interval are of"),
    Column("reason", TEXT, "why there is no estimate or no interval"),
    Column("identical", pa.bool_(), "every pair is exactly equal"),
    Column("num_left_out", INT, "pairs that could not be used"),
    Column("se", FLOAT, "standard error: of the log of 1 + estimate, or of the difference"),
    Column("df", INT, "degrees of freedom of the interval"),
    Column(
        "p", FLOAT, "p that there is no effect, by swapping the sides of clusters; not adjusted"
    ),
    Column("log_estimate", FLOAT, "the estimate on the scale of `se`"),
    Column(
        "verdict",
        TEXT,
        "better, worse, higher, lower, equivalent, exactly equal, inconclusive "
        "or withheld; null where none is given, as of geometric means, tails and repeats",
    ),
    Column("family", TEXT, "primary or exploratory"),
    Column("margin", FLOAT, "δ of the verdict: a fraction, or in the metric's own unit"),
    Column("p_adjusted", FLOAT, "p adjusted over its family"),
    Column("equivalence_p_adjusted", FLOAT, "adjusted p that the difference is ±δ or more"),
    Column("mde", FLOAT, "smallest difference that is found with the power asked for"),
    Column("verdict_reason", TEXT, "why there is no verdict, or why it is withheld"),
    Column("more_prompts", INT, "further prompts that would settle an open primary verdict"),
    Column("more_seeds", INT, "further seeds that would, instead"),
    Column(
        "statement",
        TEXT,
        "what the numbers say; short of a verdict no difference or equality",
    ),
    Column("test", TEXT, "name and version of the test that verdicts go by"),
    Column("estimand", TEXT, "what is estimated; of several data sets, the mean of theirs"),
    Column("by_set", TEXT, "JSON: data set -> its own effect; null where there is one"),
    Column("weights", TEXT, "JSON: data set -> what it counts; null where there is one"),
    Column("interaction_p", FLOAT, "p that the effect is the same in every data set"),
    Column("largest_share", FLOAT, "the most that one cluster has of a side's total in a data set"),
    Column("largest", TEXT, "that cluster"),
    Column("judged_anew", TEXT, "what a look by an older test had said of it"),
]


def write_effects(results: Results, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Write `tables/effects.parquet` over what was there; `rows` where they are known already."""
    found = _read(results) if rows is None else rows
    write_rows(results.store, EFFECTS_FILE, EFFECTS, [_flat(row) for row in found])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """With what is a mapping as JSON, so that every reader of Parquet has it alike."""
    nested = {
        name: None if row[name] is None else json.dumps(row[name]) for name in ("by_set", "weights")
    }
    return {**row, **nested, "test": TEST}


def rows_of_report(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a report's data holds, as `effect_rows` gives them."""
    return [
        {"configuration": comparison["configuration"], "vs": comparison["vs"], **effect}
        for comparison in data["comparisons"]
        for effect in comparison["effects"]
    ]


def _read(results: Results) -> list[dict[str, Any]]:
    plan = results.plan()
    connection = connect(results)
    try:
        return effect_rows(with_tails(connection, read_findings(connection, plan)))
    finally:
        connection.close()


def verdict_rows(found: Findings, *, primary_only: bool) -> list[dict[str, Any]]:
    """One row per comparison and metric that is judged, in the order of the plan."""
    return [
        {
            "configuration": judged.comparison.configuration,
            "vs": judged.comparison.vs,
            **effect_data(found, judged, effect),
        }
        for judged in found.judged
        if not judged.comparison.is_duplicate
        for effect in main_effects(judged.comparison)
        if not primary_only or found.judgement.is_primary(effect.metric)
        if effect.effect.estimate is not None and effect.is_shown
    ]


def effect_rows(found: Findings) -> list[dict[str, Any]]:
    """One flat row per comparison, metric and statistic."""
    return [
        {
            "configuration": judged.comparison.configuration,
            "vs": judged.comparison.vs,
            **effect_data(found, judged, effect),
        }
        for judged in found.judged
        for effect in judged.comparison.effects
        if effect.is_shown
    ]


def effect_data(found: Findings, judged: Judged, effect: MetricEffect) -> dict[str, Any]:
    name = effect.metric.name
    is_main = effect.statistic in MAIN_STATISTICS
    stands = standing(found, judged, effect)
    verdict = stands.verdict
    need = found.needs.get((judged.comparison.configuration, name)) if is_main else None
    return {
        "metric": name,
        "statistic": effect.statistic,
        "reference_mean": effect.reference_mean,
        "mean": effect.mean,
        **effect.effect.as_dict(),
        "estimand": estimand(effect),
        "verdict": verdict.word if verdict else None,
        "family": verdict.family if verdict else None,
        "margin": verdict.margin if verdict else None,
        "direction": found.judgement.direction(effect.metric),
        "p_adjusted": verdict.p if verdict else None,
        "equivalence_p_adjusted": verdict.equivalence_p if verdict else None,
        "mde": verdict.mde if verdict else None,
        "verdict_reason": verdict.reason if verdict else stands.why_withheld,
        "is_equal": stands.is_equal,
        "is_uniform": stands.is_uniform,
        "look": verdict.look if verdict else None,
        "judged_anew": verdict.judged_anew if verdict else None,
        "settling_probability": found.judgement.power if need else None,
        "more_prompts": need.num_prompts if need else None,
        "more_seeds": need.num_seeds if need else None,
        "statement": statement(effect, stands),
    }


def estimand(found: MetricEffect) -> str:
    """What is estimated: of several data sets, the mean of theirs."""
    if found.effect.by_set is None:
        return found.statistic
    mean = "mean of their logs" if found.metric.is_relative else "mean"
    return f"{found.statistic} per data set, {mean}"
