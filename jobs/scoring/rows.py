"""Rows of scores: what each output, and each target that the model scored, is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from cluster.results.schema import FLOAT, INT, TEXT, Column
from jobs.scoring.scorers import Scorer, answer_index, bits_per_byte, multiple_choice
from jobs.spec.score_names import BITS_PER_BYTE, MULTIPLE_CHOICE

_ROWS_AT_ONCE = 2048

SCORES = [
    Column("configuration", TEXT, "name of the configuration in the spec", True),
    Column("dataset", TEXT, "name of the dataset in the spec", True),
    Column("prompt_id", TEXT, "stable id of the prompt within its dataset", True),
    Column("seed", INT, "sampling seed; null for scores by likelihood", True),
    Column("scorer", TEXT, "name of the scorer", True),
    Column("value", FLOAT, "the score; null where it has none", True),
    Column("error", TEXT, "why the scorer failed on this row", True),
]
SCHEMA = pa.schema(
    [pa.field(c.name, c.type, metadata={"meaning": c.meaning}) for c in SCORES]
)  # fmt: skip


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """The rows by the thousand, of columns as `SCORES`."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield pa.RecordBatch.from_pylist(batch, SCHEMA)
            batch = []
    yield pa.RecordBatch.from_pylist(batch, SCHEMA)


def _row(identity: Sequence[Any], name: str, value: float | None, error: str | None = None) -> Any:
    return dict(zip(SCHEMA.names, (*identity, name, value, error), strict=True))


def output_scores(
    connection: duckdb.DuckDBPyConnection,
    wanted: Mapping[str, tuple[str, ...]],
    functions: Mapping[str, Scorer],
) -> Iterator[dict[str, Any]]:
    """Of completions, by the scorers that each data set wants."""
    if not functions:
        return
    found = connection.execute(
        """
        SELECT g.configuration, g.dataset, g.prompt_id, g.seed, g.completion_text, p.target
        FROM generations g JOIN prompts p USING (dataset, prompt_id)
        WHERE g.error IS NULL AND g.completion_text IS NOT NULL AND p.target IS NOT NULL
        ORDER BY ALL
        """
    )
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for *identity, output, target in rows:
            for name in wanted.get(identity[1], ()):
                if name in functions:
                    yield _scored(identity, name, functions[name], output, target)


def _scored(identity: Sequence[Any], name: str, function: Scorer, output: str, target: str) -> Any:
    try:
        return _row(identity, name, function(output, target))
    except Exception as error:  # A user's scorer may fail in any way on one row.
        return _row(identity, name, None, f"{type(error).__name__}: {error}")


def likelihood_scores(
    connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """Of targets and choices, by their likelihoods."""
    found = connection.execute(
        """
        SELECT l.configuration, l.dataset, l.prompt_id,
            list(l.candidate ORDER BY l.candidate), list(l.nats ORDER BY l.candidate),
            list(l.num_bytes ORDER BY l.candidate), any_value(p.target), any_value(p.choices)
        FROM likelihoods l JOIN prompts p USING (dataset, prompt_id)
        WHERE l.error IS NULL AND l.nats IS NOT NULL
        GROUP BY l.configuration, l.dataset, l.prompt_id
        ORDER BY l.configuration, l.dataset, l.prompt_id
        """
    )
    while rows := found.fetchmany(_ROWS_AT_ONCE):
        for configuration, dataset, prompt_id, candidates, nats, sizes, target, choices in rows:
            identity = (configuration, dataset, prompt_id, None)
            by_candidate = dict(zip(candidates, zip(nats, sizes, strict=True), strict=True))
            names = wanted.get(dataset, ())
            if BITS_PER_BYTE in names and -1 in by_candidate:
                yield _row(identity, BITS_PER_BYTE, bits_per_byte(*by_candidate[-1]))
            for name in MULTIPLE_CHOICE.keys() & set(names):
                if choices:
                    yield _choice(identity, name, by_candidate, target, choices)


def _choice(
    identity: Sequence[Any],
    name: str,
    by_candidate: dict[int, tuple[float, int]],
    target: str | None,
    choices: list[str],
) -> Any:
    answer = answer_index(target or "", choices)
    if answer is None:
        return _row(identity, name, None, "the target is none of the choices")
    try:
        nats, sizes = zip(*(by_candidate[i] for i in range(len(choices))), strict=True)
    except KeyError as missing:
        return _row(identity, name, None, f"choice {missing} has no likelihood")
    value = multiple_choice(nats, sizes, answer, per_byte=MULTIPLE_CHOICE[name])
    return _row(identity, name, value)
