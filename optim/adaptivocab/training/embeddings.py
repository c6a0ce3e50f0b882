"""Rows for new tokens, made from the rows of the tokens that they stand for."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optim.tree import copied, replace

Init = Literal["exp", "half", "mean", "random"]
Tied = Literal["untie", "symmetric"]
Side = Literal["input", "head"]

_DECAY = {"exp": math.exp(-2.0), "half": 0.5, "mean": 1.0}
"""A weight over the one of its neighbour nearer to the side that counts most: e^{±2i} in the paper
(section 3.3), 0.5^i in the released code."""


def weights(length: int, init: Init, side: Side) -> Tensor:
    """[length] float64: what each of a token's parts adds to its row; they sum to 1.

    The last part dominates an input row, since it is what the model would have read last; the first
    one a row of the head, since it is what the model would have to say first.
    """
    powers = torch.arange(length, dtype=torch.float64)
    found = torch.pow(torch.tensor(_DECAY[init], dtype=torch.float64), powers)
    found /= found.sum()
    return found.flip(0) if side == "input" else found


def extend(
    model: PreTrainedModel,
    expansions: Mapping[int, tuple[int, ...]],
    *,
    init: Init = "exp",
    tied: Tied = "untie",
    seed: int = 0,
) -> PreTrainedModel:
    """A model with a row for each new id, which shares everything but embeddings and head.

    `expansions` gives the base ids that a new id stands for; a new id may be that of a removed
    token, or lie beyond the model's rows, which then grow. Rows of other ids keep their bits. Where
    input and head are one matrix, `untie` makes two of it, `symmetric` keeps one, whose new rows
    are the mean of what the two would have. `random` draws rows of the old ones' mean and
    deviation.
    """
    made = copied(model)
    made.config = copy.deepcopy(model.config)
    old_head = made.get_output_embeddings()
    inputs_VD = model.get_input_embeddings().weight.detach()
    heads_VD = old_head.weight.detach()
    is_tied = inputs_VD.data_ptr() == heads_VD.data_ptr()
    num_rows = max(len(inputs_VD), 1 + max(expansions, default=0))
    keeps_tie = is_tied and tied == "symmetric"
    sides: list[Side] = ["input", "head"]
    rows = [_grown(old, num_rows) for old in (inputs_VD, heads_VD)]
    found = [
        _new_rows(old, expansions, init, side, seed)
        for old, side in zip((inputs_VD, heads_VD), sides, strict=True)
    ]
    if keeps_tie:
        found = [(found[0] + found[1]) / 2] * 2
    ids = torch.tensor(list(expansions), dtype=torch.long, device=inputs_VD.device)
    for matrix, new in zip(rows, found, strict=True):
        matrix[ids] = new.to(matrix.dtype)
    _put(
        made,
        rows[0],
        rows[0] if keeps_tie else rows[1],
        _grown_bias(old_head, num_rows, expansions),
    )
    config = made.config.get_text_config(decoder=True)
    config.vocab_size = made.config.vocab_size = num_rows
    config.tie_word_embeddings = made.config.tie_word_embeddings = keeps_tie
    return made


def _grown(old_VD: Tensor, num_rows: int) -> Tensor:
    made = old_VD.new_zeros(num_rows, old_VD.shape[1])
    made[: len(old_VD)] = old_VD
    return made


def _grown_bias(
    head: Any, num_rows: int, expansions: Mapping[int, tuple[int, ...]]
) -> Tensor | None:
    """The head's bias, where it has one: a new token's is that of its first part."""
    if getattr(head, "bias", None) is None:
        return None
    old_V: Tensor = head.bias.detach()
    made_V: Tensor = old_V.new_zeros(num_rows)
    made_V[: len(old_V)] = old_V
    for number, parts in expansions.items():
        made_V[number] = old_V[parts[0]]
    return made_V


def _new_rows(
    old_VD: Tensor, expansions: Mapping[int, tuple[int, ...]], init: Init, side: Side, seed: int
) -> Tensor:
    """[new tokens, D] float32."""
    made = torch.zeros(len(expansions), old_VD.shape[1], device=old_VD.device)
    if init == "random":
        generator = torch.Generator().manual_seed(2 * seed + (side == "head"))
        noise = torch.randn(made.shape, generator=generator).to(made.device)
        rows = old_VD.float()
        return rows.mean(dim=0) + noise * rows.std(dim=0)
    by_length: dict[int, list[int]] = {}
    for place, parts in enumerate(expansions.values()):
        by_length.setdefault(len(parts), []).append(place)
    all_parts = list(expansions.values())
    for length, places in by_length.items():
        own = torch.tensor([all_parts[p] for p in places], device=old_VD.device)
        share = weights(length, init, side).float().to(old_VD.device)
        made[places] = torch.einsum("nld,l->nd", old_VD[own].float(), share)
    return made


def _put(model: PreTrainedModel, inputs: Tensor, heads: Tensor, bias: Tensor | None) -> None:
    """Put new embeddings and a new head in the place of the old ones."""
    old_input, old_head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    for old, weight in ((old_input, inputs), (old_head, heads)):
        new: Any = copied(old)
        new._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        for attribute, axis in (("num_embeddings", 0), ("out_features", 0)):
            if hasattr(new, attribute):
                setattr(new, attribute, weight.shape[axis])
        if old is old_head and bias is not None:
            new._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        replace(model, names[id(old)], new)
    if inputs is heads:
        head: Any = model.get_output_embeddings()
        head._parameters["weight"] = model.get_input_embeddings().weight
