"""How often the statistics are wrong, by simulation: `python -m benchmarks.statistics.statistics`.

False alarms where nothing differs, coverage of intervals where something does, power against its
formula, families of verdicts, failures, budgets, looks and claims, through the functions that
reports use; each rate beside what docs/answers.md promises, and what verdicts went by before beside
it. Settings, seeds and numbers of trials are those of `benchmarks/statistics/calibration/`. Prints
tables, and as its last line JSON. `tests/jobs/stats/test_calibration.py` runs the same with fewer
trials.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.statistics.calibration import (
    clusters,
    endings,
    families,
    looks,
    powers,
    promises,
    prompts,
    sets,
)
from benchmarks.statistics.calibration.rates import Rate, summary
from benchmarks.statistics.calibration.tally import OLD
from jobs.stats.permutation.effects import ratio_effect

SEED = 0
PARTS: dict[str, Callable[[float, int], list[Rate]]] = {
    "one data set of prompts": prompts.all_rates,
    "shards and rounds": clusters.all_rates,
    "several data sets": sets.all_rates,
    "power": powers.all_rates,
    "families of verdicts": families.all_rates,
    "failures and budgets": endings.all_rates,
    "looks": looks.all_rates,
    "claims": promises.all_rates,
}


def milliseconds(size: int, repeats: int = 200) -> float:
    """CPU time of one `ratio_effect`, with its interval and p."""
    a, b = np.random.default_rng(0).lognormal(size=(2, size))
    ratio_effect(a, b)
    start = process_time()
    for _ in range(repeats):
        ratio_effect(a, b)
    return 1000 * (process_time() - start) / repeats


def table_of(title: str, rates: Sequence[Rate]) -> Table:
    """What was found, beside its promise and beside what the method of before found."""
    table = Table("setting", "what", "rate", "promised", "beyond, s.e.", "before", title=title)
    old = {(r.setting, r.what): r for r in rates if r.what.startswith(OLD)}
    for rate in rates:
        if rate.what.startswith(OLD):
            continue
        before = old.get((rate.setting, OLD + rate.what))
        table.add_row(
            rate.setting,
            rate.what,
            f"{rate.rate:.2%} of {rate.trials:,}",
            _promise(rate),
            f"{rate.deviation:+.1f}" if rate.deviation else "",
            f"{before.rate:.2%}" if before else "",
        )
    return table


def _promise(rate: Rate) -> str:
    if not rate.has_goal:
        return "given"
    if rate.low == rate.high:
        return f"{rate.low:.2%}"
    if rate.low == 0:
        return f"at most {rate.high:.2%}"
    return f"at least {rate.low:.2%}" if rate.high == 1 else f"{rate.low:.1%} to {rate.high:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each setting")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--part", choices=sorted(PARTS), help="one of them alone")
    parser.add_argument("--times", action="store_true", help="CPU time of an effect as well")
    options = parser.parse_args()
    console = Console(width=200)
    rates: list[Rate] = []
    spent: dict[str, float] = {}
    for name in [options.part] if options.part else PARTS:
        start = process_time()
        own = PARTS[name](options.share, options.seed)
        spent[name] = round(process_time() - start, 1)
        console.print(table_of(name, own))
        rates += own
    found = summary(rates)
    console.print(found)
    result: dict[str, Any] = {
        "machine": describe(),
        "seed": options.seed,
        "share": options.share,
        "summary": found,
        "rates": [rate.as_dict() for rate in rates],
        "cpu_s": spent,
    }
    if options.times:
        result["ratio_effect_cpu_ms"] = {size: milliseconds(size) for size in (8, 30, 100, 400)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
