"""What of a model is trained, in which precision, and by which optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
)
from transformers.pytorch_utils import Conv1D

from optim.adaptivocab.training.tuning_settings import Tuning
from optim.errors import InputError


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained of a model, by name; tied parameters once."""
    return [(name, each) for name, each in model.named_parameters() if each.requires_grad]


def by_token_parameters(model: PreTrainedModel) -> list[Any]:
    """The parameters with a row for each token: embedding and head, tied or not."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return list(dict.fromkeys(each for module in modules for each in module.parameters()))


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks: the outermost module list with as many as the config says.

    Raises InputError where there is none.
    """
    number = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    outer = ""
    for name, module in model.named_modules():
        if outer and name.startswith(outer):
            continue
        if isinstance(module, nn.ModuleList):
            if len(module) == number:
                return module
            outer = f"{name}."
    raise InputError(
        f"{type(model).__name__} has no list of {number} blocks, so its first and last are unknown",
        field="trained_layers",
        mend="Set trained_layers to none or all, or lora_rank above 0",
    )


def choose_trained(model: PreTrainedModel, settings: Tuning) -> None:
    """Set `requires_grad` of every parameter: embedding and head, and the blocks of the settings.

    The final norm and position embeddings are not trained, as in the paper: the last block's output
    and the head's rows, on either side of the norm, can say what its gains could. Adapters that are
    in the model are trained.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    modules: list[nn.Module] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if settings.lora_rank == 0 and settings.trained_layers != "none":
        found = blocks(model)
        modules += found if settings.trained_layers == "all" else (found[0], found[-1])
    for module in modules:
        module.requires_grad_(True)


@contextmanager
def made_trainable(model: PreTrainedModel, settings: Tuning, *, casts_all: bool) -> Iterator[None]:
    """What is trained in float32, all else too where nothing is cast later on; adapters in place.

    Afterwards the model is as plain as before: adapters merged, dtypes, mode and flags restored.
    """
    before = [(each, each.dtype, each.requires_grad) for each in model.parameters()]
    attributes = dict(vars(model))
    mode, has_cache = model.training, getattr(model.config, "use_cache", None)
    adapted: Any = None
    try:
        if settings.lora_rank:
            adapted = _adapted(model, settings.lora_rank)
        choose_trained(model, settings)
        for parameter in model.parameters():
            if casts_all or parameter.requires_grad:
                parameter.data = parameter.data.float()
        yield
    finally:
        if adapted is not None:
            adapted.merge_and_unload()
        for parameter, dtype, requires_grad in before:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        model.train(mode)
        model.config.use_cache = has_cache
        # What Accelerate and peft left on it; the autocast is in a `forward` of its own.
        for name in vars(model).keys() - attributes.keys():
            delattr(model, name)
        if "forward" in attributes:
            model.forward = attributes["forward"]


def _adapted(model: PreTrainedModel, rank: int) -> Any:
    """Adapters put into the linear layers of the body; merged by `merge_and_unload`."""
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise InputError(
            "LoRA needs the package peft, which is not installed",
            field="lora_rank",
            mend="Install it with pip install 'optrial[lora]', or set lora_rank to 0",
        ) from error
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(linear),
        fan_in_fan_out=any(isinstance(each, Conv1D) for each in linear.values()),
    )
    return LoraModel(model, config, "default")


def new_optimizer(model: PreTrainedModel, settings: Tuning) -> torch.optim.Optimizer:
    """The paper's AdamW. Rows of tokens come first, as `NewRows` expects."""
    by_token = [each for each in by_token_parameters(model) if each.dim() > 1]
    others = [p for _, p in trained(model) if not any(p is each for each in by_token)]
    groups: list[dict[str, Any]] = [
        {"params": by_token},
        {"params": [each for each in others if each.dim() > 1]},
        {"params": [each for each in others if each.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )


class NewRows(TrainerCallback):  # type: ignore[misc]
    """Keeps everything but the rows of new tokens as it is, for the first steps.

    By hooks on gradients, so that clipping sees what is trained alone; what has no gradient AdamW
    passes over, and the rows have no decay as long.
    """

    def __init__(
        self, model: PreTrainedModel, new_ids: Sequence[int], settings: Tuning, num_steps: int
    ) -> None:
        self._last_step = round(settings.new_rows_first * num_steps) if new_ids else 0
        self._decay = settings.weight_decay
        self._is_on = False
        self._handles: list[Any] = []
        by_token = by_token_parameters(model)
        self._others = [p for _, p in trained(model) if not any(p is each for each in by_token)]
        if self._last_step:
            for parameter in by_token:
                mask_V = torch.zeros(parameter.shape[0], device=parameter.device)
                mask_V[list(new_ids)] = 1
                self._mask(parameter, mask_V.view(-1, *[1] * (parameter.dim() - 1)))
            for parameter in self._others:
                self._mask(parameter, torch.zeros((), device=parameter.device))

    def _mask(self, parameter: nn.Parameter, mask: Tensor) -> None:
        hook = parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: grad * mask if self._is_on else grad
        )
        self._handles.append(hook)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self._is_on = state.global_step < self._last_step
        optimizer.param_groups[0]["weight_decay"] = 0.0 if self._is_on else self._decay

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_on:
            for parameter in self._others:
                parameter.grad = None
