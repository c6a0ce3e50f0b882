"""Models in folders of transformers: written, tuned where they lie, measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoConfig, PreTrainedModel

# Registers the tokenizer of artifacts with patches: tuning may be the first thing in its process.
import optim.adaptivocab.patched  # noqa: F401
from optim.adaptivocab.training.bits_per_byte import bits_per_byte
from optim.adaptivocab.training.segments import size_bytes
from optim.adaptivocab.training.tuning import tune
from optim.adaptivocab.training.tuning_settings import Tuning
from optim.countdown import Passage
from optim.model import LanguageModel, load, resolve

OnStage = Callable[[str], None]
FACTS = "facts.json"
RESUMED = {"resumed_step"}
"""Of the facts, what says how a run went and not what came of it."""


def stored_dtype(lm: LanguageModel) -> torch.dtype:
    """What the weights are stored in, which may be narrower than what they are computed in."""
    if lm.origin is not None:
        path, revision = lm.origin
        config = AutoConfig.from_pretrained(resolve(path, revision=revision))
        stored = getattr(config.get_text_config(decoder=True), "dtype", None)
        if isinstance(stored, torch.dtype):
            return stored
    dtype: torch.dtype = lm.model.dtype
    return dtype


def write_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Save a model with its weights in a dtype; the model is left as it is."""
    model.save_pretrained(
        folder, state_dict={name: each.to(dtype) for name, each in model.state_dict().items()}
    )
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def tune_folder(
    folder: Path,
    segments: Sequence[str],
    ends: Sequence[bool],
    settings: Tuning,
    new_ids: Sequence[int],
    work: Path,
    device: str,
    name: str,
    on_stage: OnStage,
) -> None:
    """Tune the model of a folder and write it back, and the facts to `work`.

    Is made in every process of a group alike; the first one writes. `name` begins what it reports.
    """
    lm = load(str(folder), dtype="float32", device=device)
    config = AutoConfig.from_pretrained(folder)
    facts = tune(
        lm.model,
        lm.tokenizer,
        segments,
        settings,
        ends=ends,
        new_ids=new_ids,
        work=work,
        on_stage=lambda stage: on_stage(f"{name}: {stage}"),
    )
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        fresh = work / "model"
        write_model(lm.model, fresh, config.dtype)
        for path in sorted(fresh.iterdir()):
            shutil.move(path, folder / path.name)
        (work / FACTS).write_text(json.dumps(facts.model_dump(exclude=RESUMED)), encoding="utf-8")


def measure_folder(
    folder: Path,
    segments: Sequence[str],
    device: str,
    name: str = "model",
    on_stage: OnStage = lambda stage: None,
) -> float:
    """Bits per byte of the model of a folder, computed in float32; `name` begins its reports."""
    lm = load(str(folder), dtype="float32", device=device)
    return measure(lm, segments, name, on_stage)


def measure(
    lm: LanguageModel,
    segments: Sequence[str],
    name: str = "model",
    on_stage: OnStage = lambda stage: None,
) -> float:
    """Bits per byte, rounded far below what they are known to."""
    passage = Passage(sum(map(size_bytes, segments)), on_stage)

    def report(num_bytes: int) -> None:
        passage.report(num_bytes, f"{name}: measuring bits per byte")

    return round(bits_per_byte(lm.model, lm.tokenizer, segments, on_bytes=report), 6)


def read_facts(work: Path) -> dict[str, Any]:
    """What `tune_folder` wrote down."""
    found: dict[str, Any] = json.loads((work / FACTS).read_text(encoding="utf-8"))
    return found
