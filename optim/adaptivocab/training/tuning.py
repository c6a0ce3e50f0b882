"""Tuning on domain text, of an adapted model and of its vanilla control alike.

After the paper's section on fine-tuning: plain causal language modelling; the embedding rows, the
head, and the first and the last block are trained. The loop is `transformers.Trainer`'s.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from optim.adaptivocab.training.checkpoints import COMPLETE, checkpoints, resume, run_key, step_of
from optim.adaptivocab.training.segments import Steps, in_steps, padded, rows, size_bytes
from optim.adaptivocab.training.trainable import NewRows, made_trainable, new_optimizer, trained
from optim.adaptivocab.training.tuning_settings import Tuning, TuningFacts
from optim.countdown import duration
from optim.errors import InputError

OnStage = Callable[[str], None]

REPORT_EVERY_S = 2.0
_TRAINED = "trained.safetensors"


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[str],
    settings: Tuning,
    *,
    ends: Sequence[bool] = (),
    new_ids: Sequence[int] = (),
    work: Path,
    on_stage: OnStage = lambda stage: None,
) -> TuningFacts:
    """Tune a model in place, on the device where it lies; it keeps its dtype.

    `segments` are those of `segments.cut`, and `ends` says which of them end their text: the end
    token is learnt there. Give the same to a model and to its control. Training is
    in float32, with bfloat16 autocast where the settings say. Inside a `torch.distributed` group
    whose environment variables are set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR), every process
    calls this alike and a step's text is shared among them; rank 0 writes and reports.

    Checkpoints go to `work`, which all processes must see. A run that was interrupted, by what
    `on_stage` raises or by a kill, goes on from the last one when it is called again with the same
    arguments and the same initial weights, and on a CPU ends as it would have; other checkpoints
    are removed. Weights in them are safetensors. The states of optimiser, schedule and random
    generators are Trainer's files of `torch.save`, which it reads with `weights_only=True`.

    After an exception the model is part-tuned: load it again. Seeds the global random generators.
    On a CPU, one seed and one number of threads and processes give one result.

    Raises InputError where there is no text, a segment does not fit the model's context, an id in
    `new_ids` has no row, the blocks are not found, peft is missing for LoRA, or the loss is not
    finite.
    """
    if not any(segments):
        raise InputError("there is no text to tune on")
    _require_rows(model, new_ids)
    bytes_S = [size_bytes(segment) for segment in segments]
    rows_S = rows(model, tokenizer, segments, ends)
    arguments, steps = _arguments(model, bytes_S, settings, work)
    is_first = arguments.process_index == 0
    on_stage = on_stage if is_first else lambda stage: None
    key = run_key(model, rows_S, new_ids, settings) if is_first else ""
    resumed = resume(work, key, arguments, on_stage)
    set_seed(settings.seed)
    with made_trainable(model.to(arguments.device), settings, casts_all=not arguments.bf16):
        new_rows = NewRows(model, new_ids, settings, steps.num_steps)
        watch = _Watch(steps, bytes_S, key, on_stage)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=steps.passes,
            data_collator=lambda passes: _inputs(rows_S, passes),
            compute_loss_func=_mean_loss,
            optimizers=(new_optimizer(model, settings), None),
            callbacks=[new_rows, watch],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        finally:
            new_rows.remove()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        seen = [place for each in steps.passes for place in each]
        return TuningFacts(
            num_steps=steps.num_steps,
            segments_per_step=steps.segments_per_step,
            num_segments=len(segments),
            text_bytes=sum(bytes_S[place] for place in seen),
            num_tokens=sum(len(rows_S[place]) - 1 for place in seen),
            num_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            first_loss=losses[0],
            last_loss=losses[-1],
            resumed_step=step_of(resumed) if resumed else 0,
        )


def _require_rows(model: PreTrainedModel, new_ids: Sequence[int]) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    outside = [each for each in new_ids if not 0 <= each < size]
    if outside:
        raise InputError(f"the new id {outside[0]} has no row: the model has {size:,}")


def _arguments(
    model: PreTrainedModel, bytes_S: Sequence[int], settings: Tuning, work: Path
) -> tuple[Any, Steps]:
    """Trainer's arguments, which join the process group, and the steps for its size."""
    device = model.device
    autocast = settings.bfloat16 if device.type == "cpu" else _has_bfloat16()
    with _threads_kept():
        arguments = TrainingArguments(
            output_dir=str(work),
            use_cpu=device.type == "cpu",
            bf16=autocast,
            seed=settings.seed,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            num_train_epochs=1,
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            save_strategy="steps",
            save_steps=settings.checkpoint_steps,
            logging_strategy="steps",
            logging_nan_inf_filter=False,
            log_level_replica="passive",
            report_to=[],
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
        )
    num_processes = arguments.world_size
    if distributed.is_initialized() and distributed.get_world_size() != num_processes:
        raise RuntimeError("tuning in a process group needs RANK, WORLD_SIZE and LOCAL_RANK set")
    # One process drives one device: several that it sees are for other processes.
    arguments._n_gpu = min(1, arguments.n_gpu)
    steps = in_steps(
        bytes_S,
        epochs=settings.epochs,
        step_bytes=settings.batch_bytes,
        pass_bytes=settings.pass_bytes,
        num_processes=num_processes,
        seed=settings.seed,
    )
    arguments.gradient_accumulation_steps = steps.passes_per_process
    arguments.warmup_steps = round(settings.warm_up * steps.num_steps)
    arguments.logging_steps = max(1, steps.num_steps // 2000)
    return arguments, steps


def _has_bfloat16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Accelerate chooses a number of threads for a process group where the environment has none."""
    name = "OMP_NUM_THREADS"
    missing = name not in os.environ
    if missing:
        os.environ[name] = str(torch.get_num_threads())
    try:
        yield
    finally:
        if missing:
            del os.environ[name]


def _inputs(rows_S: list[Tensor], passes: list[list[int]]) -> dict[str, Tensor]:
    ids_BT, labels_BT = padded([rows_S[place] for places in passes for place in places])
    return {"input_ids": ids_BT, "labels": labels_BT}


def _mean_loss(outputs: Any, labels_BT: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """The share of a pass in the mean over all tokens of a step, those of other processes too.

    Not left to the model, since those that know no `num_items_in_batch` would give each pass the
    same weight, however many tokens it has.
    """
    logits_NV = outputs.logits[:, :-1].flatten(0, 1).float()
    total = functional.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum")
    return total / num_items_in_batch


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer, with checkpoints of what is trained alone, and nothing pickled beside it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(trained(self.model)), folder / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / _TRAINED)
        with torch.no_grad():
            for name, parameter in trained(self.model):
                parameter.copy_(stored.pop(name))
        assert not stored


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports, stops at a loss that is not finite, and marks checkpoints as complete."""

    def __init__(self, steps: Steps, bytes_S: Sequence[int], key: str, on_stage: OnStage) -> None:
        per_step = len(steps.passes) // steps.num_steps
        self._bytes_N = [
            sum(bytes_S[place] for each in steps.passes[n : n + per_step] for place in each)
            for n in range(0, len(steps.passes), per_step)
        ]
        self._key, self._on_stage = key, on_stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = state.global_step
        self._begin_s = self._last_s = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"the loss is not finite at step {state.global_step}",
                field="learning_rate",
                mend="Lower it, or check the weights",
            )
        now_s = time.monotonic()
        if loss is None or now_s - self._last_s < REPORT_EVERY_S:
            return
        self._last_s = now_s
        seen_bytes = sum(self._bytes_N[self._begin : state.global_step])
        self._on_stage(
            f"tuning: step {state.global_step} of {state.max_steps}, loss {loss:.2f} nats per "
            f"token, {seen_bytes / (now_s - self._begin_s) / 1000:.1f} kB/s, "
            f"{self._left(state, now_s)} to go"
        )

    def _left(self, state: Any, now_s: float) -> str:
        """The first step is slower than the others, so that this is rather too much."""
        each_s = (now_s - self._begin_s) / (state.global_step - self._begin)
        return duration(each_s * (state.max_steps - state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            distributed.barrier()  # Each process has written its random state.
        if args.process_index == 0:
            mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
            draft = mark.with_suffix(".draft")
            draft.write_text(json.dumps({"key": self._key}))
            draft.replace(mark)
            for older in checkpoints(mark.parents[1]):
                if older != mark.parent:
                    shutil.rmtree(older)
