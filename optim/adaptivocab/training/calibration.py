"""Rows of the head shifted so that new tokens are as likely as they are frequent.

A new token's row is a mix of its parts' rows, so its logit is near that of its first part, although
it is one of many ways to go on from there. Over thousands of new tokens that is most of what a new
vocabulary costs before tuning. ln p(ab | h) = ln p(a | h) + ln p(b | h, a): the second term, by how
often the first part is followed so, is added along a direction in which every hidden state has the
same length, as nearly as least squares find one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optim.adaptivocab.training.segments import rows
from optim.model import LanguageModel

MOST_TOKENS = 32_768
"""Hidden states that the direction is found from; it has as many numbers as the model is wide."""
_MOST_SEGMENTS = 4096
RIDGE = 1e-3


def calibrate(
    model: PreTrainedModel,
    base: LanguageModel,
    expansions: Mapping[int, tuple[int, ...]],
    counts: Mapping[int, int],
    base_counts: Mapping[int, int],
    segments: Sequence[str],
) -> None:
    """Shift the new rows of a model's head (its biases, where it has some) in place.

    `counts` say how often each new id occurs in the adapted encoding of some texts, `base_counts`
    how often each base id does in the base's; `segments` are texts for hidden states of the base.
    """
    ids = list(expansions)
    shifts_N = torch.tensor(
        [
            math.log((counts.get(i, 0) + 0.5) / (base_counts.get(expansions[i][0], 0) + 1))
            for i in ids
        ]
    ).clamp(max=0.0)
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        if getattr(head, "bias", None) is not None:
            head.bias[ids] += shifts_N.to(head.bias)
            return
        direction_D = _level_direction(base, segments).to(head.weight.device)
        shift_ND = shifts_N.to(head.weight.device)[:, None] * direction_D
        head.weight[ids] = (head.weight[ids].float() + shift_ND).to(head.weight.dtype)


def _level_direction(base: LanguageModel, segments: Sequence[str]) -> Tensor:
    """[D] float32: u that minimises the sum of (h u - 1)² over hidden states h at the head."""
    width = base.model.get_output_embeddings().weight.shape[1]
    gram_DD = torch.zeros(width, width, dtype=torch.float64, device=base.device)
    total_D = torch.zeros(width, dtype=torch.float64, device=base.device)

    def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
        hidden_TD = inputs[0].flatten(0, -2).double()
        gram_DD.add_(hidden_TD.T @ hidden_TD)
        total_D.add_(hidden_TD.sum(dim=0))

    handle = base.model.get_output_embeddings().register_forward_pre_hook(add)
    try:
        for ids_T in _enough(rows(base.model, base.tokenizer, list(segments[:_MOST_SEGMENTS]))):
            with torch.inference_mode():
                base.model(input_ids=ids_T[None].long().to(base.device), use_cache=False)
    finally:
        handle.remove()
    gram_DD.diagonal().add_(RIDGE * gram_DD.diagonal().mean() + 1e-12)
    direction_D: Tensor = torch.linalg.solve(gram_DD, total_D).float()
    return direction_D


def _enough(rows_S: Sequence[Tensor]) -> list[Tensor]:
    """The first rows with `MOST_TOKENS` tokens."""
    found: list[Tensor] = []
    size = 0
    for ids_T in rows_S:
        if size >= MOST_TOKENS:
            break
        found.append(ids_T)
        size += len(ids_T)
    return found
