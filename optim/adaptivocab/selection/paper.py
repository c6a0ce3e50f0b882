"""The published selection: frequency times length, less what overlaps with what is chosen.

Nakash et al. 2025, Alg. 1. What only its code says (find_ngrams_to_add.py at 95276dd) is kept too:
which n-grams are no candidates, how many there are, and which overlaps are too rare to count. Its
documents of under 50 words are for the caller to leave out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optim.adaptivocab.encoded_texts import EncodedTexts, Ints
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary, is_byte_token
from optim.errors import InputError

Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SLICE_TOKENS = 1 << 20
"""Counted at once: what counting holds beside the counts grows with this, not with the corpus."""

REPORT_EVERY = 1000
_NO_BREAK_SPACE = "\u00a0".encode()


def select(
    texts: EncodedTexts,
    base: BaseVocabulary,
    num_tokens: int,
    *,
    longest: int = 3,
    words_only: bool = False,
    least_overlap: int = 3,
    num_candidates_per_id: int = 5,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[tuple[int, ...]]:
    """Choose up to `num_tokens` n-grams of 2 to `longest` base ids, in the order of choosing.

    Candidates are the n-grams that lie within one chunk; those of digits only, and those with a
    SentencePiece byte, a no-break space or an added token, are left out. Of the others the
    `num_candidates_per_id` x |V| most frequent remain, |V| being the number of base tokens. With
    `words_only` no token but the first begins with a space (the paper's ablation of n-grams that
    stay within a word).

    F[t] counts all occurrences, also those that overlap each other; S[t] begins as F[t] len(t). The
    candidate t of the largest S is chosen, and for every other t', S[t'] falls by
    F_overlap[t][t'] len(t') (Alg. 1, line 12, and the code; the displayed equation has len(t)).
    F_overlap is the number of pairs of an occurrence of t and one of t' that have a position in
    common, as the code counts it: an occurrence of t' is counted once for each of t that it meets.
    Numbers under `least_overlap` are taken for 0. As nothing is counted afresh, an S can become
    negative; choosing goes on with the largest all the same.

    Of equal S the one of larger F comes first, then the shorter, then the one of smaller ids; the
    same order decides at the cut of candidates. Fewer come back where there are fewer candidates.
    Raises InputError where `longest` is below 2.
    """
    if longest < 2:
        raise InputError(f"must be at least 2, got {longest}", field="longest")
    joins_T = _joins_T(texts, base, words_only)
    most = num_candidates_per_id * len(base.tokens)
    candidates = _Counting(texts.ids_T, joins_T, base, longest).candidates(most, on_stage)
    scores_K = candidates.counts_K * candidates.lengths_K
    waiting = list(zip((-scores_K).tolist(), range(len(scores_K)), strict=True))
    heapq.heapify(waiting)
    chosen: list[tuple[int, ...]] = []
    while waiting and len(chosen) < num_tokens:
        entered, rank = waiting[0]
        score = int(scores_K[rank])
        if score != -entered:
            # Scores only fall, so an entry is an upper bound until it is looked at.
            heapq.heapreplace(waiting, (-score, rank))
            continue
        heapq.heappop(waiting)
        chosen.append(candidates.ids(rank))
        if len(chosen) % REPORT_EVERY == 0:
            on_stage(f"selecting: {len(chosen)} of {num_tokens} tokens, the last scores {score}")
        ranks, overlaps = candidates.overlaps(rank, least_overlap)
        scores_K[ranks] -= overlaps * candidates.lengths_K[ranks]
    return chosen


def _joins_T(texts: EncodedTexts, base: BaseVocabulary, words_only: bool) -> Flags:
    """[T-1]: whether a candidate may span a token and the next one."""
    allowed_V, begins_V, cut_end_V, cut_start_V = np.zeros((4, base.size), dtype=bool)
    for i, content in base.contents.items():
        is_byte = base.kind == "sentencepiece" and is_byte_token(base.tokens[i])
        allowed_V[i] = i not in base.added and not is_byte and _NO_BREAK_SPACE not in content
        begins_V[i] = content.startswith(b" ")
        # A byte-level vocabulary can have the two bytes of a no-break space in two tokens.
        cut_end_V[i] = content.endswith(_NO_BREAK_SPACE[:1])
        cut_start_V[i] = content.startswith(_NO_BREAK_SPACE[1:])
    first_T, second_T = texts.ids_T[:-1], texts.ids_T[1:]
    joins_T = texts.joins_T()
    joins_T &= allowed_V[first_T] & allowed_V[second_T]
    joins_T &= ~(cut_end_V[first_T] & cut_start_V[second_T])
    if words_only:
        joins_T &= ~begins_V[second_T]
    return joins_T


def _digits_V(base: BaseVocabulary) -> Flags:
    digits_V = np.zeros(base.size, dtype=bool)
    for i, content in base.contents.items():
        digits_V[i] = content.decode(errors="replace").isdigit()
    return digits_V


@dataclass(frozen=True)
class _Candidates:
    """Candidates by rank: the more frequent first, then the shorter, then those of smaller ids."""

    ids_C: Ints
    """The corpus, behind as many places as the longest candidate has tokens."""
    ranks_NC: Ints
    """For n from 2: the rank of the n-gram that begins at a place; -1 if it is no candidate."""
    counts_K: Longs
    lengths_K: Longs
    places_O: Ints
    """Where each candidate occurs, those of one in a row and rising."""
    firsts_K: Longs
    """Where a candidate's row begins in `places_O`."""

    def ids(self, rank: int) -> tuple[int, ...]:
        place = self.places_O[self.firsts_K[rank]]
        return tuple(self.ids_C[place : place + self.lengths_K[rank]].tolist())

    def overlaps(self, rank: int, least: int) -> tuple[Ints, Longs]:
        """The candidates that one overlaps at least so often, itself among them, and how often."""
        first, size = self.firsts_K[rank], int(self.lengths_K[rank])
        places_P = self.places_O[first : first + self.counts_K[rank]]
        num_lengths, width = self.ranks_NC.shape
        # An n-gram of m tokens that begins here, or up to m - 1 places before, shares a token.
        starts = [
            row * width + start for row in range(num_lengths) for start in range(-(row + 1), size)
        ]
        near = self.ranks_NC.reshape(-1)[places_P[:, None] + np.array(starts, dtype=np.int64)]
        ranks, numbers = np.unique(near[near >= 0], return_counts=True)
        is_seen = numbers >= least
        return ranks[is_seen], numbers[is_seen]


