"""`optrial plan`: what a trial will cost and can see, from a short pilot of it, before it runs.

The pilot is the trial itself on a few prompts and seeds, in a folder of its own that is removed
afterwards: every configuration, the same engine, the same machine.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from cluster.plan import Dataset, Kind, Plan
from cluster.results.results import Results
from jobs.analysis.sample_size import influences
from jobs.analysis.scored import Scored, read_scores
from jobs.forecasting.filling import Unfilled, unfilled
from jobs.queries.sql import connect
from jobs.spec.analysis_plan import MIN_SHARDS, Judgement
from jobs.spec.metrics import BY_NAME, METRICS, Metric
from jobs.spec.shards import fewest_units
from jobs.spec.trial_spec import DatasetSpec, TrialSpec, read_spec
from jobs.stats.components import Components, variance_components
from jobs.stats.power import mde
from jobs.trial.evaluate import evaluate
from jobs.trial.planning import make_plan
from optim.errors import InputError

OnStage = Callable[[str], None]
MIN_UNITS = 3
"""Units of a pilot that a spread can be taken from."""


@dataclass(frozen=True)
class Visible:
    """The smallest effect of one comparison and metric that the trial finds with its power."""

    configuration: str
    vs: str
    metric: str
    smallest: float | None
    """A fraction of the reference, or in the metric's own unit."""
    margin: float
    """δ: what is smaller does not matter."""
    reason: str | None = None

    @property
    def is_enough(self) -> bool | None:
        return None if self.smallest is None else self.smallest <= self.margin


@dataclass(frozen=True)
class Forecast:
    num_cells: int
    num_rows: int
    num_configurations: int
    num_prompts: int
    num_seeds: int
    device_s: float | None
    """Engine time over all workers; None without a pilot."""
    elapsed_s: float | None
    """The same shared among the workers, without starts and loading."""
    storage_bytes: int | None
    pilot_rows: int
    visible: tuple[Visible, ...]
    unfilled: tuple[Unfilled, ...] = ()
    """Data sets whose shards do not fill the largest batch twice."""


