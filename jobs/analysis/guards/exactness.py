"""Optimisations that declare that they change no output: tests that are copies, and alarms.

A configuration that adds only such a one to another has the same rows, so what is tested of the
other's texts, tokens and quality is tested once for both. Where a row differs after all, that is an
alarm: then the declaration is wrong, and both are tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from cluster.plan import Configuration, Plan
from jobs.analysis.comparison import Comparison
from jobs.analysis.guards.withholding import Alarm
from jobs.queries.row_pairs import TextComparison, compare_rows
from optim.names import is_exact


def copies(plan: Plan) -> dict[str, str]:
    """Configuration -> the one against the same reference of which it is a copy by declaration."""
    arms = [c for c in plan.configurations if c.vs is not None and c.duplicate_of is None]
    plain = {_deciding(c): c.name for c in arms if not _exact_ones(c)}
    found = {c.name: plain.get(_deciding(c)) for c in arms if _exact_ones(c)}
    return {name: other for name, other in found.items() if other is not None}


def exactness_alarms(
    connection: duckdb.DuckDBPyConnection, plan: Plan, comparisons: Sequence[Comparison]
) -> list[Alarm]:
    """Rows that differ although only exact optimisations were added; none where nothing repeats."""
    restless = {c.vs for c in comparisons if c.is_duplicate and c.texts.differing}
    found = []
    for comparison in comparisons:
        own = plan.configuration(comparison.configuration)
        reference = plan.configuration(comparison.vs)
        if comparison.is_duplicate or comparison.vs in restless:
            continue
        if _exact_ones(own) and _plain(own) == _plain(reference):
            found += _alarm(own, reference.name, comparison.texts)
    for name, other in copies(plan).items():
        own = plan.configuration(name)
        if own.vs not in restless:
            found += _alarm(own, other, compare_rows(connection, name, other)[0])
    return found


def _alarm(own: Configuration, other: str, texts: TextComparison) -> list[Alarm]:
    if not texts.differing:
        return []
    declared = ", ".join(_exact_ones(own))
    reason = (
        f"{texts.differing:,} of {texts.compared:,} texts differ from {other}'s, and {declared} "
        "declares that it changes none"
    )
    return [Alarm(own.name, "completion_tokens", None, reason)]


def _exact_ones(configuration: Configuration) -> tuple[str, ...]:
    return tuple(o.name for o in configuration.optimizations if is_exact(o.name))


def _plain(configuration: Configuration) -> tuple[object, ...]:
    """What of it decides outputs, but for what is exact."""
    rest = tuple(o.model_dump_json() for o in configuration.optimizations if not is_exact(o.name))
    return rest, configuration.batch_size, configuration.cache, configuration.prefill_chunk


def _deciding(configuration: Configuration) -> tuple[object, ...]:
    return configuration.vs, *_plain(configuration)
