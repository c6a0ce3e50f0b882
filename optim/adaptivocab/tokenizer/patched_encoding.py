"""`PatchedEncoding`: what a text has become, with new tokens in the place of base ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from optim.adaptivocab.tokenizer.segmentation import Segmenter


class PatchedEncoding:
    """What `tokenizers.Encoding` tells of a text, of its adapted ids.

    A token's offsets reach from its first base token's to its last one's. Parts of a removed base
    token share its characters: exactly where it is ASCII, else each has the offsets of all of it.
    """

    def __init__(
        self, base: Any, ids: list[int], segmenter: Segmenter, name: Any, pad: tuple[int, int, str]
    ) -> None:
        self._base, self._segmenter, self._name, self._pad = base, segmenter, name, pad
        self._ids = ids
        self._shown: Sequence[int] = range(len(ids))
        self._left = self._right = 0
        self.overflowing: list[PatchedEncoding] = []

    @cached_property
    def _owners(self) -> list[int]:
        """By kept base token: the base token that it is (a part of)."""
        pieces = self._segmenter.pieces
        return [k for k, token in enumerate(self._base.ids) for _ in pieces(token)]

    @cached_property
    def _firsts(self) -> list[int]:
        """By adapted token: the first kept base token that it stands for; the end follows."""
        return [0, *accumulate(map(self._segmenter.base_length, self._ids))]

    def __len__(self) -> int:
        return self._left + len(self._shown) + self._right

    @property
    def ids(self) -> list[int]:
        return self._padded((self._ids[k] for k in self._shown), self._pad[0])

    @property
    def tokens(self) -> list[str]:
        return self._padded((self._name(self._ids[k]) for k in self._shown), self._pad[2])

    @property
    def type_ids(self) -> list[int]:
        return self._column(self._base.type_ids, self._pad[1])

    @property
    def special_tokens_mask(self) -> list[int]:
        return self._column(self._base.special_tokens_mask, 1)

    @property
    def attention_mask(self) -> list[int]:
        return self._padded([1] * len(self._shown), 0)

    @property
    def sequence_ids(self) -> list[int | None]:
        return self._column(self._base.sequence_ids, None)

    @property
    def word_ids(self) -> list[int | None]:
        """The word of each token's first base token."""
        return self._column(self._base.word_ids, None)

    @property
    def n_sequences(self) -> int:
        return int(self._base.n_sequences)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        parts = self._part_offsets()
        firsts = self._firsts
        spans = ((parts[firsts[k]][0], parts[firsts[k + 1] - 1][1]) for k in self._shown)
        return self._padded(spans, (0, 0))

    def token_to_chars(self, index: int) -> tuple[int, int] | None:
        return None if self.token_to_sequence(index) is None else self.offsets[index]

    def token_to_sequence(self, index: int) -> int | None:
        return self.sequence_ids[index]

    def token_to_word(self, index: int) -> int | None:
        return self.word_ids[index]

    def char_to_token(self, char: int, sequence_index: int = 0) -> int | None:
        places = enumerate(zip(self.sequence_ids, self.offsets, strict=True))
        return next(
            (k for k, (seq, (a, b)) in places if seq == sequence_index and a <= char < b), None
        )

    def word_to_tokens(self, word: int, sequence_index: int = 0) -> tuple[int, int] | None:
        """The range of tokens that hold some of a word."""
        chars = self._base.word_to_chars(word, sequence_index)
        if chars is None:
            return None
        places = enumerate(zip(self.sequence_ids, self.offsets, strict=True))
        held = [
            k for k, (s, (a, b)) in places if s == sequence_index and a < chars[1] and b > chars[0]
        ]
        return (held[0], held[-1] + 1) if held else None

    def word_to_chars(self, word: int, sequence_index: int = 0) -> Any:
        return self._base.word_to_chars(word, sequence_index)

    def char_to_word(self, char: int, sequence_index: int = 0) -> Any:
        return self._base.char_to_word(char, sequence_index)

    def pad(self, length: int, side: str) -> None:
        """Fills it up to `length` tokens, and what overflowed too."""
        missing = max(0, length - len(self._shown))
        self._left, self._right = (missing, 0) if side == "left" else (0, missing)
        for more in self.overflowing:
            more.pad(length, side)

    def truncate(
        self, strategy: str, max_length: int, stride: int, side: str, overflows: bool
    ) -> None:
        """As tokenizers does it: special tokens stay.

        Where it `overflows`, what is cut off is in `overflowing`, with special tokens too.

        Raises ValueError where a sequence is too short to be cut by as much as is needed.
        """
        sequences = self.sequence_ids
        kept = [[k for k in range(len(self)) if sequences[k] == s] for s in (0, 1)]
        room = max(0, max_length - (len(self) - len(kept[0]) - len(kept[1])))
        targets = _lengths(strategy, (len(kept[0]), len(kept[1])), room)
        windows = [_windows(*pair, stride, side) for pair in zip(map(len, kept), targets)]  # noqa: B905
        cut = [s for s in (0, 1) if len(kept[s]) > targets[s]]
        if not cut:
            return
        texts = [kept[s][windows[s][0][0] : windows[s][0][1]] for s in (0, 1)]
        special = [k for k in range(len(self)) if sequences[k] is None]
        for s in cut if overflows else ():
            for start, stop in windows[s][1:]:
                shown = [kept[s][start:stop] if s == t else texts[t] for t in (0, 1)]
                self.overflowing.append(self._showing([*special, *shown[0], *shown[1]]))
        self._shown = sorted([*special, *texts[0], *texts[1]])

    def _showing(self, tokens: list[int]) -> PatchedEncoding:
        made = PatchedEncoding.__new__(PatchedEncoding)
        made.__dict__ |= self.__dict__ | {"overflowing": [], "_shown": sorted(tokens)}
        return made

    def _column(self, values: Sequence[Any], filler: Any) -> list[Any]:
        if len(self._owners) == len(self._ids) == len(self._shown):
            return self._padded(values, filler)
        return self._padded((values[self._owners[self._firsts[k]]] for k in self._shown), filler)

    def _padded(self, values: Iterable[Any], filler: Any) -> list[Any]:
        return [filler] * self._left + list(values) + [filler] * self._right

    def _part_offsets(self) -> list[tuple[int, int]]:
        parts: list[tuple[int, int]] = []
        for token, (start, stop) in zip(self._base.ids, self._base.offsets, strict=True):
            pieces = self._segmenter.pieces(token)
            names = [self._name(piece) for piece in pieces] if len(pieces) > 1 else []
            text = "".join(names)
            # A space's mark may stand for no character, where the base puts one before a text.
            if not names or not text[1:].isascii() or not 0 <= len(text) - (stop - start) <= 1:
                parts += [(start, stop)] * len(pieces)
                continue
            ends = list(accumulate(map(len, names), initial=stop - len(text)))
            parts += [(max(a, start), max(b, start)) for a, b in pairwise(ends)]
        return parts


