"""Whether loaded weights give in a ragged batch what they give alone, shown once before a run.

The architecture was checked with random weights in float32 (`cluster.conformance.architecture`);
this is of the model that runs: its dtype, its device, its optimisations and its cache, which may be
lossy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from cluster.conformance.runs import whole_logits
from cluster.conformance.told import Gap, Text, Told
from cluster.engine.engine import Engine
from optim.errors import InputError, SequenceError

_TEXT = "Rivers carry sand and stones from mountains to the sea, year after year. " * 4
_SIZES = ((4, 3), (13, 3))
"""Tokens of prompts and completions."""
_TIMES = 10
_OWN_GAP = 5e-3
"""Of models and caches that leave something out: what is left out by a near tie depends on the last
bits, and moves logits by more than rounding does."""

log = logging.getLogger(__name__)


def require_steady(engine: Engine, *, is_exact: bool, source: str) -> None:
    """InputError where a neighbour changes logits more than ten times what rounding does.

    That is the gap between two right orders of evaluation: whole passes and one at a time, or equal
    rows and one. `is_exact`: cache and model keep everything, so whole passes are right too.
    """
    if engine.batch_size == 1:
        return
    gap = right = 0.0
    for given in _given(engine):
        try:
            gap, right = _gaps(engine, given, is_exact)
        except SequenceError as error:
            # Too little memory, say: rows will say so themselves.
            log.info("a ragged batch was not looked at", extra={"reason": str(error)})
            return
        if not gap > _TIMES * right:
            return
    if not gap:
        return  # there was no room for any
    raise InputError(
        f"{type(engine.lm.model).__name__} gives other logits beside a longer text than alone: "
        f"{gap:.1%} of their spread apart, and orders of evaluation that are right are "
        f"{right:.1%}",
        source=source,
        field="model",
        mend="It works with batch_size: 1",
    )


def _given(engine: Engine) -> Iterator[list[Text]]:
    """Two draws of a short and a longer text; none where the context window is too short."""
    limit = engine.max_length
    longest = max(map(sum, _SIZES))
    if limit is not None and limit < longest:
        return
    lm = engine.lm
    found = lm.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    size = min(len(lm.vocabulary.keys_V), int(lm.model.get_input_embeddings().weight.shape[0]))
    ids = [token for token in found if token < size and token not in lm.end_ids]
    if not ids:
        return
    ids *= 1 + 3 * longest // len(ids)
    for start in (0, longest):
        yield [Text(ids[start:][:n], ids[start + n :][:m]) for n, m in _SIZES]


def _gaps(engine: Engine, given: list[Text], is_exact: bool) -> tuple[float, float]:
    """(ragged from alone, the larger of rounding and of right orders from each other)."""
    lm = engine.lm
    alone = _logits(engine, given, batch_size=1)
    gap = Gap.between(_logits(engine, given, batch_size=2), alone).typical
    is_plain = is_exact and not lm.is_phased
    right = torch.finfo(lm.model.dtype).eps if is_plain else _OWN_GAP
    if gap > _TIMES * right:
        for text, own in zip(given, alone, strict=True):
            twice = _logits(engine, [text, text], batch_size=2)
            right = max(right, Gap.between(twice, [own, own]).typical)
        if is_plain:
            right = max(right, Gap.between(whole_logits(lm.model, given), alone).typical)
    return gap, right


def _logits(engine: Engine, given: list[Text], *, batch_size: int) -> list[torch.Tensor]:
    told = Told(
        engine.lm,
        batch_size=batch_size,
        cache=engine.cache_factory,
        prefill_chunk=engine.prefill_chunk,
    )
    return told.logits(given)
