"""What a model pays for text per byte of it, whatever its vocabulary.

Loss per token says nothing across vocabularies: a token of one is not a token of the other. Bits
per byte do, as long as every byte is paid for in the same context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optim.adaptivocab.training.segments import padded, rows, size_bytes
from optim.errors import InputError

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class SegmentCosts:
    """The cost of each of S segments, for paired statistics between models."""

    nats_S: Tensor
    """float64: -ln of the probability of all its tokens."""
    bytes_S: Tensor
    """int64: its UTF-8 bytes."""

    @property
    def bits_per_byte(self) -> float:
        """Over all segments: nats / ln 2 / bytes."""
        return float(self.nats_S.sum()) / math.log(2) / int(self.bytes_S.sum())


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[str],
    *,
    batch_tokens: int = 4096,
    on_bytes: OnBytes = lambda num_bytes: None,
) -> float:
    """Nats / ln 2 / UTF-8 bytes over all segments; see `segment_costs`."""
    costs = segment_costs(model, tokenizer, segments, batch_tokens=batch_tokens, on_bytes=on_bytes)
    return costs.bits_per_byte


def segment_costs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[str],
    *,
    batch_tokens: int = 4096,
    on_bytes: OnBytes = lambda num_bytes: None,
) -> SegmentCosts:
    """What each segment costs, by itself, teacher-forced, its first token behind the start token.

    `batch_tokens` bounds the tokens, padding included, of a forward pass; a longer segment goes
    alone. `on_bytes` is told after each pass how many bytes are measured. Raises InputError where
    there are no segments, one does not fit the model's context, or the logits are not finite.
    """
    if not any(segments):
        raise InputError("there is no text to measure bits per byte on")
    rows_S = rows(model, tokenizer, segments)
    nats_S = torch.zeros(len(segments), dtype=torch.float64)
    was_training = model.training
    done = 0
    model.eval()
    try:
        with torch.inference_mode():
            for places in _batches(rows_S, batch_tokens):
                nats_S[places] = _nats(model, [rows_S[place] for place in places])
                done += sum(size_bytes(segments[place]) for place in places)
                on_bytes(done)
    finally:
        model.train(was_training)
    if not nats_S.isfinite().all():
        raise InputError(
            "its logits are not finite (NaN or infinite) on the text",
            field="model",
            mend="Check the weights, or load it in another dtype",
        )
    return SegmentCosts(nats_S, torch.tensor([size_bytes(segment) for segment in segments]))


def _batches(rows_S: list[Tensor], batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows of about equal length, longest first; in an order that lengths alone give."""
    batch: list[int] = []
    for place in sorted(range(len(rows_S)), key=lambda place: -len(rows_S[place])):
        if batch and (len(batch) + 1) * len(rows_S[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _nats(model: PreTrainedModel, rows_B: list[Tensor]) -> Tensor:
    """float64 [B], on the CPU."""
    ids_BT, labels_BT = (each.to(model.device) for each in padded(rows_B))
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    # Row by row, as the float32 logits of a whole batch may be larger than the model.
    nats_B = [
        functional.cross_entropy(logits_TV[:-1].float(), labels_T[1:], reduction="none")
        for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True)
    ]
    return torch.stack([nats_T.double().sum() for nats_T in nats_B]).cpu()
