"""Bases of `vocabularies` with new tokens, as plain tokenizers; made once a process."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import vocabularies
from tokenizers import Tokenizer

from optim.adaptivocab.encoded_texts import encode
from optim.adaptivocab.selection.hierarchical import Rules, Selection, barriers, select
from optim.adaptivocab.selection.removal import Removal, choose
from optim.adaptivocab.tokenizer.base_vocabulary import BaseVocabulary
from optim.adaptivocab.tokenizer.export import Document, extended, reduced, tokenizer_of

NUM_NEW = {"tekken": 3000, "mistral": 3000, "demo": 2000}
"""Of the small ones 700."""


class Adapted(NamedTuple):
    base: BaseVocabulary
    removal: Removal
    ids: list[int]
    chosen: Selection
    document: Document

    @property
    def names(self) -> dict[str, int]:
        return dict(zip(self.chosen.names, self.ids, strict=True))

    @property
    def expansions(self) -> dict[int, tuple[int, ...]]:
        return dict(zip(self.ids, self.chosen.expansions, strict=True))

    def expand(self, ids: list[int]) -> list[int]:
        expansions = self.expansions
        return [part for i in ids for part in expansions.get(i, (i,))]


@cache
def adapted(name: str, *, is_larger: bool = False) -> Adapted:
    """Half of the new tokens, or with `is_larger` none, take the ids of removed ones."""
    base, num_new = vocabularies.base(name), NUM_NEW.get(name, 700)
    train = vocabularies.prose()[1::2] + vocabularies.sources()[::2]
    counts_V = encode(tokenizer_of(base.document), train, barriers=(), cut=False).counts_V(
        base.size
    )
    removal = choose(base, counts_V, 0 if is_larger else num_new // 2)
    document = reduced(base, removal.ids)
    assert document is not None
    cut = base.kind == "byte-level"
    texts = encode(tokenizer_of(document), train, barriers=barriers(base), cut=cut)
    gone = dict.fromkeys(removal.ids, ())
    chosen = select(texts, base, num_new, Rules(), removed=gone, is_native=True)
    free = range(base.size, base.size + num_new - len(removal.ids))
    ids = [*sorted(removal.ids), *free]
    names = dict(zip(chosen.names, ids, strict=True))
    return Adapted(base, removal, ids, chosen, extended(document, names, chosen.merges))


@cache
def native(name: str) -> Tokenizer:
    return tokenizer_of(adapted(name).document)


@cache
def strings(num_strings: int = 20_000) -> list[str]:
    others = [*vocabularies.prose()[::16], *(file[:4000] for file in vocabularies.sources()[1::2])]
    return [*vocabularies.nasty(num_strings), *others]
