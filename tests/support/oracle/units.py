"""What two configurations are compared by in one metric: paired units, each in its cluster.

A unit of tokens, times and quality is the prompt, the mean over the seeds that both sides
completed; of throughput and memory it is the shard, over the seeds of which both have the cell.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.metrics import Metric
from oracle.swaps import Floats
from oracle.trial import Key, Row, Trial

MIN_SHARDS = 8
Pair = tuple[Row, Row]
"""The same row of the reference and of the configuration."""


@dataclass(frozen=True)
class Unit:
    """Amounts and what they are divided by (1 for totals) of both sides, as the sets of swaps."""

    dataset: str
    cluster: Key
    values: tuple[float, float, float, float]


@dataclass(frozen=True)
class Units:
    usable: list[Unit]
    num_left_out: int
    rows_equal: bool
    """Whether what was paired is equal row by row."""

    @property
    def num_clusters(self) -> int:
        return len({unit.cluster for unit in self.usable})

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(unit.dataset for unit in self.usable))

    def sets(self) -> list[Floats]:
        """Totals of each data set's clusters: (4, clusters)."""
        found = []
        for dataset in self.datasets:
            totals: dict[Key, Any] = {}
            for unit in self.usable:
                if unit.dataset == dataset:
                    before = totals.setdefault(unit.cluster, np.zeros(4))
                    totals[unit.cluster] = before + np.array(unit.values)
            found.append(np.array(list(totals.values())).T)
        return found

    def fewest_shards(self) -> int:
        """Of a data set, where shards are the clusters."""
        pairs = {(unit.dataset, unit.cluster) for unit in self.usable}
        return min(Counter(dataset for dataset, _ in pairs).values(), default=0)


def units_of(trial: Trial, metric: Metric, configuration: str, reference: str) -> Units:
    if metric.of == "cell":
        return _of_cells(trial, metric, configuration, reference)
    if metric.is_failures:
        return _of_failures(trial, configuration, reference)
    if metric.of == "target":
        return _of_targets(trial, configuration, reference)
    return _of_rows(trial, metric, configuration, reference)


def row_pairs(trial: Trial, configuration: str, reference: str) -> dict[Key, Pair]:
    """By (dataset, prompt, seed): the rows that both sides have, failed ones too."""
    one, other = (trial.generations.get(name, {}) for name in (reference, configuration))
    return {key: (one[key], other[key]) for key in one if key in other}


def cell_pairs(trial: Trial, configuration: str, reference: str) -> dict[Key, Pair]:
    """By (dataset, shard, seed)."""
    one, other = (trial.cells.get(name, {}) for name in (reference, configuration))
    return {key: (one[key], other[key]) for key in one if key in other}


def is_completed(pair: Pair) -> bool:
    return all(row["error"] is None for row in pair)


def texts_differ(pair: Pair) -> bool:
    return pair[0]["completion_text"] != pair[1]["completion_text"]


def cut_by_budget(pair: Pair) -> bool:
    return any(row["finish_reason"] == "length" for row in pair)


def set_of(dataset: str) -> str:
    """Prompts that were added to a data set later are of it."""
    return dataset.split("+")[0]


def _of_rows(trial: Trial, metric: Metric, configuration: str, reference: str) -> Units:
    names = [metric.amount] if metric.per is None else [metric.amount, metric.per]
    by_prompt: dict[Key, list[Pair]] = {}
    shards: dict[Key, int] = {}
    rows_equal = True
    for (dataset, prompt, _), pair in row_pairs(trial, configuration, reference).items():
        if not is_completed(pair):
            continue
        used = by_prompt.setdefault((dataset, prompt), [])
        shards[dataset, prompt] = pair[1]["shard"]
        is_warm = not any(row["warmup"] for row in pair)
        if is_warm or not metric.is_timed:
            rows_equal &= all(pair[0].get(name) == pair[1].get(name) for name in names)
        if not metric.is_timed and metric.name not in ("prompt_tokens", "ends_in_loop"):
            rows_equal &= not (texts_differ(pair) and cut_by_budget(pair))
        if not (metric.is_timed and any(row["warmup"] for row in pair)):
            used.append(pair)
    found = []
    for prompt_key, pairs in by_prompt.items():
        dataset = prompt_key[0]
        cluster = (dataset, shards[prompt_key]) if metric.is_by_shard else trial.groups[prompt_key]
        values = _amounts(pairs, names, over=_mean)
        found.append(Unit(set_of(dataset), cluster, values))
    return _usable(found, rows_equal)


