"""A prompt's token ids: as its tokenizer gives them, but open at the end, so that it can go on."""

from __future__ import annotations

from typing import Any

_PROBES = ("a", "0", "\n")
_ENDS = ("eos_token_id", "sep_token_id", "pad_token_id")


def prompt_ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Ids of a text that is to be continued; `special` adds what the tokenizer puts around texts.

    Of that, an end token behind the text is left out: what follows an end is another text. One that
    the text itself spells stays.
    """
    ids = _ids(tokenizer, text, special)
    if special and ids and ids[-1] in _ends(tokenizer):
        return ids[: len(ids) - len(closing_ids(tokenizer))]
    return ids


def closing_ids(tokenizer: Any) -> list[int]:
    """The end tokens that a tokenizer closes every text with by itself; mostly none."""
    ends = _ends(tokenizer)
    _, added = _around(tokenizer)
    first = len(added)
    while first and added[first - 1] in ends:
        first -= 1
    return added[first:]


def added_start(tokenizer: Any) -> int | None:
    """The start token that a tokenizer puts before every text by itself; None where it does not."""
    before, _ = _around(tokenizer)
    start: int | None = getattr(tokenizer, "bos_token_id", None)
    return start if start in before else None


def starts_twice(tokenizer: Any, text: str) -> bool:
    """Whether a text spells the start token that its tokenizer puts before it anyway."""
    start, (before, _) = added_start(tokenizer), _around(tokenizer)
    return start is not None and _ids(tokenizer, text, True)[len(before) :][:1] == [start]


def _ends(tokenizer: Any) -> set[int]:
    found = (getattr(tokenizer, name, None) for name in _ENDS)
    return {end for end in found if end is not None}


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer adds before and behind a text."""
    for probe in _PROBES:
        bare, whole = (_ids(tokenizer, probe, special) for special in (False, True))
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    return [], []


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