def forecast(
    spec_path: Path | str,
    *,
    pilot_prompts: int = 8,
    pilot_seeds: int = 2,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Forecast:
    """Count, and unless `pilot_prompts` is 0 run, a pilot of so many prompts per dataset.

    Raises InputError for what a person can mend, as the trial itself would.
    """
    return forecast_spec(
        read_spec(spec_path),
        str(spec_path),
        pilot_prompts=pilot_prompts,
        pilot_seeds=pilot_seeds,
        address=address,
        on_stage=on_stage,
    )


def forecast_spec(
    spec: TrialSpec,
    source: str,
    *,
    pilot_prompts: int = 8,
    pilot_seeds: int = 2,
    address: str | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Forecast:
    """The same of a spec that is read already; `source` says where it is from, for errors."""
    if pilot_prompts < 0 or pilot_seeds < 1:
        raise InputError("must not be negative", field="--pilot-prompts, --pilot-seeds")
    plan, _ = make_plan(spec, source)
    if not pilot_prompts:
        return _counted(plan)
    with tempfile.TemporaryDirectory(prefix="optrial-pilot-") as folder:
        pilot = _pilot(spec, plan, str(Path(folder) / "pilot"), pilot_prompts, pilot_seeds)
        results, outcome = evaluate(pilot, address=address, on_stage=on_stage)
        if not outcome.rows or outcome.errors == outcome.rows:
            raise InputError(
                "every row of the pilot failed, so nothing can be foretold",
                source=source,
                mend="Run the trial with a `limit` of 1, and look at the errors",
            )
        return _foretold(plan, results)


def _pilot(spec: TrialSpec, plan: Plan, output: str, prompts: int, seeds: int) -> TrialSpec:
    datasets = tuple(_few_of(d, plan.dataset(d.name), prompts) for d in spec.datasets)
    update: dict[str, Any] = {"datasets": datasets, "seeds": spec.seeds[:seeds], "output": output}
    return spec.model_copy(update=update)


def _few_of(dataset: DatasetSpec, planned: Dataset, prompts: int) -> DatasetSpec:
    """Shards of the trial's own size where there are enough prompts for three of them.

    Shards of one prompt would be batches of one: slower, and of another spread.
    """
    limit = min(prompts, planned.num_prompts)
    size = -(-planned.num_prompts // planned.num_shards)
    shards = min(max(MIN_UNITS, limit // size), limit, planned.num_shards)
    return dataset.model_copy(update={"limit": limit, "shards": shards})


def _counted(plan: Plan) -> Forecast:
    return Forecast(
        num_cells=sum(len(block.cells) for block in plan.blocks()),
        num_rows=_num_rows(plan),
        num_configurations=len(plan.configurations),
        num_prompts=sum(d.num_prompts for d in plan.datasets),
        num_seeds=len(plan.seeds),
        device_s=None,
        elapsed_s=None,
        storage_bytes=None,
        pilot_rows=0,
        visible=(),
        unfilled=_unfilled(plan),
    )


def _unfilled(
    plan: Plan, lengths: Mapping[str, Sequence[int]] | None = None
) -> tuple[Unfilled, ...]:
    # Of leases the verdicts need rounds, and of shards no more than each interval does.
    needed = 0
    if plan.workers.schedule != "leases":
        judgement = Judgement.model_validate(plan.analysis)
        needed = fewest_units(plan.configurations, judgement, look=2, num_sets=len(plan.datasets))
    return unfilled(plan, needed, lengths)


def _lengths(connection: duckdb.DuckDBPyConnection) -> dict[str, list[int]]:
    """Completions of a pilot in tokens, by data set."""
    rows = connection.execute(
        "SELECT dataset, list(completion_tokens ORDER BY configuration, prompt_id, seed) "
        "FROM generations WHERE error IS NULL GROUP BY dataset"
    ).fetchall()
    return dict(rows)


def _num_rows(plan: Plan) -> int:
    return sum(
        cell.stop - cell.start
        for block in plan.blocks()
        for cell in block.cells
        if cell.kind == "generations"
    )


def _num_prompts_run(plan: Plan) -> int:
    """Rows of all cells, scored targets among them."""
    return sum(cell.stop - cell.start for block in plan.blocks() for cell in block.cells)


def _foretold(plan: Plan, results: Results) -> Forecast:
    pilot = results.plan()
    scale = _num_prompts_run(plan) / _num_prompts_run(pilot)
    connection = connect(results)
    try:
        row = connection.execute("SELECT sum(wall_s) FROM cells").fetchone()
        device_s = float(row[0]) * scale if row and row[0] is not None else None
        found = visible(connection, plan, _scored(connection, plan, pilot))
        lengths = _lengths(connection)
    finally:
        connection.close()
    counted = _counted(plan)
    return Forecast(
        **{
            **counted.__dict__,
            "device_s": device_s,
            "elapsed_s": None if device_s is None else device_s / plan.workers.count,
            "storage_bytes": _storage(plan, results),
            "pilot_rows": _num_rows(pilot),
            "visible": found,
            "unfilled": _unfilled(plan, lengths),
        }
    )


def _storage(plan: Plan, results: Results) -> int:
    """A file per cell has a footer whatever it holds, which in a pilot is most of it."""
    planned: dict[Kind, list[int]] = {"generations": [0, 0], "likelihoods": [0, 0]}
    for cell in (cell for block in plan.blocks() for cell in block.cells):
        planned[cell.kind][0] += 1
        planned[cell.kind][1] += cell.stop - cell.start
    total = 0.0
    for kind, (num_cells, num_prompts) in planned.items():
        parts = [results.store.read(part.name) for part in results.parts(kind)]
        prompts = sum(
            cell.stop - cell.start
            for block in results.plan().blocks()
            for cell in block.cells
            if cell.kind == kind
        )
        if not parts:
            continue
        files = [pq.ParquetFile(BytesIO(part)).metadata for part in parts]
        held = sum(
            file.row_group(i).column(j).total_compressed_size
            for file in files
            for i in range(file.num_row_groups)
            for j in range(file.num_columns)
        )
        around = sum(map(len, parts)) - held
        total += around / len(parts) * num_cells + held / prompts * num_prompts
    return round(total)


def _scored(connection: duckdb.DuckDBPyConnection, plan: Plan, pilot: Plan) -> Scored:
    """The pilot's scores, where one is a primary metric."""
    primary = Judgement.model_validate(plan.analysis).primary
    return read_scores(connection, pilot) if set(primary) - BY_NAME.keys() else Scored()


def visible(
    connection: duckdb.DuckDBPyConnection, plan: Plan, scored: Scored | None = None
) -> tuple[Visible, ...]:
    """What the trial will see, from a pilot's results and their scores."""
    judgement, scored = Judgement.model_validate(plan.analysis), scored or Scored()
    metrics = [m for m in (*METRICS, *scored.metrics) if m.name in judgement.primary]
    return tuple(
        _smallest(connection, plan, judgement, c.name, c.vs, metric, scored.why_not(metric.name))
        for c in plan.configurations
        if c.vs is not None and c.duplicate_of is None
        for metric in metrics
    )


def _smallest(
    connection: duckdb.DuckDBPyConnection,
    plan: Plan,
    judgement: Judgement,
    name: str,
    vs: str,
    metric: Metric,
    untested: str | None,
) -> Visible:
    """`untested` is why the metric cannot be tested at all."""
    margin = judgement.margin(metric)
    if untested is not None:
        return Visible(name, vs, metric.name, None, margin, untested)
    fewest = min((d.num_shards for d in plan.datasets if d.generates), default=0)
    if (metric.is_timed or metric.is_memory) and fewest < MIN_SHARDS:
        reason = f"needs {MIN_SHARDS} shards of each dataset"
        return Visible(name, vs, metric.name, None, margin, reason)
    num_sets = len(plan.datasets)
    needed = fewest_units(plan.configurations, judgement, num_sets=num_sets)
    if _num_units(plan, metric) < needed:
        unit = _unit(plan, metric)
        reason = f"finds nothing, however large: it needs {needed} {unit} in all"
        if unit == "rounds":
            loads = (needed - plan.workers.rounds) * len(plan.configurations)
            reason += f", {loads} loads of models more"
        return Visible(name, vs, metric.name, None, margin, reason)
    values, units = influences(connection, (name, vs), metric, judgement.weights)
    if len(set(units)) < MIN_UNITS:
        reason = "the pilot has too few units of it"
        return Visible(name, vs, metric.name, None, margin, reason)
    if not any(values):
        same = "no change, or the same one, in every pair"
        return Visible(name, vs, metric.name, 0.0, margin, same)
    components = variance_components(values, units)
    num_units = _num_units(plan, metric)
    smallest = mde(
        _standard_error(components, num_units, len(plan.seeds)),
        num_units - 1,
        judgement.shared(judgement.level(1), has_sets=num_sets > 1)[0],
        judgement.power,
    )
    shown = math.expm1(smallest) if metric.is_relative else smallest
    return Visible(name, vs, metric.name, shown, margin)


def _unit(plan: Plan, metric: Metric) -> str:
    if not (metric.is_timed or metric.is_memory):
        return "prompts"
    return "rounds" if plan.workers.schedule == "leases" else "shards"


def _num_units(plan: Plan, metric: Metric) -> int:
    """What is independent: prompts, or what shares noise."""
    unit = _unit(plan, metric)
    if unit == "rounds":
        return plan.workers.rounds
    sets = [d for d in plan.datasets if metric.source != "score" or metric.name in d.scorers]
    return sum(d.num_shards if unit == "shards" else d.num_prompts for d in sets)


def _standard_error(components: Components, num_units: int, num_seeds: int) -> float:
    within = components.within or 0.0
    return math.sqrt((components.between + within / num_seeds) / num_units)
