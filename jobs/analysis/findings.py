"""Everything that a trial found, read once: effects, verdicts, tokens, and each factor's part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import duckdb

from cluster.plan import Plan
from jobs.analysis.attribution import Attribution, Design, attributions, design_of
from jobs.analysis.comparison import Comparison, compare, main_effects
from jobs.analysis.guards.exactness import copies, exactness_alarms
from jobs.analysis.guards.withholding import Alarm, alarms
from jobs.analysis.looks import Look
from jobs.analysis.sample_size import Need, need
from jobs.analysis.scored import Scored, read_scores, with_scores
from jobs.analysis.token_split import TokenAccount, token_account
from jobs.analysis.verdicts import Judged, judge
from jobs.spec.analysis_plan import Judgement
from jobs.spec.metrics import BY_NAME, METRICS, Metric


@dataclass(frozen=True)
class Findings:
    """Numbers as objects; `jobs.report.report_data` makes plain JSON of them."""

    plan: Plan
    judgement: Judgement
    looks: tuple[Look, ...]
    """Those before the present one."""
    judged: list[Judged]
    """Every configuration that has a reference, the A/A pairs first."""
    alarms: list[Alarm]
    accounts: dict[str, TokenAccount]
    """By configuration; of A/A pairs too."""
    needs: dict[tuple[str, str], Need]
    """(configuration, metric) -> what settles it; of primary metrics that are open."""
    design: Design
    attributions: list[Attribution]
    """Of the primary metrics, and of what tokens are made of; empty without a full factorial."""
    scored: Scored = field(default_factory=Scored)
    """What outputs are scored by."""
    unfinished: Mapping[str, str] = field(default_factory=dict)
    """Configuration -> what is missing of it or its reference; A/A pairs too."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that has effects here: the metrics, then the scores."""
        return (*METRICS, *self.scored.metrics)

    def of(self, configuration: str) -> Judged:
        return next(j for j in self.judged if j.comparison.configuration == configuration)


def read_findings(
    connection: duckdb.DuckDBPyConnection, plan: Plan, *, primary_only: bool = False
) -> Findings:
    """Read and judge all that the connection's views hold.

    `primary_only` spares scoring outputs where no score is a primary metric.
    """
    judgement = Judgement.model_validate(plan.analysis)
    needs_scores = not primary_only or any(name not in BY_NAME for name in judgement.primary)
    scored = read_scores(connection, plan) if needs_scores else Scored()
    plain = comparisons(connection, plan, judgement.weights)
    found = [with_scores(connection, c, scored, judgement.weights) for c in plain]
    looks = tuple(Look.model_validate(look) for look in plan.looks)
    unfinished = _unfinished(connection, plan)
    judged = judge(found, judgement, looks, copies=copies(plan), unfinished=unfinished)
    design = design_of(plan)
    return Findings(
        plan=plan,
        judgement=judgement,
        looks=looks,
        judged=judged,
        alarms=[*alarms(found), *exactness_alarms(connection, plan, found)],
        accounts={c.configuration: token_account(connection, c) for c in found},
        needs=_needs(connection, judged, judgement, plan),
        design=design,
        attributions=attributions(connection, design, judgement, scored.comparable),
        scored=scored,
        unfinished=unfinished,
    )


def comparisons(
    connection: duckdb.DuckDBPyConnection, plan: Plan, weights: Mapping[str, float]
) -> list[Comparison]:
    """Every configuration that has a reference, the duplicates first."""
    arms = [c for c in plan.configurations if c.vs is not None]
    found = [compare(connection, each, plan, weights) for each in arms]
    return sorted(found, key=lambda c: not c.is_duplicate)


def _unfinished(connection: duckdb.DuckDBPyConnection, plan: Plan) -> dict[str, str]:
    """Configuration -> what is missing of it or its reference; only of those that are not done.

    A verdict on part of a trial would be a look that nobody paid for.
    """
    planned: Counter[str] = Counter()
    for _, seeds, dataset in plan.spans():
        for configuration, _ in plan.runs(dataset, seeds):
            planned[configuration.name] += dataset.num_shards
    done = dict(
        connection.execute("SELECT configuration, count(*) FROM cells GROUP BY ALL").fetchall()
    )
    found = {}
    for each in plan.configurations:
        names = [each.name, *([] if each.vs is None else [each.vs])]
        num_done, num_planned = (sum(c.get(n, 0) for n in names) for c in (done, planned))
        if num_done < num_planned:
            found[each.name] = (
                f"{num_done:,} of {num_planned:,} cells are there; `optrial evaluate` again runs "
                "the rest"
            )
    return found


def _needs(
    connection: duckdb.DuckDBPyConnection, judged: list[Judged], judgement: Judgement, plan: Plan
) -> dict[tuple[str, str], Need]:
    found = {}
    num_open = sum(v.is_open and v.family == "primary" for j in judged for v in j.verdicts.values())
    for each in judged:
        comparison = each.comparison
        pair = (comparison.configuration, comparison.vs)
        for effect in main_effects(comparison):
            verdict = each.verdicts.get(effect.metric.name)
            if verdict is None or not verdict.is_open or verdict.family != "primary":
                continue
            if effect.effect.estimate is not None:
                found[comparison.configuration, effect.metric.name] = need(
                    connection, pair, effect, judgement, plan, num_open
                )
    return found
