"""What `optrial compare` would do, and about how long each part would take: `--dry-run`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from cluster.worker.loaded_configuration import load_source
from jobs.data.texts import read_corpora
from jobs.forecasting.forecast import Forecast, forecast_spec
from jobs.preparation.prepare import Task, checked, recipe
from jobs.preparation.recipes import is_same
from jobs.trial.compare import Choice, Preset, Wanted, check, spec_of, task_of, wanted_artifacts
from optim.countdown import duration
from optim.model import LanguageModel

OnStage = Callable[[str], None]
TIMED_TOKENS = 512
"""Of the passage that is timed."""


@dataclass(frozen=True)
class ArtifactCost:
    """One artifact that the comparison needs."""

    name: str
    out: str
    is_there: bool
    seconds: dict[Preset, float]
    """About how long each way of making it takes; empty where that is not known."""


@dataclass(frozen=True)
class Cost:
    """All of it."""

    artifacts: tuple[ArtifactCost, ...]
    trial: Forecast
    """The model as it is twice, and what needs no artifact: the optimised configuration is taken
    to cost no more."""


def cost(
    choice: Choice, *, address: str | None = None, on_stage: OnStage = lambda stage: None
) -> Cost:
    """Time a passage through the model and a pilot of the trial; nothing is kept.

    Raises InputError for what a person can mend, as the comparison itself would.
    """
    check(choice)
    wanted = wanted_artifacts(choice)
    artifacts = tuple(artifact_cost(each, choice, on_stage) for each in wanted)
    with tempfile.TemporaryDirectory(prefix="optrial-pilot-") as folder:
        spec = spec_of(choice, ["vattention"] if choice.vattention else [])
        spec = spec.model_copy(update={"output": str(Path(folder) / "trial")})
        trial = forecast_spec(spec, "the command line", address=address, on_stage=on_stage)
    return Cost(artifacts, trial)


def artifact_cost(wanted: Wanted, choice: Choice, on_stage: OnStage) -> ArtifactCost:
    """Of one artifact, from a timed passage through the model; none where it is there already."""
    tasks: dict[Preset, Task] = {
        "quick": task_of(wanted, choice, "quick"),
        "full": task_of(wanted, choice, "full"),
    }
    for preset in ("full", choice.preparation):
        task = tasks[preset]
        if is_same(task.out, recipe(task)):
            return ArtifactCost(wanted.name, task.out, True, {})
    task = tasks[choice.preparation]
    on_stage(f"timing the model ({task.model.path})")
    lm = load_source(task.model)
    seconds: dict[Preset, float] = {}
    each_s = _seconds_per_token(lm, choice.cpus)
    for preset, each in tasks.items():
        num_tokens = _forward_tokens(lm, each)
        if num_tokens is not None:
            seconds[preset] = num_tokens * each_s
    return ArtifactCost(wanted.name, task.out, False, seconds)


def _seconds_per_token(lm: LanguageModel, threads: int) -> float:
    """Of one long sequence, with the threads that the preparation will have."""
    length = min(TIMED_TOKENS, lm.context_length or TIMED_TOKENS)
    ids_1T = torch.full((1, length), min(lm.end_ids, default=0), device=lm.device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            lm.model(input_ids=ids_1T[:, :16], use_cache=False)
            began_s = perf_counter()
            float(lm.model(input_ids=ids_1T, use_cache=False).logits[0, -1, 0])
            return (perf_counter() - began_s) / length
    finally:
        torch.set_num_threads(before)


def _forward_tokens(lm: LanguageModel, task: Task) -> int | None:
    made: Any = checked(task.name, task.settings)
    if not hasattr(made, "forward_tokens"):
        return None
    num_layers = int(lm.model.config.get_text_config(decoder=True).num_hidden_layers)
    most = int(getattr(made, "corpus_mib", 0) * (1 << 20))
    found = made.forward_tokens(num_layers, lm.context_length, _corpus_bytes(task, most))
    return int(found)


def _corpus_bytes(task: Task, most: int) -> int:
    """Of the text, counted until there are so many."""
    total = 0
    for text in islice(read_corpora(task.data, task.reading), most or 0):
        total += len(text.encode())
        if total >= most:
            break
    return total


def artifact_text(artifact: ArtifactCost, preset: Preset) -> str:
    """One artifact in a sentence."""
    if artifact.is_there:
        return f"{artifact.name}: {artifact.out} is there already."
    times = {each: f"about {duration(seconds)}" for each, seconds in artifact.seconds.items()}
    other: Preset = "full" if preset == "quick" else "quick"
    text = f"{artifact.name}: {preset} preparation, {times.get(preset, 'of unknown length')}"
    if other in times:
        text += f" (--preparation {other}: {times[other]})"
    return f"{text}, into {artifact.out}."
