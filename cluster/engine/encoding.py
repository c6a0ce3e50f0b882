"""How a context and its continuation become tokens to be scored, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optim.models.prompt_ids import prompt_ids

_ANCHORS = ("\n", "x", ".")
_TAIL_TOKENS = 8


def encode_pair(
    tokenizer: Any, context: str, continuation: str, *, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """Ids of a context, and of exactly the continuation's text after it.

    Both are encoded together. Where the context's own ids are not the beginning of that, because a
    token spans the join (the usual case where new tokens stand for several words), the continuation
    is encoded alone: taking what follows the context's length instead, as lm-eval does, would leave
    the continuation without tokens, or score other text (lm-evaluation-harness #1053, #1297,
    #3336). Tokenizers that begin every text with a space are kept from scoring that space, too.
    """

    def encode(text: str, special: bool = False) -> list[int]:
        return prompt_ids(tokenizer, text, special=special)

    before = encode(context, add_special_tokens)
    if not continuation:
        return before, []
    together = encode(context + continuation, add_special_tokens)
    if len(together) > len(before) and together[: len(before)] == before:
        return before, together[len(before) :]
    alone = encode(continuation)
    if _spells(tokenizer, before, alone, continuation):
        return before, alone
    for anchor in _ANCHORS:
        head, whole = encode(anchor), encode(anchor + continuation)
        after = whole[len(head) :]
        if whole[: len(head)] == head and _spells(tokenizer, before, after, continuation):
            return before, after
    return before, alone


def _spells(tokenizer: Any, before: list[int], after: list[int], text: str) -> bool:
    """Whether `after` adds exactly the text to what `before` ends with."""
    tail = before[-_TAIL_TOKENS:]

    def decode(ids: list[int]) -> str:
        found: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return found

    return decode(tail + after) == decode(tail) + text


def windows(
    before: list[int], after: list[int], limit: int
) -> Iterator[tuple[list[int], list[int]]]:
    """A long text in parts with their contexts, each token scored once.

    The model reads at most `limit` tokens at a time; a part's last one is only predicted. The first
    part follows `before`, every later one the token before it, and the last one as many as fit
    (lm-eval's rolling windows, `get_rolling_token_windows`, with a context of one).
    """
    first = limit + 1 - len(before)
    yield before, after[:first]
    for start in range(first, len(after), limit):
        stop = min(start + limit, len(after))
        yield after[max(0, stop - limit - 1) : start], after[start:stop]