def _of_failures(trial: Trial, configuration: str, reference: str) -> Units:
    """How many of a prompt's rows failed, of how many; data sets are not told apart."""
    by_prompt: dict[Key, list[Pair]] = {}
    for (dataset, prompt, _), pair in row_pairs(trial, configuration, reference).items():
        by_prompt.setdefault((dataset, prompt), []).append(pair)
    found = []
    for key, pairs in by_prompt.items():
        failed = [float(sum(p[side]["error"] is not None for p in pairs)) for side in (0, 1)]
        size = float(len(pairs))
        found.append(Unit("", trial.groups[key], (failed[0], size, failed[1], size)))
    return _usable(found, True)


def _of_cells(trial: Trial, metric: Metric, configuration: str, reference: str) -> Units:
    """Without cells of which one side failed more often, or all rows did."""
    names = [metric.amount] if metric.per is None else [metric.amount, metric.per]
    by_shard: dict[Key, list[Pair]] = {}
    for (dataset, shard, _), pair in cell_pairs(trial, configuration, reference).items():
        failed = [facts.get("num_errors") for facts in pair]
        if failed[0] == failed[1] and (failed[1] or 0) < pair[1]["rows"]:
            by_shard.setdefault((dataset, shard), []).append(pair)
    rows_equal = all(
        pair[0].get(name) == pair[1].get(name)
        for pairs in by_shard.values()
        for pair in pairs
        for name in names
    )
    over = _mean if metric.per is None else math.fsum
    found = [
        Unit(set_of(dataset), (dataset, shard), _amounts(pairs, names, over))
        for (dataset, shard), pairs in by_shard.items()
    ]
    return _usable(found, rows_equal)


def _of_targets(trial: Trial, configuration: str, reference: str) -> Units:
    one, other = (trial.targets.get(name, {}) for name in (reference, configuration))
    found = []
    for dataset, prompt in one:
        if (dataset, prompt) not in other:
            continue
        pair = one[dataset, prompt], other[dataset, prompt]
        if all(row["nats"] is not None and (row["num_bytes"] or 0) > 0 for row in pair):
            bits = [row["nats"] / math.log(2) / row["num_bytes"] for row in pair]
            cluster = trial.groups[dataset, prompt]
            found.append(Unit(set_of(dataset), cluster, (bits[0], 1.0, bits[1], 1.0)))
    return _usable(found, all(unit.values[0] == unit.values[2] for unit in found))


def _amounts(pairs: list[Pair], names: list[str], over: Any) -> tuple[float, float, float, float]:
    """Over the pairs in which nothing is missing; not a number without any such pair."""
    whole = [p for p in pairs if all(row.get(name) is not None for row in p for name in names)]
    if not whole:
        return (math.nan,) * 4
    sides = []
    for side in (0, 1):
        sides.append(over([pair[side][names[0]] for pair in whole]))
        sides.append(over([p[side][names[1]] for p in whole]) if len(names) > 1 else 1.0)
    return (sides[0], sides[1], sides[2], sides[3])


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _usable(found: list[Unit], rows_equal: bool) -> Units:
    kept = [unit for unit in found if all(math.isfinite(value) for value in unit.values)]
    return Units(kept, len(found) - len(kept), rows_equal)