@dataclass(frozen=True)
class _Grams:
    """The distinct n-grams of one n, numbered in the order of their ids."""

    keys_G: Longs
    """The number of the n-gram without its last token, times the size of the vocabulary, plus that
    token; it fits 64 bits whatever n is."""
    counts_G: Longs
    digits_G: Flags
    """Whether there are only digits in it."""

    def most_frequent(self, most: int) -> Longs:
        """The numbers of the most frequent, of equals those of smaller ids; no digits only."""
        numbers = np.flatnonzero(~self.digits_G)
        order = np.argsort(-self.counts_G[numbers], kind="stable")
        return numbers[order[:most]]


class _Counting:
    """Counts of n-grams, from n = 2 up: each is the number of a shorter one and a token."""

    def __init__(self, ids_T: Ints, joins_T: Flags, base: BaseVocabulary, longest: int) -> None:
        self.longest, self.size = longest, base.size
        self.num_places = len(ids_T) + longest
        self.ids_C = np.zeros(self.num_places, dtype=np.int32)
        self.ids_C[longest:] = ids_T
        self.joins_C = np.zeros(self.num_places, dtype=bool)
        """Whether a token and the one before it may be in one candidate."""
        self.joins_C[longest + 1 :] = joins_T
        self.numbers_NC = np.full((longest - 1, self.num_places), -1, dtype=np.int32)
        self.digits_V = _digits_V(base)

    def candidates(self, most: int, on_stage: Callable[[str], None]) -> _Candidates:
        """The most frequent n-grams of all lengths; the counting's own arrays are used up."""
        kept: list[Longs] = []
        counts: list[Longs] = []
        sizes: list[int] = []
        digits_G = self.digits_V
        for n in range(2, self.longest + 1):
            on_stage(f"counting sequences of {n} tokens")
            grams = self._count(n, digits_G)
            digits_G = grams.digits_G
            numbers = grams.most_frequent(most)
            kept.append(numbers)
            counts.append(grams.counts_G[numbers])
            sizes.append(len(grams.keys_G))
        lengths = np.repeat(np.arange(2, self.longest + 1), [len(numbers) for numbers in kept])
        every = np.concatenate(counts)
        # Those of one length are in order already, so what is stable keeps that of their ids.
        order_K = np.argsort(-every, kind="stable")[:most]
        rows_K = lengths[order_K] - 2
        numbers_K = np.concatenate(kept)[order_K]
        for row, size in enumerate(sizes):
            ranks_G = np.full(size + 1, -1, dtype=np.int32)
            ranks_K = np.flatnonzero(rows_K == row)
            ranks_G[numbers_K[ranks_K]] = ranks_K
            # -1 is no n-gram, and the last entry is that of no candidate.
            self.numbers_NC[row] = ranks_G[self.numbers_NC[row]]
        return self._placed(every[order_K], lengths[order_K])

    def _placed(self, counts_K: Longs, lengths_K: Longs) -> _Candidates:
        firsts_K = np.zeros(len(counts_K), dtype=np.int64)
        places: list[Ints] = []
        num_before = 0
        for row, ranks_C in enumerate(self.numbers_NC):
            places_P = np.flatnonzero(ranks_C >= 0).astype(np.int32)
            places.append(places_P[np.argsort(ranks_C[places_P], kind="stable")])
            ranks_K = np.flatnonzero(lengths_K == row + 2)
            ends_K = np.cumsum(counts_K[ranks_K])
            firsts_K[ranks_K] = num_before + ends_K - counts_K[ranks_K]
            num_before += len(places_P)
        return _Candidates(
            self.ids_C, self.numbers_NC, counts_K, lengths_K, np.concatenate(places), firsts_K
        )

    def _count(self, n: int, shorter_digits_G: Flags) -> _Grams:
        """Count one length, and write at each place the number of its n-gram."""
        keys_G, counts_G = np.zeros((2, 0), dtype=np.int64)
        for _, keys_P in self._slices(n):
            found, counts = np.unique(keys_P, return_counts=True)
            keys_G, counts_G = _merged(keys_G, counts_G, found, counts)
        for places_P, keys_P in self._slices(n):
            self.numbers_NC[n - 2][places_P] = np.searchsorted(keys_G, keys_P)
        digits_G = shorter_digits_G[keys_G // self.size] & self.digits_V[keys_G % self.size]
        return _Grams(keys_G, counts_G, digits_G)

    def _slices(self, n: int) -> Iterator[tuple[Longs, Longs]]:
        """Places where n-grams begin that may be candidates, and their keys."""
        shorter_C = self.numbers_NC[n - 3] if n > 2 else self.ids_C
        last = self.num_places - n + 1
        for start in range(self.longest, last, SLICE_TOKENS):
            end = min(start + SLICE_TOKENS, last)
            ends_C = slice(start + n - 1, end + n - 1)
            shorter_P = shorter_C[start:end]
            there = np.flatnonzero((shorter_P >= 0) & self.joins_C[ends_C])
            keys_P = shorter_P[there].astype(np.int64) * self.size + self.ids_C[ends_C][there]
            yield there + start, keys_P


def _merged(
    keys: Longs, counts: Longs, more_keys: Longs, more_counts: Longs
) -> tuple[Longs, Longs]:
    """Two counts of sorted keys as one."""
    both = np.concatenate([keys, more_keys])
    order = np.argsort(both, kind="stable")
    both = both[order]
    starts = np.flatnonzero(np.diff(both, prepend=-1))
    if not len(starts):
        return keys, counts
    return both[starts], np.add.reduceat(np.concatenate([counts, more_counts])[order], starts)
