"""Text in segments of a bounded number of bytes, and the tokens of each.

A model and its adapted twin cut text into different tokens. What they are tuned on and measured by
is therefore cut in bytes, before any tokenizer sees it: both get the same text, in the same order,
with the same context in front of every byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optim.errors import InputError
from optim.models.window import context_length

SEGMENT_BYTES = 2048
"""How long a segment is where nothing else is said."""

_UP_TO_LAST_GAP = re.compile(r".*\S(?=\s)", re.DOTALL)
_AT_ONCE = 1024


def cut(texts: Iterable[str], num_bytes: int = SEGMENT_BYTES) -> Iterator[str]:
    """Segments of at most `num_bytes` UTF-8 bytes; those of a text concatenate to it.

    A segment ends in front of white space where there is some (tokens begin with it), otherwise
    between characters; never inside one. Empty texts have none. Raises InputError where
    `num_bytes` is less than a character can have (4), or a text has a lone surrogate.
    """
    if num_bytes < 4:
        raise InputError(
            f"{num_bytes} bytes are too few for a segment: a character can have four",
            field="segment_bytes",
        )
    for text in texts:
        data = _encoded(text)
        start = 0
        while start < len(data):
            end = _end(data, start, num_bytes)
            yield data[start:end].decode()
            start = end


def fitting(
    segments: Iterable[str], tokenizers: Sequence[PreTrainedTokenizerBase], num_tokens: int
) -> Iterator[str]:
    """Segments with at most `num_tokens` tokens in all of the tokenizers.

    Those with more are cut in halves, as `cut` does it, until they fit; what they concatenate to
    stays the same, so that every model sees the same text.
    """
    for segment in segments:
        half = (size_bytes(segment) + 1) // 2
        if half < 4 or all(_num_tokens(each, segment) <= num_tokens for each in tokenizers):
            yield segment
        else:
            yield from fitting(cut([segment], half), tokenizers, num_tokens)


def _num_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def size_bytes(text: str) -> int:
    """Its length in UTF-8; InputError where it has a lone surrogate."""
    return len(_encoded(text))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which no encoding can hold",
            mend="Leave it out, or decode the file as it was encoded",
        ) from error


def _end(data: bytes, start: int, num_bytes: int) -> int:
    """Where the segment that begins at `start` ends."""
    end = start + num_bytes
    if len(data) <= end:
        return len(data)
    while _is_inside_character(data[end]):
        end -= 1
    after = end + 1
    while after < len(data) and _is_inside_character(data[after]):
        after += 1
    # With the character behind, in case the segment ends in front of white space as it is.
    gap = _UP_TO_LAST_GAP.match(data[start:after].decode())
    return start + len(gap.group().encode()) if gap else end


def _is_inside_character(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def start_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands in front of a segment: bos, else the end token.

    InputError where neither the tokenizer nor the model names one.
    """
    for owner in (tokenizer, model.generation_config, model.config):
        for name in ("bos_token_id", "eos_token_id"):
            found = getattr(owner, name, None)
            if isinstance(found, list):
                found = found[0] if found else None
            if found is not None:
                return int(found)
    raise InputError(
        "it has neither a start nor an end token, so the first token of a text cannot be predicted",
        field="model",
        mend="Set bos_token or eos_token in its tokenizer_config.json",
    )


def end_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text, as generation knows it; None where there is none."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    if isinstance(found, list):
        found = found[0] if found else None
    return None if found is None else int(found)


def rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[str],
    ends: Sequence[bool] = (),
) -> list[Tensor]:
    """The tokens of each segment, ids_T int32 on the CPU, the start token first.

    Where `ends` says that a text ends with the segment, the model's end token follows. Raises
    InputError where a segment has more tokens than the model has positions.
    """
    start, end = start_id(model, tokenizer), end_id(model, tokenizer)
    found: list[Tensor] = []
    for first in range(0, len(segments), _AT_ONCE):
        encoded = tokenizer(
            list(segments[first : first + _AT_ONCE]), add_special_tokens=False, verbose=False
        )
        for place, ids in enumerate(encoded["input_ids"], start=first):
            has_end = place < len(ends) and ends[place] and end is not None
            found.append(torch.tensor([start, *ids, *([end] * has_end)], dtype=torch.int32))
    _require_room(model, found)
    return found


def _require_room(model: PreTrainedModel, rows_S: list[Tensor]) -> None:
    positions = context_length(model.config)
    longest = max((len(ids_T) for ids_T in rows_S), default=0)
    if positions and longest > positions:
        raise InputError(
            f"a segment has {longest:,} tokens with its start token, and the model "
            f"{positions:,} positions",
            field="segment_bytes",
            mend=f"Cut shorter segments: {positions - 1:,} bytes always fit where every byte "
            "has a token",
        )


def padded(rows_S: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(ids_BT, labels_BT) int64 of some rows, padded on the right; labels are -100 where nothing
    is to be predicted: at the start token and on the padding.

    The padding repeats the start token. No attention mask is needed: models are causal, so what
    stands to the right of a position does not reach it.
    """
    length = max(len(ids_T) for ids_T in rows_S)
    ids_BT = torch.full((len(rows_S), length), int(rows_S[0][0]), dtype=torch.int64)
    labels_BT = torch.full_like(ids_BT, -100)
    for place, ids_T in enumerate(rows_S):
        ids_BT[place, : len(ids_T)] = ids_T
        labels_BT[place, 1 : len(ids_T)] = ids_T[1:]
    return ids_BT, labels_BT


@dataclass(frozen=True)
class Steps:
    """Which segments go through the model together, and in which order."""

    num_steps: int
    segments_per_step: int
    passes: list[list[int]]
    """Places of the segments of each forward pass, in order; processes take turns. Each step is
    equally many of them."""
    passes_per_process: int
    """Of one step, for each process."""


def in_steps(
    bytes_S: Sequence[int],
    *,
    epochs: float,
    step_bytes: int,
    pass_bytes: int,
    num_processes: int = 1,
    seed: int = 0,
) -> Steps:
    """Segments in random order, about `step_bytes` of them a step, whole steps.

    Depends on the sizes in bytes alone, so it is the same for every tokenizer; what a step has is
    the same for any number of processes. Within a step, passes are of segments about equally long,
    at most `pass_bytes` where a step leaves room for that.
    """
    average = sum(bytes_S) / len(bytes_S)
    per_step = max(num_processes, min(len(bytes_S), round(step_bytes / average)))
    num_steps = max(1, round(epochs * len(bytes_S) / per_step))
    at_once = max(1, pass_bytes // max(bytes_S))
    rounds = max(1, min(-(-per_step // (num_processes * at_once)), per_step // num_processes))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_steps * per_step:
        order += torch.randperm(len(bytes_S), generator=generator).tolist()
    passes: list[list[int]] = []
    for step in range(num_steps):
        together = order[step * per_step : (step + 1) * per_step]
        together.sort(key=lambda place: (-bytes_S[place], place))
        bounds = [n * per_step // (rounds * num_processes) for n in range(rounds * num_processes)]
        passes += [together[a:b] for a, b in pairwise([*bounds, per_step])]
    return Steps(num_steps, per_step, passes, rounds)
