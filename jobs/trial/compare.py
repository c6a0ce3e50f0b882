"""`optrial compare`: a model as it is against one optimised configuration, without a spec.

What the optimisations need is prepared first, once, beside the output: an adapted vocabulary from
the authors' pickle, and a rotation for LaRoSA of the model that it is applied to. Then a trial runs
like any other, and can be resumed, queried and reported like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

from cluster.plan import ModelSource
from cluster.results.results import Results
from cluster.scheduling.scheduler import Outcome
from jobs.data.texts import Reading
from jobs.preparation.prepare import Task, prepare, recipe
from jobs.preparation.recipes import is_made, is_same, write_recipe
from jobs.spec.trial_spec import TrialSpec
from jobs.spec.yaml_reader import validated
from jobs.trial.evaluate import OnProgress, evaluate
from optim.countdown import duration
from optim.errors import InputError
from optim.registry import preparations

OnStage = Callable[[str], None]
Preset = Literal["quick", "full"]
BASELINE, OPTIMIZED = "baseline", "optimized"
DEMO_DATASETS = ("demo/language", "demo/networking", "demo/data")


@dataclass(frozen=True)
class Choice:
    """What is compared, on what, and how much of it."""

    model: str
    patch_tokenizer: str | None = None
    """A folder made by `prepare adaptivocab`, or a patch_tokenizer.pkl of the authors' code."""
    larosa_sparsity: float | None = None
    larosa: str | None = None
    """A folder made by `prepare larosa`; by default it is made."""
    preparation: Preset = "quick"
    """How artifacts are made: by each preparation's own settings for a first look, or in full."""
    vattention: bool = False
    prompts: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    """Text that artifacts are made of; by default the prompts, or the demo model's own."""
    limit: int | None = None
    seeds: int = 3
    max_new_tokens: int = 64
    temperature: float = 0.8
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1
    cpus: int = 1
    gpus: int = 0
    output: str = "runs/compare"


