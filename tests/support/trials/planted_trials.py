"""Trials whose every configuration has something else planted, through `trial_results`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trial_results import make_results

from cluster.plan import Cell, Configuration, digest
from cluster.results.results import MANIFEST, Results, write_prompts
from jobs.analysis.looks import TEST

Rows = list[dict[str, Any]]
Facts = dict[str, Any]
Plant = Callable[[Cell, Rows, Facts], bool | None]
LATER = "set0+1"


def planted(folder: Path, names: Sequence[str], **options: Any) -> Results:
    """A trial of these configurations beside `baseline`; those named `again` repeat it."""
    arms = [Configuration(name="baseline")]
    for name in names:
        repeated = "baseline" if name.startswith("again") else None
        arms.append(Configuration(name=name, vs="baseline", duplicate_of=repeated))
    arms = [arm.model_copy(update={"fingerprint": digest(arm.name)}) for arm in arms]
    return make_results(folder, arms=arms, **{"edit": plant, "scorers": (), **options})


def judged_again(results: Results) -> None:
    """At the second look, by a stated judgement, at prompts in groups; the last data set was added
    to the first."""
    manifest = json.loads(results.store.read(MANIFEST))
    plan = manifest["plan"]
    plan["datasets"][1]["name"] = LATER
    plan["analysis"] = {
        "primary": ["completion_tokens", "tokens_per_base_token", "bits_per_byte"],
        "margins": {"tokens_per_base_token": 0.05, "bits_per_byte": 0.1},
        "directions": {"completion_tokens": "lower"},
        "alpha": 0.1,
    }
    decided = {"configuration": "short", "metric": "completion_tokens", "word": "better", "look": 1}
    look = {"number": 1, "level": 0.08, "settled": [decided], "configurations": ["long"]}
    look["test"] = TEST
    plan["looks"] = [look | {"open": [["long", "bits_per_byte"]], "seeds": [2]}]
    results.store.replace(MANIFEST, json.dumps(manifest).encode())
    rows = results.prompts().to_pylist()
    for row in rows:
        row["dataset"] = LATER if row["dataset"] == "set1" else row["dataset"]
        row["cluster"] = f"c{row['row'] % 5}" if row["row"] < 12 else None
    write_prompts(results.store, rows)


def plant_added(cell: Cell, rows: Rows, facts: Facts) -> None:
    """As `judged_again` names data sets."""
    plant(cell, rows, facts)
    for each in (*rows, facts):
        each["dataset"] = LATER if cell.dataset == "set1" else cell.dataset


def plant(cell: Cell, rows: Rows, facts: Facts) -> bool | None:
    place = [cell.shard, cell.seed or 0, *cell.configuration.encode(), *cell.dataset.encode()]
    rng = np.random.default_rng(place)
    facts |= {"round": 0, "attempt": f"{cell.dataset}{cell.shard}{cell.seed}"}
    own = PLANTED.get(cell.configuration)
    if cell.kind == "likelihoods":
        for row in rows:
            row["nats"] *= float(rng.lognormal(0, 0.02))
        return own(cell, rows, facts) if own in (missing, half) else None
    if not cell.configuration.startswith("again"):
        for row in rows:
            lengthen(row, float(rng.lognormal(0, 0.05)))
            row["base_completion_tokens"] += int(rng.integers(0, 4))
    count(rows, facts)
    held = rng.lognormal(0, 0.02, 2)
    facts["kv_committed_peak_bytes"] = int(10_000 * held[0])
    facts["kv_committed_byte_s"] = float(6_000 * held[1] * facts["wall_s"])
    return None if own is None else own(cell, rows, facts)


def lengthen(row: dict[str, Any], factor: float) -> None:
    """Another text, so many times as long, at the same pace."""
    row["completion_text"] += "."
    tokens = max(2, round(row["completion_tokens"] * factor))
    row |= {"completion_tokens": tokens, "base_completion_tokens": tokens}
    row |= {"completion_bytes": 4 * tokens, "e2e_s": row["ttft_s"] + row["tpot_s"] * (tokens - 1)}


def count(rows: Rows, facts: Facts) -> None:
    """The facts of a cell that are sums over its rows."""
    for name in ("completion_tokens", "base_completion_tokens", "completion_bytes"):
        facts[name] = sum(row[name] or 0 for row in rows)
    facts["wall_s"] = sum(row["e2e_s"] or 0.0 for row in rows) / 4
    facts["num_errors"] = sum(row.get("error") is not None for row in rows)


def fail(row: dict[str, Any]) -> None:
    for name in row:
        if name.endswith(("_s", "_tokens", "_bytes", "_text")):
            row[name] = None
    row |= {"error": "out of memory", "finish_reason": "error"}


def faster(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        row |= {name: 0.9 * row[name] for name in ("ttft_s", "tpot_s", "e2e_s")}
    count(rows, facts)


def shorter(cell: Cell, rows: Rows, facts: Facts) -> None:
    """Fewer tokens for texts of the same length in base tokens."""
    for row in rows:
        row["completion_tokens"] = max(2, round(0.8 * row["completion_tokens"]))
    facts["completion_tokens"] = sum(row["completion_tokens"] for row in rows)


def opposite(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        lengthen(row, 0.7 if cell.dataset == "set0" else 1.4)
    count(rows, facts)
    facts["kv_committed_peak_bytes"] *= 0.8 if cell.dataset == "set0" else 1.25
    facts["kv_committed_peak_bytes"] = int(facts["kv_committed_peak_bytes"])


def longer(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        lengthen(row, 1.3)
    count(rows, facts)
    facts["kv_committed_peak_bytes"] = int(1.3 * facts["kv_committed_peak_bytes"])


def dominant(cell: Cell, rows: Rows, facts: Facts) -> None:
    if cell.shard == 0:
        lengthen(rows[0], 60.0)
        count(rows, facts)


def nothing_of_a_prompt(cell: Cell, rows: Rows, facts: Facts) -> None:
    """And of none in the last data set."""
    for row in rows if cell.dataset == "set1" else rows[:1] if cell.shard == 0 else ():
        row |= {"completion_tokens": 0, "base_completion_tokens": 0, "completion_bytes": 0}
        row |= {"completion_text": "", "tpot_s": None}
    count(rows, facts)


def nothing(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        row |= {"completion_tokens": 0, "base_completion_tokens": 0, "completion_bytes": 0}
        row |= {"completion_text": "", "tpot_s": None}
    count(rows, facts)


def missing(cell: Cell, rows: Rows, facts: Facts) -> None:
    """Times of a row, of a prompt and of a shard; memory of a shard; a target."""
    if cell.kind == "likelihoods":
        if cell.shard == 4:
            rows[0] |= {"nats": None, "error": "too long"}
        return
    if cell.shard == 1:
        facts |= {"kv_committed_peak_bytes": None, "kv_committed_byte_s": None}
    rows[0]["tpot_s"] = None if cell.shard == 2 else rows[0]["tpot_s"]
    if cell.seed == 1 and cell.shard in (3, 4):
        rows[0]["ttft_s"] = None


def half(cell: Cell, rows: Rows, facts: Facts) -> bool:
    """Only a part of the last data set has run."""
    return cell.dataset == "set0" or cell.shard < 3


def one_failure(cell: Cell, rows: Rows, facts: Facts) -> None:
    """Beside rows that are equal."""
    if cell.shard == 0 and cell.seed == 1 and cell.dataset == "set0":
        fail(rows[0])
        count(rows, facts)


def failures(cell: Cell, rows: Rows, facts: Facts) -> None:
    if cell.seed == 1 and cell.shard < 4:
        fail(rows[0])
        count(rows, facts)


def cut(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        row["finish_reason"] = "length" if cell.shard % 2 else "stop"


def apart(cell: Cell, rows: Rows, facts: Facts) -> None:
    faster(cell, rows, facts)
    facts["attempt"] += "" if cell.shard == 1 else " later"


def slower(cell: Cell, rows: Rows, facts: Facts) -> None:
    for row in rows:
        row |= {name: 1.2 * row[name] for name in ("ttft_s", "tpot_s", "e2e_s")}
    count(rows, facts)


# --- what one rule decides -------------------------------------------------------------------


def cold(cell: Cell, rows: Rows, facts: Facts) -> None:
    """The engine is cold in every other shard of the first seed."""
    if cell.seed == 1 and cell.shard % 2:
        for row in rows:
            row |= {"warmup": True, "e2e_s": 3 * row["e2e_s"]}


def partly_missing(cell: Cell, rows: Rows, facts: Facts) -> None:
    if cell.seed == 1 and cell.shard % 2:
        facts["kv_committed_byte_s"] = None


def plant_steady_and_opposite(cell: Cell, rows: Rows, facts: Facts) -> None:
    """Memory that is the same in every shard of a data set, and not in both of them."""
    plant(cell, rows, facts)
    other = 9_000 if cell.dataset == "set0" else 11_000
    facts["kv_committed_peak_bytes"] = 10_000 if cell.configuration == "baseline" else other


def plant_seeds_exchanged(cell: Cell, rows: Rows, facts: Facts) -> None:
    """Times whose means over seeds are equal, and which are not."""
    plant(cell, rows, facts)
    for row in rows if cell.kind == "generations" else ():
        row["ttft_s"] = 0.25 * (cell.seed if cell.configuration == "baseline" else 3 - cell.seed)


def not_a_number(cell: Cell, rows: Rows, facts: Facts) -> None:
    if cell.shard == 2:
        rows[0]["ttft_s"] = math.nan


def no_round(cell: Cell, rows: Rows, facts: Facts) -> None:
    """As results had none before leases came."""
    apart(cell, rows, facts)
    del facts["round"]


PLANTED: dict[str, Plant] = {
    "again-slower": slower,
    "fast": faster, "short": shorter, "opposite": opposite, "long": longer, "dominant": dominant,
    "nothing-of-one": nothing_of_a_prompt, "nothing": nothing, "missing": missing,
    "half": half, "one-failure": one_failure, "failures": failures, "cut": cut, "apart": apart,
    "cold": cold, "partly-missing": partly_missing, "not-a-number": not_a_number,
    "no-round": no_round,
}  # fmt: skip
