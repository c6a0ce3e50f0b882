"""Checkpoints of tuning: which run one is of, and which can be gone on from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import (
    PreTrainedModel,
)

from optim.adaptivocab.training.tuning_settings import Tuning

OnStage = Callable[[str], None]
COMPLETE = "complete.json"
"""Written last into a checkpoint; says what it is a checkpoint of."""


def run_key(
    model: PreTrainedModel, rows_S: list[Tensor], new_ids: Sequence[int], settings: Tuning
) -> str:
    """Of all that the outcome depends on: weights, tokens in order, settings."""
    digest = hashlib.sha256()
    stated = settings.model_dump_json(exclude={"checkpoint_steps"})
    digest.update(json.dumps([stated, sorted(new_ids)]).encode())
    for ids_T in rows_S:
        digest.update(len(ids_T).to_bytes(8, "big") + ids_T.numpy().tobytes())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        content = parameter.detach().cpu().contiguous().flatten()
        digest.update(content.view(torch.uint8).numpy())
    return digest.hexdigest()


def resume(work: Path, key: str, arguments: Any, on_stage: OnStage) -> Path | None:
    """The checkpoint to go on from, the same for all processes; rank 0 removes the useless."""
    step = torch.zeros((), dtype=torch.int64, device=arguments.device)
    if arguments.process_index == 0:
        good: list[int] = []
        for folder in checkpoints(work):
            if _stored_key(folder) == key:
                good.append(step_of(folder))
            else:
                on_stage(f"tuning: {folder.name} is incomplete or of another run; it is removed")
                shutil.rmtree(folder)
        step.fill_(max(good, default=0))
    if arguments.world_size > 1:
        distributed.broadcast(step, 0)
    if not step:
        return None
    on_stage(f"tuning: goes on from step {int(step)}")
    return work / f"checkpoint-{int(step)}"


def checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob("checkpoint-*"), key=step_of)


def _stored_key(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / COMPLETE).read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