def run(
    choice: Choice,
    *,
    address: str | None = None,
    join: bool = False,
    new_run: bool = False,
    accept_code_change: bool = False,
    on_stage: OnStage = lambda stage: None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[Results, Outcome]:
    """Prepare what is missing, run the trial (or what is missing of it), return its results.

    The options are those of `jobs.trial.evaluate.evaluate`. Raises InputError for what a person can
    mend.
    """
    check(choice)
    spec = spec_of(choice, _artifacts(choice, address, on_stage))
    return evaluate(
        spec,
        address=address,
        join=join,
        new_run=new_run,
        accept_code_change=accept_code_change,
        on_stage=on_stage,
        on_progress=on_progress,
    )


def check(choice: Choice) -> None:
    """InputError for what is wrong on its own, before anything is prepared."""
    if not (choice.patch_tokenizer or choice.larosa_sparsity is not None or choice.vattention):
        raise InputError(
            "nothing is turned on, so there is nothing to compare",
            field="--patch-tokenizer, --larosa-sparsity, --vattention",
            mend="Give one of them or more",
        )
    if choice.larosa is not None and choice.larosa_sparsity is None:
        raise InputError("needs a sparsity", field="--larosa", mend="Add --larosa-sparsity 0.4")
    if choice.larosa_sparsity is not None and not 0 < choice.larosa_sparsity < 1:
        raise InputError(
            f"must be between 0 and 1, got {choice.larosa_sparsity}", field="--larosa-sparsity"
        )
    if choice.patch_tokenizer is not None and not Path(choice.patch_tokenizer).exists():
        raise InputError(
            "there is no such file or folder",
            source=choice.patch_tokenizer,
            field="--patch-tokenizer",
            mend="Give a folder made by `optrial prepare adaptivocab`, or a patch_tokenizer.pkl",
        )
    if not choice.prompts and choice.model != "demo":
        raise InputError(
            "there are no prompts",
            field="--prompts",
            mend="Give a .jsonl, .csv or .parquet file, or the id of a dataset",
        )


def spec_of(choice: Choice, optimizations: list[Any]) -> TrialSpec:
    """The spec that the command line stands for."""
    prompts = choice.prompts or DEMO_DATASETS
    limit = choice.limit if choice.limit is not None or choice.prompts else 24
    data = {
        "model": choice.model,
        "device": choice.device,
        "dtype": choice.dtype,
        "datasets": [
            {"path": path} | ({} if limit is None else {"limit": limit}) for path in prompts
        ],
        "configurations": [
            {"name": BASELINE},
            {"name": OPTIMIZED, "optimizations": optimizations, "vs": BASELINE},
        ],
        "engine": {"batch_size": choice.batch_size},
        "seeds": choice.seeds,
        "generation": {
            "max_new_tokens": choice.max_new_tokens,
            "temperature": choice.temperature,
        },
        "workers": {"count": choice.workers, "cpus": choice.cpus, "gpus": choice.gpus},
        "output": choice.output,
    }
    return validated(TrialSpec, data, "the command line")


def _artifacts(choice: Choice, address: str | None, on_stage: OnStage) -> list[Any]:
    """The optimisations with their settings, in the order of their application."""
    found: list[Any] = []
    adapted: str | None = None
    if choice.patch_tokenizer is not None:
        adapted = choice.patch_tokenizer
        if Path(adapted).is_file():
            wanted = Wanted("adaptivocab", {"official": adapted}, choice.model)
            adapted = _prepared(wanted, choice, address, on_stage)
        found.append({"adaptivocab": {"artifact": adapted}})
    if choice.larosa_sparsity is not None:
        wanted = Wanted("larosa", {"levels": [choice.larosa_sparsity]}, adapted or choice.model)
        artifact = choice.larosa or _prepared(wanted, choice, address, on_stage)
        found.append({"larosa": {"artifact": artifact, "sparsity": choice.larosa_sparsity}})
    if choice.vattention:
        found.append("vattention")
    return found


class Wanted(NamedTuple):
    """An artifact that the choice needs and does not name."""

    name: str
    settings: dict[str, Any]
    model: str
    """What it is made for: the model, or an adapted one."""


def wanted_artifacts(choice: Choice) -> list[Wanted]:
    """Those that have to be made, unless they are there from an earlier call."""
    found = []
    adapted = choice.patch_tokenizer
    if adapted is not None and Path(adapted).is_file():
        found.append(Wanted("adaptivocab", {"official": adapted}, choice.model))
        adapted = None
    if choice.larosa_sparsity is not None and choice.larosa is None:
        settings = {"levels": [choice.larosa_sparsity]}
        found.append(Wanted("larosa", settings, adapted or choice.model))
    return found


def _prepared(wanted: Wanted, choice: Choice, address: str | None, on_stage: OnStage) -> str:
    """The folder of an artifact that is made where it is not there yet.

    A full one that is there serves a quick choice too.
    """
    full = task_of(wanted, choice, "full")
    if is_same(full.out, recipe(full)):
        return full.out
    task = task_of(wanted, choice, choice.preparation)
    made_by = recipe(task)
    if not is_made(task.out, made_by):
        on_stage(f"preparing {preset_text(wanted.name, choice.preparation)}")
        began_s = monotonic()
        try:
            prepare(task, address=address, on_stage=on_stage)
        except InputError as error:
            raise _of_compare(error) from error
        write_recipe(task.out, made_by)
        on_stage(f"{wanted.name} is prepared, in {duration(monotonic() - began_s)}")
    return task.out


def _of_compare(error: InputError) -> InputError:
    """The same with this command's option for the text."""
    if error.field != "--data":
        return error
    mend = error.mend and error.mend.replace("--data", "--corpus")
    return InputError(error.problem, source=error.source, field="--corpus", mend=mend)


def task_of(wanted: Wanted, choice: Choice, preset: Preset) -> Task:
    """The preparation of one artifact."""
    name, model = wanted.name, wanted.model
    folder = name if preset == "full" else f"{name}-{preset}"
    out = str(Path(f"{choice.output}-artifacts").expanduser().absolute() / folder)
    default = ("demo/training",) if choice.model == "demo" else choice.prompts
    place = Path(model).expanduser()
    source = str(place.absolute()) if model != "demo" and place.exists() else model
    settings = {**(quick_settings(name) if preset == "quick" else {}), **wanted.settings}
    return Task(
        name=name,
        settings=settings,
        model=ModelSource(path=source, dtype=choice.dtype, device=choice.device),  # type: ignore[arg-type]
        data=[_absolute(path) for path in choice.corpus or default],
        reading=Reading(None, None, None),
        out=out,
        cpus=choice.cpus,
        gpus=choice.gpus,
    )


def preset_text(name: str, preset: Preset) -> str:
    """What is prepared and how, with what that costs."""
    costs = getattr(preparations()[name], "quick_costs", None) if preset == "quick" else None
    return f"{name} ({preset})" + (f": {costs}; --preparation full" if costs else "")


def quick_settings(name: str) -> dict[str, Any]:
    """A preparation's own settings for a first look; empty where it has none."""
    return dict(getattr(preparations()[name], "quick", {}))


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if "://" not in path and place.exists() else path
