"""How much completion lengths vary when one optimisation is switched on, prompt by prompt.

`python -m benchmarks.statistics.spread runs/demo --configuration NAME --source TEXT` measures it
from a trial's results: the variances, from prompt to prompt and from seed to seed, of the
difference in completion tokens at equal prompt and seed, relative to the means. `--write` keeps it
where `optrial explain --tokens` reads the spread that it assumes. Prints a table, and as its last
line JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.results.results import Results
from jobs.analysis.sample_size import influences
from jobs.queries.sql import connect
from jobs.spec.metrics import METRICS
from jobs.stats.components import variance_components

DESTINATION = Path("jobs/report/demo_spread.json")


def measure(results: Results, configuration: str, source: str) -> dict[str, Any]:
    """Variances of log(configuration / reference) to first order, per prompt and seed."""
    plan = results.plan()
    reference = plan.configuration(configuration).vs
    if reference is None:
        raise SystemExit(f"`{configuration}` has no reference")
    metric = next(m for m in METRICS if m.name == "completion_tokens")
    connection = connect(results)
    try:
        values, prompts = influences(connection, (configuration, reference), metric)
    finally:
        connection.close()
    found = variance_components(values, prompts)
    return {
        "source": source,
        "metric": metric.name,
        "configuration": configuration,
        "reference": reference,
        "between": found.between,
        "within": found.within,
        "num_prompts": found.num_prompts,
        "num_seeds": found.num_seeds,
        "max_new_tokens": plan.generation.max_new_tokens,
        "temperature": plan.generation.temperature,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory")
    parser.add_argument("--configuration", required=True)
    parser.add_argument("--source", required=True, help="what people are told that it is from")
    parser.add_argument("--write", action="store_true", help=f"into {DESTINATION}")
    chosen = parser.parse_args()
    found = measure(Results(chosen.directory), chosen.configuration, chosen.source)
    table = Table("completion tokens", "standard deviation, % of the mean")
    for name in ("between", "within"):
        shown = "–" if found[name] is None else f"{math.sqrt(found[name]) * 100:.1f}"
        table.add_row({"between": "prompt to prompt", "within": "seed to seed"}[name], shown)
    Console().print(table)
    if chosen.write:
        DESTINATION.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