def _lengths(strategy: str, lengths: tuple[int, int], room: int) -> tuple[int, int]:
    """Tokens that each of two sequences keeps, of `room` for both (truncation.rs)."""
    excess = sum(lengths) - room
    if excess <= 0:
        return lengths
    if strategy == "longest_first":
        if not lengths[1]:
            return room, 0
        short, long = sorted(lengths)
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room // 2 + room % 2
        return (short, long) if lengths[0] <= lengths[1] else (long, short)
    target = 1 if strategy == "only_second" else 0
    if lengths[target] <= excess:
        raise ValueError(
            f"Truncation error: sequence {target} is too short to respect the provided max_length"
        )
    return (room - lengths[1], lengths[1]) if target == 0 else (lengths[0], room - lengths[0])


def _windows(length: int, size: int, stride: int, side: str) -> list[tuple[int, int]]:
    """Ranges of at most `size` that cover `length` and share `stride` with the one before."""
    if length <= size or size == 0:
        return [(0, min(length, size)), *([(0, length)] if length > size else [])]
    if stride >= size:
        raise ValueError(f"`stride` must be strictly less than {size}, the tokens of a text kept")
    starts = range(0, length - stride, size - stride)
    windows = [(start, min(start + size, length)) for start in starts]
    return windows if side == "right" else [(length - b, length - a) for a, b in windows]
