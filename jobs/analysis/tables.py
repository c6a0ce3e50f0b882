"""The tables for others, `tables/summary.parquet` and `tables/effects.parquet`, kept true.

Both are derived from the parts: `evaluate` writes them when it ends, and every report anew, so that
they say what the report says. Their columns are in `docs/tables.md`, generated from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.results.results import Results
from cluster.results.schema import FLOAT, INT, TEXT, Column
from cluster.storage.store import StorageFull
from jobs.analysis.comparison import MAIN_STATISTICS, MetricEffect, main_effects
from jobs.analysis.findings import Findings, read_findings
from jobs.analysis.looks import TEST
from jobs.analysis.standing import standing, statement
from jobs.analysis.tails import with_tails
from jobs.analysis.verdicts import Judged
from jobs.queries.measures import MEASURES
from jobs.queries.sql import connect
from jobs.queries.summary import ALL_DATASETS, SUMMARY, SUMMARY_FILE, write_summary
from jobs.queries.table_files import TABLES_VERSION, VERSION, write_rows
from optim.errors import InputError

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


def write_tables(results: Results, report: Mapping[str, Any] | None = None) -> None:
    """Write both tables over what was there, each atomically.

    `report` is what `jobs.report.report_data.report_data` gave, which spares finding the effects
    again. Raises OSError, or InputError of the field `output`, where the results cannot be written
    to.
    """
    write_summary(results)
    write_effects(results, None if report is None else rows_of_report(report))


def update_tables(results: Results, report: Mapping[str, Any] | None = None) -> str | None:
    """Write both tables where that is possible; what to say where it is not."""
    try:
        write_tables(results, report)
    except StorageFull as error:
        why = f"there is no room left ({error.reason})"
    except OSError as error:
        why = error.strerror or str(error)
    except InputError as error:
        if error.field != "output":  # what is read is damaged, which is not about writing
            raise
        why = error.problem
    else:
        return None
    return f"The tables in {results.output}/tables were not updated: it cannot be written: {why}"


def tables_markdown() -> str:
    """`docs/tables.md`: every column and metric of both tables."""
    measures = [
        f"| `{m.name}` | {m.of} | {m.meaning}{_remark(m.below, m.is_timed)} |" for m in MEASURES
    ]
    return "\n".join(
        [
            "# The tables of a trial",
            "",
            "Generated by `make docs` from `jobs/queries/summary.py`, `jobs/queries/measures.py`",
            "and `jobs/analysis/tables.py`. `optrial evaluate` writes both tables when it ends, "
            "and `optrial report`",
            "writes them anew; they can be deleted at any time. "
            "[Ten questions](questions.md) shows what they answer.",
            "",
            f"Their version is {TABLES_VERSION}: it stands in the column `{VERSION.name}` and in "
            "the file's metadata (`optrial.schema_version`).",
            "It is raised where a column is dropped, or changes its name, type or meaning. Columns "
            "may be added without that,",
            "and a new metric is further rows: select columns by name and rows by `metric`.",
            "",
            f"## `{SUMMARY_FILE}`: one row per configuration, dataset, seed and metric",
            "",
            "Seeds of a dataset have a row each, all seeds together one with a null `seed`, and "
            "all datasets together",
            f"one with dataset `{ALL_DATASETS}` and a null `seed`: choose one of the three, or "
            "totals count thrice. A metric without any value",
            "in a group has no row there. Quantiles interpolate between neighbouring values. "
            "Values that are not finite are left out.",
            "",
            *_columns(SUMMARY),
            "",
            "| metric | of each | meaning |",
            "|---|---|---|",
            *measures,
            "",
            f"## `{EFFECTS_FILE}`: one row per comparison, metric and statistic",
            "",
            "What people pay is the `ratio of totals`; the `geometric mean` is the typical "
            "prompt's change. Metrics that are no",
            "ratio have a `mean difference`. A repeated configuration is compared with what it "
            "repeats, and gets no verdict. `p95` and `p99` of times are of",
            "all rows that both sides have (cold engines left out; of several data sets the "
            "geometric mean), and exploratory: they get",
            "no verdict. Above a million rows they are counted in bins 0.5 % wide, as `method` "
            "then says.",
            "What outputs are scored by has effects under its scorer's name, and no rows in the "
            "summary.",
            "",
            *_columns(EFFECTS),
            "",
        ]
    )


def _columns(columns: Sequence[Column]) -> list[str]:
    lines = [f"| `{c.name}` | {c.type} | {c.meaning} |" for c in columns]
    return ["| column | type | meaning |", "|---|---|---|", *lines]


def _remark(below: str | None, is_timed: bool) -> str:
    parts = ["total over total" if below else "", "cold engines left out" if is_timed else ""]
    told = "; ".join(part for part in parts if part)
    return f" ({told})" if told else ""
