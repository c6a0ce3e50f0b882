"""`EncodedTexts`: a corpus as token ids, with the places that no new token may span."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Ints = npt.NDArray[np.int32]

BATCH_CHARACTERS = 1 << 20
"""Encoded at once: the tokenizer's own records of a text take far more room than its ids."""


@dataclass(frozen=True)
class EncodedTexts:
    """Texts end to end. Numbers of chunks and texts do not fall from one token to the next."""

    ids_T: Ints
    chunk_T: Ints
    """The chunk that a token is of; new tokens lie within one."""
    text_T: Ints
    """The text that a token is of, from 0."""
    num_bytes: int
    """Of the texts, in UTF-8."""

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def num_texts(self) -> int:
        return int(self.text_T[-1]) + 1 if len(self) else 0

    def joins_T(self) -> npt.NDArray[np.bool_]:
        """[T-1]: whether a token and the next one are of one chunk."""
        joined: npt.NDArray[np.bool_] = self.chunk_T[1:] == self.chunk_T[:-1]
        return joined

    def counts_V(self, size: int) -> npt.NDArray[np.int64]:
        """How often each id below `size` occurs."""
        return np.bincount(self.ids_T, minlength=size)


def encode(
    tokenizer: Tokenizer, texts: Iterable[str], *, barriers: Collection[int], cut: bool
) -> EncodedTexts:
    """Encode texts, without special tokens around them.

    A token of `barriers` is a chunk of its own. With `cut`, chunks are the pieces that the
    tokenizer's pre-tokenizer makes; else only barriers and ends of texts part them.
    """
    pieces: list[tuple[Ints, Ints, int]] = []
    num_bytes = 0
    for batch in batches(texts):
        num_bytes += sum(len(text.encode()) for text in batch)
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            ids_T = np.array(encoding.ids, dtype=np.int32)
            words = encoding.word_ids if cut else None
            pieces.append((ids_T, _chunks(ids_T, words, barriers), len(ids_T)))
    return _joined(pieces, num_bytes)


def _chunks(ids_T: Ints, words: Sequence[int | None] | None, barriers: Collection[int]) -> Ints:
    """Chunk numbers of one text, from 0."""
    starts_T = np.zeros(len(ids_T), dtype=np.int32)
    if words is not None and len(ids_T):
        words_T = np.array([-1 if word is None else word for word in words], dtype=np.int32)
        starts_T[1:] = words_T[1:] != words_T[:-1]
    if barriers:
        barred_T = np.isin(ids_T, np.fromiter(barriers, dtype=np.int32))
        starts_T |= barred_T
        starts_T[1:] |= barred_T[:-1]
    starts_T[:1] = 0
    return np.cumsum(starts_T, dtype=np.int32)


def _joined(pieces: list[tuple[Ints, Ints, int]], num_bytes: int) -> EncodedTexts:
    if not pieces:
        empty = np.zeros(0, dtype=np.int32)
        return EncodedTexts(empty, empty, empty, num_bytes)
    first_chunk, chunks = 0, []
    for _, chunk_T, size in pieces:
        chunks.append(chunk_T + np.int32(first_chunk))
        first_chunk += int(chunk_T[-1]) + 1 if size else 0
    sizes = np.array([size for *_, size in pieces])
    return EncodedTexts(
        np.concatenate([ids_T for ids_T, *_ in pieces]),
        np.concatenate(chunks),
        np.repeat(np.arange(len(pieces), dtype=np.int32), sizes),
        num_bytes,
    )


def joined(parts: Sequence[EncodedTexts]) -> EncodedTexts:
    """Several corpora, one after the other."""
    if len(parts) == 1:
        return parts[0]
    chunks, texts = [], []
    first_chunk = first_text = 0
    for part in parts:
        chunks.append(part.chunk_T + np.int32(first_chunk))
        texts.append(part.text_T + np.int32(first_text))
        if len(part):
            first_chunk, first_text = int(chunks[-1][-1]) + 1, int(texts[-1][-1]) + 1
    return EncodedTexts(
        np.concatenate([part.ids_T for part in parts]),
        np.concatenate(chunks),
        np.concatenate(texts),
        sum(part.num_bytes for part in parts),
    )


def replaced(texts: EncodedTexts, expansions: dict[int, tuple[int, ...]]) -> EncodedTexts:
    """The same texts with each id of `expansions` written as the ids it is split into."""
    if not expansions or not len(texts):
        return texts
    lengths_V = np.ones(int(texts.ids_T.max()) + 1, dtype=np.int64)
    for number, parts in expansions.items():
        if number < len(lengths_V):
            lengths_V[number] = len(parts)
    lengths_T = lengths_V[texts.ids_T]
    ids_T = np.repeat(texts.ids_T, lengths_T)
    ends_T = np.cumsum(lengths_T)
    for position in np.flatnonzero(lengths_T > 1):
        start, end = ends_T[position] - lengths_T[position], ends_T[position]
        ids_T[start:end] = expansions[int(texts.ids_T[position])]
    return EncodedTexts(
        ids_T,
        np.repeat(texts.chunk_T, lengths_T),
        np.repeat(texts.text_T, lengths_T),
        texts.num_bytes,
    )


def batches(texts: Iterable[str], characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Texts in lists of at least so many characters, the last one excepted."""
    waiting = iter(texts)
    for first in waiting:
        batch, size = [first], len(first)
        for text in waiting:
            batch.append(text)
            size += len(text)
            if size >= characters:
                break
        yield batch
