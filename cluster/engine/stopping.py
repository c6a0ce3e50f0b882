"""Stop strings, found in what was generated as it reads with special tokens in it.

A stop string may be a special token's own text (`<|im_end|>`), which texts are given without, or
begin with the space that a SentencePiece decoder drops at the start of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopFinder:
    """Looks for stop strings in generated ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Those that decoding leaves out, which are more than the ones with a role of their own.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        flagged = (number for number, token in added.items() if token.special)
        self._special = frozenset([*tokenizer.all_special_ids, *flagged])
        # Any plain token before the text keeps its first space.
        self._anchor: list[int] = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._anchor_text = self._decode(self._anchor, skips=False)

    def cut(self, ids: Sequence[int], stops: tuple[str, ...]) -> str | None:
        """The text before the first stop string, without special tokens; None where there is none.

        Ids are looked at as they come, so a stop string ends at the last one.
        """
        # A token holds at least one byte in a byte-level vocabulary, and partial ones may decode to
        # nothing: twice the longest stop string in bytes is a safe tail.
        tail = ids[-(2 * max(len(s.encode()) for s in stops) + 8) :]
        if not any(s in self._read(tail) for s in stops):
            return None
        read = self._read(ids)
        places = [place for s in stops if (place := read.find(s)) >= 0]
        if not places:
            return None
        text = read[: min(places)]
        for token in ids:
            if token in self._special:
                text = text.replace(self._decode([token], skips=False), "", 1)
        # As texts are given otherwise: without the space that their decoder drops.
        whole = self._decode(ids, skips=True)
        is_dropped = text.startswith(" ") and not whole.startswith(" ")
        return text[1:] if is_dropped else text

    def _read(self, ids: Sequence[int]) -> str:
        read = self._decode([*self._anchor, *ids], skips=False)
        if read.startswith(self._anchor_text):
            return read[len(self._anchor_text) :]
        return self._decode(ids, skips=False)

    def _decode(self, ids: Sequence[int], *, skips: bool) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=skips, clean_up_tokenization_spaces=False
        )
        return text
